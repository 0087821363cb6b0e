"""What surrounds every RPC: request id, deadline, errors → status, metrics. One wrapper per RPC kind.

The wrappers are put around the services' methods when the server is built, not looked up for each call.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

import grpc
import structlog
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status as RpcStatus

from headrace.errors.v1.errors_pb2 import ErrorReason
from headrace.server.access import Access
from headrace.server.errors import (
    HeadraceError,
    InvalidArgumentError,
    status_of,
)
from headrace.server.services.call import Call, HttpReply, HttpStream
from headrace.server.streaming import deadline, pieces
from headrace.server.telemetry.requests import RequestLabels, RequestMetrics

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger(__name__)

Request = TypeVar("Request")

REQUEST_ID: Final = "x-request-id"
STATUS_HEADER: Final = "x-http-status"


StatusOf = Callable[[HeadraceError], tuple[grpc.StatusCode, str]]
"""How a family shows an error over gRPC: code and message."""


def grpc_status(error: HeadraceError) -> tuple[grpc.StatusCode, str]:
    """Return code and message of an error where its family does not say otherwise."""
    return status_of(error).code, error.message


class Undecodable:
    """Stands for a request that is not a valid message, so that its error has the family's shape."""


def decode_message(parse: Callable[[bytes], Request], data: bytes) -> Request | Undecodable:
    """Parse a request; a malformed one (say, a path variable that is not UTF-8) is the caller's error."""
    try:
        return parse(data)
    except (DecodeError, UnicodeDecodeError):
        return Undecodable()


class Facade(Protocol):
    """A REST facade service: it knows its family's error body."""

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Return the family's answer for ``error``."""


