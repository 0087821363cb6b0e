"""One HTTP/2 connection (RFC 9113) of a caller: frames in, frames out, and the streams between."""

from __future__ import annotations

import asyncio
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, cast

from headrace.server.transport import frames
from headrace.server.transport.calm import Calm
from headrace.server.transport.closing import Closing
from headrace.server.transport.frames import BrokenProtocolError, ErrorCode, frame
from headrace.server.transport.headers import MOST_HEADERS, Head, HeaderReader
from headrace.server.transport.messages import BadMessageError
from headrace.server.transport.receiving import LARGEST_FRAME, FrameReader
from headrace.server.transport.sending import Sending
from headrace.server.transport.stream import WINDOW, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.server.transport.base import Calls

_STREAMS: Final = 100_000
"""RPCs of one connection that run at the same time; those above are refused, to be asked again."""
_SETTINGS_COST: Final = 100
_SILENT_MS: Final = 20_000
"""Milliseconds for which a caller may acknowledge nothing before it is taken for gone; gRPC's own."""
_GREETING_SECONDS: Final = 120.0


class Connection(asyncio.BufferedProtocol):
    """A connection.

    Args:
        calls: what answers.
        buffer: what is received into, shared by the connections of one loop: it is used up when it is filled.
    """

    def __init__(self, calls: Calls, buffer: memoryview) -> None:
        self._calls = calls
        self._buffer = buffer
        self.sending = Sending()
        self._headers = HeaderReader()
        self._streams: dict[int, Stream] = {}
        self._closing = Closing(self.sending, self._streams)
        self._reader = FrameReader(self)
        self._calm = Calm()
        self._stream: Stream | None = None  # whose DATA frame is coming
        self._ends = False  # whether it ends its stream
        self._block = bytearray()  # headers that CONTINUATION frames go on with
        self._continued = 0  # the stream of those; 0 for none
        self._block_ends = False
        self._consumed = 0  # bytes received whose place in the connection's window was not given back
        self._greeting: asyncio.TimerHandle | None = None

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, and wait for the caller's greeting."""
        self.sending.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)
        greeting = frames.settings(
            {
                frames.MAX_CONCURRENT_STREAMS: _STREAMS,
                frames.INITIAL_WINDOW_SIZE: WINDOW,
                frames.MAX_FRAME_SIZE: LARGEST_FRAME,
                frames.MAX_HEADER_LIST_SIZE: MOST_HEADERS,
            }
        )
        self.sending.write(greeting)
        self.sending.widen(0, frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW)
        self._greeting = asyncio.get_running_loop().call_later(_GREETING_SECONDS, self._closing.close)
        self._calls.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to receive."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was received.

        Where there is more than fits, others have their turn before it is read.
        """
        transport = self.sending.transport
        if nbytes == len(self._buffer) and transport is not None:
            transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)
        try:
            self._reader.take(self._buffer[:nbytes])
        except BrokenProtocolError as error:
            self._closing.give_up(error)

    def _read_on(self) -> None:
        transport = self.sending.transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def eof_received(self) -> bool:
        """Close: a caller that sends no more cannot acknowledge either."""
        self._closing.close()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End all streams."""
        self.sending.transport = None
        # These refer to this connection: what they hold would wait for the collector.
        del self._reader
        self._stream = None
        self._closing.forget()
        if self._greeting is not None:
            self._greeting.cancel()
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            self._leave(stream)
        self._calls.closed(self)

    def pause_writing(self) -> None:
        """Have streams wait."""
        self.sending.paused = True

    def resume_writing(self) -> None:
        """Let streams go on."""
        self.sending.paused = False
        for stream in list(self._streams.values()):
            stream.wake_writer()

    # Frames in.

    def greeted(self) -> None:
        """Wait no longer for the greeting."""
        if self._greeting is not None:
            self._greeting.cancel()

    def begin_data(self, number: int, size: int, flags: int) -> None:
        """Find whose data comes next."""
        if self._continued or self._idle(number):
            raise BrokenProtocolError(f"DATA within headers, or on stream {number}, which was not opened")
        self._stream = stream = self._streams.get(number)
        self._ends = bool(flags & frames.END_STREAM)
        if stream is not None and stream.complete:
            self.reset(stream, ErrorCode.STREAM_CLOSED)
        if not size and not self._ends:
            self._calm.spend(1)
        self._consumed += size
        if self._consumed > frames.LARGEST_WINDOW // 2:
            self.sending.widen(0, self._consumed)
            self._consumed = 0

    def take_data(self, data: memoryview, *, last: bool, padding: int = 0) -> None:
        """Take a part of a DATA frame; with ``last`` the frame ends. Padding costs window, and is nothing."""
        stream = self._stream
        if last:
            self._stream = None
        if stream is None or stream.gone or stream.trailers is not None:
            return
        try:
            found = stream.take(data, len(data) + padding)
        except BadMessageError as error:
            self._stream = None
            self._calls.refuse(stream, error)
            return
        if stream.overrun:
            self._stream = None
            self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif last and self._ends:
            self._end_stream(stream)
        elif found:
            self._calls.received(stream)

    def _end_stream(self, stream: Stream) -> None:
        if not stream.end():
            self._calls.refuse(stream, BadMessageError("the last message is cut off"))
            return
        self._calls.received(stream)

    def take_frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        """Take a frame; those of unknown kinds are to be ignored (section 5.5)."""
        if self._continued and (kind != frames.CONTINUATION or number != self._continued):
            raise BrokenProtocolError("a frame within headers")
        take = self._TAKERS.get(kind)
        if take is not None:
            take(self, flags, number, payload)

    def _take_padded(self, flags: int, number: int, payload: memoryview) -> None:
        content = frames.unpadded(payload, flags)
        self.begin_data(number, len(payload), flags)
        self.take_data(content, last=True, padding=len(payload) - len(content))

    def _take_priority(self, flags: int, number: int, payload: memoryview) -> None:
        frames.expect(payload, 5, number, on_stream=True)
        self._calm.spend(1)

    def _take_goaway(self, flags: int, number: int, payload: memoryview) -> None:
        if number:
            raise BrokenProtocolError("GOAWAY on a stream")
        if len(payload) < frames.PAIR.size:
            raise BrokenProtocolError(f"GOAWAY of {len(payload)} bytes", ErrorCode.FRAME_SIZE_ERROR)

    def _take_push(self, flags: int, number: int, payload: memoryview) -> None:
        raise BrokenProtocolError("callers cannot push")

    def _take_continuation(self, flags: int, number: int, payload: memoryview) -> None:
        if not self._continued:
            raise BrokenProtocolError("CONTINUATION without headers")
        if not payload:
            self._calm.spend(1)
        self._take_block(payload, flags)

    def _take_headers(self, flags: int, number: int, payload: memoryview) -> None:
        if not number & 1:
            raise BrokenProtocolError(f"a request on stream {number}")
        payload = frames.unpadded(payload, flags)
        if flags & frames.PRIORITISED:
            if len(payload) < 5:
                raise BrokenProtocolError("HEADERS without its priority", ErrorCode.FRAME_SIZE_ERROR)
            payload = payload[5:]
        self._continued = number
        self._block_ends = bool(flags & frames.END_STREAM)
        self._take_block(payload, flags)

    def _take_block(self, payload: memoryview, flags: int) -> None:
        if not flags & frames.END_HEADERS or self._block:
            self._block += payload
            if len(self._block) > MOST_HEADERS:
                raise BrokenProtocolError(
                    f"headers of more than {MOST_HEADERS} bytes", ErrorCode.ENHANCE_YOUR_CALM
                )
            if not flags & frames.END_HEADERS:
                return
            block, self._block = bytes(self._block), bytearray()
        else:
            block = bytes(payload)
        number, self._continued = self._continued, 0
        head = self._headers.read(block)
        if number <= self._closing.last:
            self._take_trailers(number, head)
        else:
            self._open(number, head)

    def _take_trailers(self, number: int, head: Head) -> None:
        stream = self._streams.get(number)
        request = not head.malformed  # which trailers never are: they lack pseudo-headers
        if stream is None:
            if request:
                raise BrokenProtocolError(f"a request on stream {number}, after one on {self._closing.last}")
            # Otherwise it was broken off, and the caller did not know.
        elif stream.complete:
            self.reset(stream, ErrorCode.STREAM_CLOSED)
        elif request or not self._block_ends:
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif stream.trailers is None:
            self._end_stream(stream)

    def _open(self, number: int, head: Head) -> None:
        self._closing.last = number
        if self._closing.refusing or len(self._streams) >= _STREAMS:
            self.sending.reset(number, ErrorCode.REFUSED_STREAM)
            return
        if head.malformed:
            self.sending.reset(number, ErrorCode.PROTOCOL_ERROR)
            return
        stream = Stream(self, number, head)
        self._streams[number] = stream
        stream.complete = self._block_ends
        self._calls.begin(stream)
        if self._block_ends and not stream.gone:
            self._end_stream(stream)

    def _take_window(self, flags: int, number: int, payload: memoryview) -> None:
        frames.expect(payload, 4, number, on_stream=None)
        increment = int.from_bytes(payload, "big") & frames.LARGEST_WINDOW
        if number == 0:
            self.sending.widened(increment)
            return
        if self._idle(number):
            raise BrokenProtocolError(f"a window of stream {number}, which was not opened")
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.window += increment
        if not increment:
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
        elif self.sending.initial_window + stream.window > frames.LARGEST_WINDOW:
            self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream.blocked:
            self.sending.wait_for_room(stream)
            self.sending.send_on()

    def _take_reset(self, flags: int, number: int, payload: memoryview) -> None:
        frames.expect(payload, 4, number, on_stream=True)
        if self._idle(number):
            raise BrokenProtocolError(f"an end of stream {number}, which was not opened")
        stream = self._forget(number)
        if stream is not None:
            self._leave(stream)

    def _take_ping(self, flags: int, number: int, payload: memoryview) -> None:
        frames.expect(payload, 8, number, on_stream=False)
        if not flags & frames.ACK:
            self._calm.spend(1)
            self.sending.acknowledge(frame(frames.PING, frames.ACK, 0, bytes(payload)))
        else:
            self._closing.acknowledged(bytes(payload))

    def _take_settings(self, flags: int, number: int, payload: memoryview) -> None:
        if number:
            raise BrokenProtocolError("SETTINGS on a stream")
        if len(payload) % frames.SETTING.size or (flags & frames.ACK and payload):
            raise BrokenProtocolError(f"SETTINGS of {len(payload)} bytes", ErrorCode.FRAME_SIZE_ERROR)
        if flags & frames.ACK:
            return
        self._calm.spend(_SETTINGS_COST)
        self.sending.configure(payload)

    # Ends of streams and of the connection.

    def finish(self, stream: Stream) -> None:
        """Forget a stream whose end was sent."""
        self._forget(stream.number)
        stream.drop()
        if not stream.complete:  # the caller need not send the rest
            self.sending.reset(stream.number, ErrorCode.NO_ERROR)
        self._closing.close_if_done()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Break a stream off, as what it does or did cannot go on."""
        if self._forget(stream.number) is not None:
            self.sending.reset(stream.number, code)
            self._leave(stream)

    def _idle(self, number: int) -> bool:
        """Whether no stream of this number was ever opened; even ones are the server's, which opens none."""
        return not number & 1 or number > self._closing.last

    def _forget(self, number: int) -> Stream | None:
        self.sending.forget(number)
        return self._streams.pop(number, None)

    def _leave(self, stream: Stream) -> None:
        stream.drop()
        stream.cancel()
        self._closing.close_if_done()

    def drain(self) -> None:
        """Ask the caller to open no more streams; those that it opened before it heard of that are served."""
        self._closing.drain()

    @property
    def busy(self) -> bool:
        """Whether RPCs run, or something of them is still to be sent."""
        return bool(self._streams) or self._closing.unsent

    def end(self) -> None:
        """End all streams with UNAVAILABLE, and close."""
        self._closing.refuse_more()
        for stream in list(self._streams.values()):
            self._calls.cut(stream)
        self._closing.close()

    _TAKERS: ClassVar[Mapping[int, Callable[[Connection, int, int, memoryview], None]]] = MappingProxyType(
        {
            frames.DATA: _take_padded,
            frames.HEADERS: _take_headers,
            frames.PRIORITY: _take_priority,
            frames.RST_STREAM: _take_reset,
            frames.SETTINGS: _take_settings,
            frames.PUSH_PROMISE: _take_push,
            frames.PING: _take_ping,
            frames.GOAWAY: _take_goaway,
            frames.WINDOW_UPDATE: _take_window,
            frames.CONTINUATION: _take_continuation,
        }
    )
