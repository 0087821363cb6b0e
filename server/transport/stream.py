"""One RPC's stream: what comes in is joined to messages, what goes out keeps to the windows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from headrace.server.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    NUMBER,
    ErrorCode,
    Piece,
    head,
)
from headrace.server.transport.messages import PREFIX, Messages

if TYPE_CHECKING:
    import grpc

    from headrace.server.transport.connection import Connection
    from headrace.server.transport.headers import Head
    from headrace.server.transport.messages import Message

WINDOW: Final = 4 << 20
"""Bytes that a caller may send on a stream before they are used."""
_JOINED: Final = 1 << 16
"""Bytes up to which pieces are copied together to be written at once."""


class Stream:
    """The two directions of an RPC.

    Attributes:
        number: of the stream on its connection.
        head: the request's headers.
        deadline: when the caller waits no longer, as :func:`time.monotonic` counts; None for never.
        window: bytes that the peer takes on this stream beyond the initial window; may be below 0.
        complete: whether the caller has sent all (END_STREAM came).
        deaf: whether no more messages are wanted.
        gone: whether nothing can be sent any more: the end was sent, or the caller has left.
        started: whether the answer's headers are out.
        handler: what shall answer once the request's one message is there.
        task: what answers; cancelled when the caller leaves.
        timer: what ends it at its deadline.
        trailers: the answer's end, to be sent once nothing is unsent.
    """

    __slots__ = (
        "_connection",
        "_incoming",
        "_messages",
        "_owed",
        "_sending",
        "_unsent",
        "_waiting_in",
        "_waiting_out",
        "complete",
        "deadline",
        "deaf",
        "gone",
        "handler",
        "head",
        "number",
        "started",
        "task",
        "timer",
        "trailers",
        "window",
    )

    def __init__(self, connection: Connection, number: int, head: Head) -> None:
        self._connection = connection
        self._sending = connection.sending
        self.number = number
        self.head = head
        self.deadline = None if head.timeout is None else time.monotonic() + head.timeout
        self.window = 0
        self.deaf = False
        self.complete = False
        self.gone = False
        self.started = False
        self.handler: grpc.RpcMethodHandler[Any, Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.trailers: bytes | None = None
        self._incoming = Messages(head.encoding)
        self._messages: deque[Message] = deque()
        self._owed = 0  # bytes received whose place in the window was not given back
        self._waiting_in: asyncio.Future[None] | None = None
        self._unsent: deque[memoryview] = deque()
        self._waiting_out: asyncio.Future[None] | None = None

    # What comes in.

    def take(self, data: memoryview, size: int) -> bool:
        """Take the payload of a DATA frame, or a part of one; return whether a message is there.

        Args:
            data: the bytes; they are copied.
            size: what they cost of the window.

        Raises:
            BadMessageError: they are no messages.
        """
        self._owed += size
        if self.deaf:
            return False
        found = self._incoming.take(data)
        if found:
            self._messages += found
            self._wake_reader()
        self._give_back()
        return bool(found)

    @property
    def overrun(self) -> bool:
        """Whether the caller has sent more than the window allowed."""
        return self._owed > WINDOW

    def end(self) -> bool:
        """Note that the caller has sent all; whether its last message was whole."""
        self.complete = True
        self._wake_reader()
        return self.deaf or not self._incoming.partial

    async def receive(self) -> Message | None:
        """Return the next message; None after the last."""
        while not self._messages:
            if self.complete or self.gone:
                return None
            self._waiting_in = asyncio.get_running_loop().create_future()
            try:
                await self._waiting_in
            finally:
                self._waiting_in = None
        message = self._messages.popleft()
        self._give_back()
        return message

    def first(self) -> Message | None:
        """Return the first message if it is there."""
        return self._messages.popleft() if self._messages else None

    def _give_back(self) -> None:
        """Let the caller send on, unless messages wait to be read."""
        if self._owed > WINDOW // 2 and not self._messages and not self.complete:
            self._sending.widen(self.number, self._owed)
            self._owed = 0

    def _wake_reader(self) -> None:
        if self._waiting_in is not None and not self._waiting_in.done():
            self._waiting_in.set_result(None)

    # What goes out.

    def send(self, initial: bytes | None, message: bytes | bytearray | None, trailers: bytes | None) -> None:
        """Send any of the answer's headers, a message and its end, in this order; nothing follows the end."""
        if self.gone or self.trailers is not None:
            return
        sending = self._sending
        pieces: list[Piece] = []
        if initial is not None:
            self.started = True
            pieces += sending.header_frames(self.number, END_HEADERS, initial)
        if message is not None:
            prefix = b"\0" + NUMBER.pack(len(message))
            size = PREFIX + len(message)
            if size <= sending.room(self) and not self._unsent:
                sending.spend(self, size)
                pieces += (head(size, DATA, 0, self.number), prefix, message)
            else:
                self._unsent += (memoryview(part) for part in (prefix, message) if part)
                while frame := self._next_frame():
                    pieces += frame
        if trailers is not None:
            self.trailers = trailers
        self._write(pieces)
        if self._unsent:
            sending.wait_for_room(self)

    def send_on(self) -> None:
        """Send the next frame of what is unsent; the windows have room, or had."""
        self._write(self._next_frame())

    @property
    def congested(self) -> bool:
        """Whether the next message should wait for what was sent: see :meth:`sent`."""
        return bool(self._unsent) or self._sending.paused

    @property
    def blocked(self) -> bool:
        """Whether something waits for room in the windows."""
        return bool(self._unsent)

    def _write(self, pieces: list[Piece]) -> None:
        if self.trailers is not None and not self._unsent:
            pieces += self._sending.header_frames(self.number, END_HEADERS | END_STREAM, self.trailers)
        if sum(map(len, pieces)) <= _JOINED:
            self._sending.write(b"".join(pieces))
        else:
            self._sending.write_all(pieces)
        if not self._unsent:
            if self.trailers is not None:
                self._connection.finish(self)
            self.wake_writer()

    def _next_frame(self) -> list[Piece]:
        """Return a frame with as much of what is unsent as may be sent; none if nothing may."""
        room = self._sending.room(self)
        if room <= 0 or not self._unsent:
            return []
        pieces: list[Piece] = []
        size = 0
        while self._unsent and size < room:
            chunk = self._unsent[0]
            if len(chunk) <= room - size:
                self._unsent.popleft()
            else:
                self._unsent[0] = chunk[room - size :]
                chunk = chunk[: room - size]
            pieces.append(chunk)
            size += len(chunk)
        self._sending.spend(self, size)
        return [head(size, DATA, 0, self.number), *pieces]

    async def sent(self) -> None:
        """Wait until what was sent is with the transport, and that takes more.

        Raises:
            RuntimeError: something waits already.
        """
        if self._waiting_out is not None:
            raise RuntimeError("the messages of one stream are written one after the other")
        while not self.gone and (self._unsent or self._sending.paused):
            self._waiting_out = asyncio.get_running_loop().create_future()
            try:
                await self._waiting_out
            finally:
                self._waiting_out = None

    def wake_writer(self) -> None:
        """Look again whether there is room."""
        if self._waiting_out is not None and not self._waiting_out.done():
            self._waiting_out.set_result(None)

    def drop(self) -> None:
        """End it: the caller has left, or the answer is out."""
        self.gone = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self._unsent.clear()
        self._messages.clear()
        self._wake_reader()
        self.wake_writer()

    def cancel(self) -> None:
        """Cancel what answers, once: its end is not to be disturbed."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()

    def cut_off(self) -> None:
        """Break it off if what was sent still waits for the caller to read."""
        if self._unsent and not self.gone:
            self._connection.reset(self, ErrorCode.CANCEL)