class Interceptors:
    """Builds the wrappers around service methods.

    Args:
        metrics: where finished requests are counted.
        access: who may call.
    """

    def __init__(self, metrics: RequestMetrics, access: Access | None = None) -> None:
        self._metrics = metrics
        self._access = access
        prefix = secrets.token_hex(8)
        self._ids = (f"{prefix}-{number:08x}" for number in itertools.count(1))

    def unary(
        self,
        protocol: str,
        name: str,
        method: Callable[[Any, Call], Awaitable[Any]],
        status: StatusOf = grpc_status,
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        """Wrap a method that answers one message; ``status`` says how an error looks in its family."""

        async def handle(request: Any, context: Context) -> Any:
            call = Call(context, protocol)
            start = self._begin()
            code = "OK"
            try:
                self._admit(request, call, name)
                response = await method(_readable(request), call)
                context.set_trailing_metadata(((REQUEST_ID, self._request_id(call)),))
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except Exception as error:  # noqa: BLE001 - the RPC ends with its status
                failure = self._domain(error, call)
                code = status(failure)[0].name
                try:
                    await self._abort(failure, call, status)
                finally:
                    del failure  # its traceback holds this frame: a cycle that would keep the model alive
            else:
                return response
            finally:
                self._end(call, name, code, start)

        return handle

    def stream(
        self,
        protocol: str,
        name: str,
        method: Callable[[Any, Call], AsyncGenerator[Any, None]],
        status: StatusOf = grpc_status,
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        """Wrap a method that answers a stream (of one message or of a stream)."""

        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            call = Call(context, protocol)
            start = self._begin()
            code = "OK"
            try:
                self._admit(request, call, name)
                # Closed at once when the stream is dropped, not whenever the generator is collected.
                async with contextlib.aclosing(method(_readable(request), call)) as responses:
                    async for response in responses:
                        yield response
                context.set_trailing_metadata(((REQUEST_ID, self._request_id(call)),))
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            except Exception as error:  # noqa: BLE001 - the RPC ends with its status
                failure = self._domain(error, call)
                code = status(failure)[0].name
                try:
                    await self._abort(failure, call, status)
                finally:
                    del failure  # its traceback holds this frame: a cycle that would keep the model alive
            finally:
                self._end(call, name, code, start)

        return handle

    def facade(
        self,
        protocol: str,
        name: str,
        method: Callable[[Any, Call], Awaitable[HttpReply]],
        service: Facade,
    ) -> Callable[[Any, Context], Awaitable[HttpBody]]:
        """Wrap a REST facade's method: its reply, or its family's error body, becomes an HttpBody."""

        async def handle(request: Any, context: Context) -> HttpBody:
            call = Call(context, protocol)
            start = self._begin()
            code = "OK"
            try:
                try:
                    self._admit(request, call, name)
                    async with deadline(call):
                        reply = await method(request, call)
                except Exception as error:  # noqa: BLE001 - whatever it is, it has the family's shape
                    failure = self._domain(error, call)
                    code = status_of(failure).code.name
                    reply = service.error_reply(failure, call)
                    del failure  # as above
                return await _send_reply(context, reply)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                self._end(call, name, code, start)

        return handle

    def facade_stream(
        self,
        protocol: str,
        name: str,
        method: Callable[[Any, Call], Awaitable[HttpReply | HttpStream]],
        service: Facade,
    ) -> Callable[[Any, Context], AsyncIterator[HttpBody]]:
        """Wrap a REST facade's method that answers at once or in pieces.

        What the method raises before it returns is an answer of its own, with its status; what its stream
        raises later is the stream's last piece, for the status is out by then.
        """

        async def handle(request: Any, context: Context) -> AsyncIterator[HttpBody]:
            call = Call(context, protocol)
            start = self._begin()
            code = "OK"
            reply: HttpReply | HttpStream
            try:
                try:
                    limit = deadline(call)
                    async with limit:
                        self._admit(request, call, name)
                        reply = await method(request, call)
                except Exception as error:  # noqa: BLE001 - whatever it is, it has the family's shape
                    failure = self._domain(error, call)
                    code = status_of(failure).code.name
                    reply = service.error_reply(failure, call)
                    del failure  # as above
                if isinstance(reply, HttpReply):
                    yield await _send_reply(context, reply)
                    return
                content_type = reply.content_type
                # Both are closed whatever happens: a stream that was never begun would keep its slot.
                async with (
                    contextlib.aclosing(reply.chunks),
                    contextlib.aclosing(pieces(reply, limit)) as chunks,
                ):
                    await context.send_initial_metadata(reply.headers)
                    try:
                        async for chunk in chunks:
                            yield HttpBody(content_type=content_type, data=chunk)
                    except Exception as error:  # noqa: BLE001 - as above
                        failure = self._domain(error, call)
                        code = status_of(failure).code.name
                        yield HttpBody(content_type=content_type, data=reply.error_event(failure))
                        del failure  # as above
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            finally:
                self._end(call, name, code, start)

        return handle

    def _admit(self, request: object, call: Call, name: str) -> None:
        """Refuse callers without a key, and requests that could not be read."""
        if self._access is not None:
            self._access.check(call.protocol, name, call.headers)
        _check_readable(request)

    def _begin(self) -> float:
        self._metrics.active += 1
        return time.perf_counter()

    def _end(self, call: Call, name: str, code: str, start: float) -> None:
        self._metrics.active -= 1
        model = call.model
        labels = (
            RequestLabels(call.protocol, name, "", "", "")
            if model is None
            else RequestLabels(call.protocol, name, model.name, str(model.version), model.task.value)
        )
        self._metrics.ended(labels, code, time.perf_counter() - start, call.failure)

    def _request_id(self, call: Call) -> str:
        for key, value in call.context.invocation_metadata() or ():
            if key == REQUEST_ID and isinstance(value, str) and value:
                return value
        return next(self._ids)

    def _domain(self, error: Exception, call: Call) -> HeadraceError:
        """Return domain errors as they are; log anything else and hide its text behind the request id."""
        call.failure = HeadraceError
        if isinstance(error, HeadraceError):
            call.failure = type(error)
            return error
        request_id = self._request_id(call)
        log.error("internal error", request_id=request_id, protocol=call.protocol, exc_info=error)
        return HeadraceError(f"internal error (request id {request_id})", request_id=request_id)

    async def _abort(self, error: HeadraceError, call: Call, status: StatusOf) -> NoReturn:
        """End the RPC with the error's status; raises grpc's AbortError, which only grpc catches."""
        code, message = status(error)
        metadata: list[tuple[str, str | bytes]] = [
            (REQUEST_ID, self._request_id(call)),
            ("grpc-status-details-bin", _details(error)),
        ]
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            metadata.append(("retry-after", "1"))
        await call.context.abort(code, message, tuple(metadata))


def _check_readable(request: object) -> None:
    if isinstance(request, Undecodable):
        msg = "the request is not a valid message: a field is malformed or not UTF-8"
        raise InvalidArgumentError(msg)


def _readable(request: Any) -> Any:
    """Return a request as it is, or a caller's stream of them, where one that could not be read raises."""
    return _each_readable(request) if isinstance(request, AsyncIterator) else request


async def _each_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        _check_readable(request)
        yield request


def _details(error: HeadraceError) -> bytes:
    """Serialize the rich status: a google.rpc.ErrorInfo with the reason and the facts."""
    status = status_of(error)
    reason = ErrorReason.Name(status.reason).removeprefix("ERROR_REASON_")
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=reason, domain="headrace", metadata=error.metadata))
    rich = RpcStatus(code=status.code.value[0], message=error.message, details=[detail])
    serialized: bytes = rich.SerializeToString()
    return serialized


async def _send_reply(context: Context, reply: HttpReply) -> HttpBody:
    """Send the headers and the status of ``reply``, and return its body."""
    headers = reply.headers
    if reply.status != 200:
        headers = (*headers, (STATUS_HEADER, str(reply.status)))
    if headers:
        await context.send_initial_metadata(headers)
    return HttpBody(content_type=reply.content_type, data=reply.body)
