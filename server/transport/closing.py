"""How a connection ends (RFC 9113, sections 5.4.1 and 6.8): GOAWAY, what is still to be sent, and the end."""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from typing import TYPE_CHECKING, Final

from headrace.server.transport import frames
from headrace.server.transport.frames import BrokenProtocolError, ErrorCode, frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.server.transport.sending import Sending
    from headrace.server.transport.stream import Stream

_TEXT: Final = 200
"""Characters of a GOAWAY's text."""
_PING: Final = b"draining"
_ACKNOWLEDGE_SECONDS: Final = 2.0
_CLOSING_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.05


class Closing:
    """The end of one connection.

    Attributes:
        last: the highest stream that the caller has opened.
        refusing: whether new streams are refused.
    """

    def __init__(self, sending: Sending, streams: Mapping[int, Stream]) -> None:
        self._sending = sending
        self._streams = streams
        self.last = 0
        self.refusing = False
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None

    def drain(self) -> None:
        """Ask the caller to open no more streams; those that it opened before it heard of that are served."""
        if self._draining or self._sending.transport is None:
            return
        self._draining = True
        self._goaway(frames.LARGEST_WINDOW)
        self._sending.write(frame(frames.PING, 0, 0, _PING))
        self._after(_ACKNOWLEDGE_SECONDS, self.refuse_more)

    def acknowledged(self, ping: bytes) -> None:
        """Take the answer to a ping: a caller who has answered ours has heard of the end."""
        if self._draining and ping == _PING:
            self.refuse_more()

    def refuse_more(self) -> None:
        """Refuse further streams; close once those that run have ended."""
        if not self.refusing:
            self.refusing = True
            self._goaway(self.last)
            self.close_if_done()

    def close_if_done(self) -> None:
        """Close if nothing is to be done any more.

        Closing while the kernel has something to send would lose that: it answers what comes in then by
        breaking the connection off.
        """
        transport = self._sending.transport
        if not self.refusing or self._streams or transport is None or transport.is_closing():
            return
        if self.unsent:
            self._after(_LOOK_SECONDS, self.close_if_done)
        else:
            transport.close()

    @property
    def unsent(self) -> bool:
        """Whether something is still to be sent, by the process or the kernel."""
        transport = self._sending.transport
        if transport is None:
            return False
        if transport.get_write_buffer_size() > 0:
            return True
        sock = transport.get_extra_info("socket")
        count = array.array("i", [0])
        try:
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
        except OSError:
            return False
        return count[0] > 0

    def give_up(self, error: BrokenProtocolError) -> None:
        """Tell the caller what it did, and close."""
        self._goaway(self.last, error.code, error.text[:_TEXT])
        self.close()

    def close(self) -> None:
        """Close, once what is written is sent; a caller who does not read is not waited for long."""
        transport = self._sending.transport
        if transport is not None:
            transport.close()
            self._after(_CLOSING_SECONDS, transport.abort)

    def forget(self) -> None:
        """Wait for nothing: the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self.forget()
        self._timer = asyncio.get_running_loop().call_later(seconds, do)

    def _goaway(self, last: int, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        self._sending.write(frame(frames.GOAWAY, 0, 0, frames.PAIR.pack(last, code) + text.encode()))
