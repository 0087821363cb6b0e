"""The bodies of errors that Envoy answers itself, in the JSON of the API family that the path belongs to."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, NamedTuple

from headrace.envoy.options import BootstrapOptions

#: Envoy's own text for the error at hand, and its status.
TEXT: Final = "%LOCAL_REPLY_BODY%"
STATUS: Final = "%RESPONSE_CODE%"

#: Header that the transcoder sets on a request that came as REST; it holds the path before transcoding.
ORIGINAL_PATH: Final = "x-envoy-original-path"


class Kind(NamedTuple):
    """How one status is called: ``type`` of OpenAI-style bodies and ``error_type`` of the others."""

    status: int | None
    openai: str
    other: str


KINDS: Final = (
    Kind(HTTPStatus.BAD_REQUEST, "BadRequestError", "bad_request"),
    Kind(HTTPStatus.NOT_FOUND, "NotFoundError", "not_found"),
    Kind(HTTPStatus.METHOD_NOT_ALLOWED, "MethodNotAllowedError", "method_not_allowed"),
    Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "PayloadTooLargeError", "payload_too_large"),
    Kind(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", "unavailable"),
    Kind(None, "GatewayError", "gateway"),
)


def _header(name: str, **matcher: Any) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": name, **matcher}}}


def _under(prefix: str) -> dict[str, Any]:
    """Requests below a path prefix; after transcoding ``:path`` names the RPC and the header has the path."""
    return {"or_filter": {"filters": [
        _header(":path", string_match={"prefix": prefix}),
        _header(ORIGINAL_PATH, string_match={"prefix": prefix}),
    ]}}  # fmt: skip


def _all_of(*filters: dict[str, Any] | None) -> dict[str, Any]:
    present = [item for item in filters if item]
    if not present:
        return {"not_health_check_filter": {}}
    return present[0] if len(present) == 1 else {"and_filter": {"filters": present}}


def _status(status: int | None) -> dict[str, Any] | None:
    if status is None:
        return None
    value = {"default_value": int(status), "runtime_key": "headrace.local_reply_status"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _lindorm(_kind: Kind) -> dict[str, Any]:
    request_id = "%REQ(X-REQUEST-ID)%"
    return {"code": STATUS, "msg": TEXT, "data": None, "success": False, "request_id": request_id}


def _openai(kind: Kind) -> dict[str, Any]:
    return {"error": {"message": TEXT, "type": kind.openai, "param": None, "code": STATUS}}


def _other(kind: Kind) -> dict[str, Any]:
    return {"error": TEXT, "error_type": kind.other}


#: Path prefix and body of each API family, most specific first.
FAMILIES: Final = (("/v1/ai/", _lindorm), ("/v1/", _openai), ("/", _other))


def _texts(options: BootstrapOptions) -> dict[int | None, str]:
    """Texts of our own where Envoy's names no cause that a caller could act on."""
    return {
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"the body exceeds the limit of {options.max_body_bytes} bytes",
        HTTPStatus.SERVICE_UNAVAILABLE: "the inference server cannot be reached: no healthy upstream",
    }


def local_reply_config(options: BootstrapOptions) -> dict[str, Any]:
    """``local_reply_config`` of the connection manager.

    Native gRPC and gRPC-Web keep Envoy's plain text, because there it becomes ``grpc-message``.
    """
    native = _all_of(
        _header("content-type", string_match={"prefix": "application/grpc"}),
        _header(ORIGINAL_PATH, present_match=False),
    )
    mappers = [{"filter": native, "body_format_override": {"text_format_source": {"inline_string": TEXT}}}]
    texts = _texts(options)
    for prefix, body_of in FAMILIES:
        under = None if prefix == "/" else _under(prefix)
        for kind in KINDS:
            mapper: dict[str, Any] = {"filter": _all_of(under, _status(kind.status))}
            if kind.status in texts:
                mapper["body"] = {"inline_string": texts[kind.status]}
            if kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
                mapper["headers_to_add"] = [{"header": {"key": "retry-after", "value": "1"}}]
            mapper["body_format_override"] = {
                "json_format": body_of(kind),
                "content_type": "application/json",
            }
            mappers.append(mapper)
    return {"mappers": mappers}
