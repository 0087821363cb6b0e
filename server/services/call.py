"""What a service sees of the RPC it answers, and what a REST facade answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    import grpc

    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import Model

MODEL_HEADER = "x-headrace-model"
SURFACE_HEADER = "x-headrace-surface"
ORIGINAL_PATH = "x-envoy-original-path"


class Call:
    """One RPC: its headers, the model that answered it (for the metrics), and whose form its body has.

    ``form`` is the family of the body where a path serves several, "" for the path's own: a service sets it
    once it has seen the body, so that an error has that family's shape. ``inputs`` is what that body calls
    its inputs, for errors that name them; "" for the family's own word.
    """

    __slots__ = ("_headers", "context", "failure", "form", "inputs", "model", "protocol")

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], protocol: str) -> None:
        """Wrap the RPC; ``protocol`` is the service's family name, a metrics label."""
        self.context = context
        self.protocol = protocol
        self.model: Model | None = None
        self.failure: type[HeadraceError] | None = None  # what kind of error it ended with
        self.form = ""
        self.inputs = ""
        self._headers: dict[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Request headers (gRPC metadata) by lower-case name; text only, the last of equal names wins."""
        if self._headers is None:
            self._headers = {
                key: value
                for key, value in self.context.invocation_metadata() or ()
                if isinstance(value, str)
            }
        return self._headers

    @property
    def model_id(self) -> str:
        """The model that the URL prefix ``/models/{id}/proxy`` chose, or ""; percent-encoded on the wire."""
        return unquote(self.headers.get(MODEL_HEADER, ""))

    @property
    def surface(self) -> str:
        """``oicm`` below ``/models/{id}/proxy``, else ""."""
        return self.headers.get(SURFACE_HEADER, "")


SSE: Final = "text/event-stream; charset=utf-8"
SSE_HEADERS: Final = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What a REST facade answers: becomes an ``google.api.HttpBody``, initial metadata and ``:status``."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class HttpStream:
    """A REST facade's answer that is sent in pieces: each becomes one ``google.api.HttpBody``.

    Attributes:
        chunks: an async generator of bytes; it is closed when the caller goes.
        error_event: what is sent in-band, as the last piece, when ``chunks`` raises.
        keep_alive: sent after every 15 s of silence; b"" for none.
    """

    chunks: AsyncGenerator[bytes, None]
    error_event: Callable[[HeadraceError], bytes]
    content_type: str = SSE
    headers: tuple[tuple[str, str], ...] = SSE_HEADERS
    keep_alive: bytes = b": keep-alive\n\n"
