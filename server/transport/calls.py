"""Runs the handlers of RPCs: a task for each, from its request to its status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import grpc
import structlog

from headrace.server.transport import headers
from headrace.server.transport.context import AbortError, Context
from headrace.server.transport.messages import ENCODINGS, BadMessageError, Compressed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.server.transport.connection import Connection
    from headrace.server.transport.messages import Message
    from headrace.server.transport.stream import Stream

    Handler = grpc.RpcMethodHandler[Any, Any]

log = structlog.get_logger(__name__)

_KNOWN_METHODS: Final = 1024


class _Details(grpc.HandlerCallDetails):
    """What a generic handler is asked with."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata: headers.Metadata = ()


class Calls:
    """Answers the streams of all connections."""

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._methods: dict[str, Handler] = {}
        self.stopping = False
        self._left = asyncio.Event()
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    def add(self, handlers: Iterable[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Answer with ``handlers`` too; of several that know a method the first wins."""
        self._handlers += handlers

    def opened(self, connection: Connection) -> None:
        """Note a connection; one that was accepted just before the end is turned away."""
        self.connections.add(connection)
        self._left.clear()
        if self.stopping:
            connection.end()

    def closed(self, connection: Connection) -> None:
        """Note that a connection has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._left.set()

    def begin(self, stream: Stream) -> None:
        """Take a request whose headers are there."""
        head = stream.head
        if head.refusal:
            stream.send(None, None, headers.refusal(head.refusal))
            return
        handler = self._methods.get(head.path) or self._find(head.path)
        if handler is None:
            _end(stream, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        elif head.encoding not in ENCODINGS:
            known = ", ".join(sorted(ENCODINGS))
            text = f"grpc-encoding is '{head.encoding}', expected one of {known}"
            _end(stream, grpc.StatusCode.UNIMPLEMENTED, text)
        elif head.timeout == 0:
            _expire(stream)
        else:
            if head.timeout is not None:
                stream.timer = asyncio.get_running_loop().call_later(head.timeout, _expire, stream)
            if handler.request_streaming:
                self._start(stream, handler, None)
            else:
                stream.handler = handler

    def received(self, stream: Stream) -> None:
        """Note that messages are there, or that none will come."""
        handler = stream.handler
        if handler is None:  # it reads them itself, or it runs
            return
        message = stream.first()
        if message is None:
            _end(stream, grpc.StatusCode.INTERNAL, "the request has no message")
            return
        stream.handler = None
        stream.deaf = True
        self._start(stream, handler, message)

    def refuse(self, stream: Stream, error: BadMessageError) -> None:
        """End an RPC whose messages cannot be read."""
        _break_off(stream, _code(error), str(error))

    def cut(self, stream: Stream) -> None:
        """End an RPC, as the server does."""
        _break_off(stream, grpc.StatusCode.UNAVAILABLE, "the server stops")

    async def finished(self, now: asyncio.Event) -> None:
        """Wait until no RPC runs and all answers are written, or until ``now``."""
        hurry = asyncio.ensure_future(now.wait())
        try:
            while any(connection.busy for connection in self.connections) and not now.is_set():
                await asyncio.wait({hurry, *self.tasks}, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
        finally:
            hurry.cancel()

    async def left(self) -> None:
        """Wait until no connection is open."""
        if self.connections:
            await self._left.wait()

    def _find(self, path: str) -> Handler | None:
        details = _Details(path)
        for candidate in self._handlers:
            handler = candidate.service(details)
            if handler is not None:
                if len(self._methods) < _KNOWN_METHODS:
                    self._methods[path] = handler
                return handler
        return None

    def _start(self, stream: Stream, handler: Handler, message: Message | None) -> None:
        task = asyncio.get_running_loop().create_task(_answer(stream, handler, message))
        stream.task = task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def _answer(stream: Stream, handler: Handler, message: Message | None) -> None:
    """Run a handler, and end its RPC however that ends."""
    context = Context(stream, handler.response_serializer)
    decode = handler.request_deserializer or bytes
    behaviour: Any = _behaviour(handler)
    try:
        if handler.request_streaming:
            async with contextlib.aclosing(_requests(stream, decode, context)) as requests:
                await _run(handler, behaviour(requests, context), context)
        else:
            request = await _read(message, decode, context)
            message = None
            await _run(handler, behaviour(request, context), context)
    except AbortError:
        pass
    except asyncio.CancelledError:
        context.end(grpc.StatusCode.CANCELLED.value[0], "the handler was cancelled")
    except Exception as error:
        log.exception("a handler failed", method=stream.head.path)
        context.fail(f"Unexpected {type(error)}: {error}")


async def _run(handler: Handler, answers: Any, context: Context) -> None:
    """Send what a handler answers: a message, messages, or nothing if it writes by itself."""
    if not handler.response_streaming:
        context.finish(await answers)
        return
    if isinstance(answers, AsyncIterator):
        async with contextlib.aclosing(answers):  # type: ignore[type-var] # generators, that is
            async for answer in answers:
                await context.write(answer)
    else:
        await answers
    context.close()


def _behaviour(handler: Handler) -> Any:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


async def _requests(stream: Stream, decode: Any, context: Context) -> AsyncGenerator[Any, None]:
    while (message := await stream.receive()) is not None:
        yield await _read(message, decode, context)


async def _inflated(message: Compressed, context: Context) -> bytes:
    """Decompress a message in a thread, so that nobody else waits for it."""
    try:
        return await asyncio.to_thread(message.inflate)
    except BadMessageError as error:
        context.end(_code(error).value[0], str(error))
        raise AbortError from None


def _code(error: BadMessageError) -> grpc.StatusCode:
    return grpc.StatusCode.RESOURCE_EXHAUSTED if error.large else grpc.StatusCode.INTERNAL


async def _read(message: Message | None, decode: Any, context: Context) -> Any:
    """Return a request."""
    if isinstance(message, Compressed):
        message = await _inflated(message, context)
    try:
        return decode(message)
    except Exception as error:  # noqa: BLE001 - the caller's doing, whatever it is: not worth a traceback
        log.debug("a request cannot be parsed", error=str(error))
        context.fail(f"Unexpected {type(error)}: {error}")
        raise AbortError from None


def _expire(stream: Stream) -> None:
    """End an RPC whose caller waits no longer."""
    _break_off(stream, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


def _break_off(stream: Stream, code: grpc.StatusCode, details: str) -> None:
    """End an RPC, whatever its handler does, and whether its caller reads or not."""
    _end(stream, code, details)
    stream.cancel()
    stream.cut_off()


def _end(stream: Stream, code: grpc.StatusCode, details: str) -> None:
    begin = b"" if stream.started else headers.ANSWER
    stream.send(None, None, begin + headers.status(code.value[0], details))
