"""The bodies of errors that Envoy answers itself, in the JSON of the API family that the path belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from headrace.envoy.descriptors import Binding
from headrace.envoy.options import MAX_HEADERS, MAX_HEADERS_KB, BootstrapOptions
from headrace.envoy.verbs import KnownPaths, known_paths

#: What Envoy says of the error at hand: a text (which may be empty), its status, and why in one word.
TEXT: Final = "%LOCAL_REPLY_BODY%"
STATUS: Final = "%RESPONSE_CODE%"
DETAILS: Final = "%RESPONSE_CODE_DETAILS%"

#: Header that the transcoder sets on a request that came as REST; it holds the path before transcoding.
ORIGINAL_PATH: Final = "x-envoy-original-path"


class Kind(NamedTuple):
    """One error: its status, ``type`` in OpenAI's bodies, ``error_type`` in others, and text."""

    status: int | None
    openai: str
    other: str
    text: str = TEXT
    cel: str | None = None


#: A verb that a known path does not take; the transcoder calls it 404 like an unknown path.
WRONG_VERB: Final = Kind(
    HTTPStatus.NOT_FOUND, "MethodNotAllowedError", "method_not_allowed", HTTPStatus.METHOD_NOT_ALLOWED.phrase
)


def _kinds(options: BootstrapOptions) -> tuple[Kind, ...]:
    """All errors; the first that fits is taken. 400 has a text where the transcoder found the fault."""
    headers = f"the request's headers exceed {MAX_HEADERS_KB} KiB or {MAX_HEADERS} lines"
    body = f"the body exceeds the limit of {options.max_body_bytes} bytes"
    down = "the inference server cannot be reached: no healthy upstream"
    ended = "the server process that had the request ended before it answered: send the request again"
    transcoding = "response.code_details.contains('grpc_json_transcode_failure')"
    reset = "response.code_details.contains('{connection_termination')"
    return (
        Kind(HTTPStatus.BAD_REQUEST, "BadRequestError", "bad_request", TEXT, transcoding),
        Kind(HTTPStatus.BAD_REQUEST, "BadRequestError", "bad_request", f"bad request: {DETAILS}"),
        Kind(HTTPStatus.FORBIDDEN, "PermissionDeniedError", "forbidden", f"refused: {DETAILS}"),
        Kind(HTTPStatus.NOT_FOUND, "NotFoundError", "not_found", HTTPStatus.NOT_FOUND.phrase),
        Kind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "PayloadTooLargeError", "payload_too_large", body),
        Kind(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "BadRequestError", "headers_too_large", headers),
        Kind(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", "unavailable", ended, reset),
        Kind(HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", "unavailable", down),
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


def _cel(expression: str | None) -> dict[str, Any] | None:
    if expression is None:
        return None
    config = {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": expression,
    }
    name = "envoy.access_loggers.extension_filters.cel"
    return {"extension_filter": {"name": name, "typed_config": config}}


def _status(status: int | None) -> dict[str, Any] | None:
    if status is None:
        return None
    value = {"default_value": int(status), "runtime_key": "headrace.local_reply_status"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _lindorm(kind: Kind) -> dict[str, Any]:
    request_id = "%REQ(X-REQUEST-ID)%"
    return {"code": STATUS, "msg": kind.text, "data": None, "success": False, "request_id": request_id}


def _openai(kind: Kind) -> dict[str, Any]:
    return {"error": {"message": kind.text, "type": kind.openai, "param": None, "code": STATUS}}


def _other(kind: Kind) -> dict[str, Any]:
    return {"error": kind.text, "error_type": kind.other}


#: Path prefix and body of each API family, most specific first.
FAMILIES: Final = (("/v1/ai/", _lindorm), ("/v1/", _openai), ("/", _other))


def _wrong_verb(paths: KnownPaths) -> tuple[dict[str, Any], dict[str, Any]]:
    """(filter, overrides) that make a 404 of a known path 405 and name the verbs that it takes."""
    known = _header(":path", string_match={"safe_regex": {"regex": paths.regex}})
    allow = {"header": {"key": "allow", "value": ", ".join(paths.verbs)}}
    return known, {"status_code": int(HTTPStatus.METHOD_NOT_ALLOWED), "headers_to_add": [allow]}


def _of_family(prefix: str, bindings: Sequence[Binding]) -> list[Binding]:
    """The bindings whose paths are this family's: those that it is the first to fit."""
    families = [family for family, _ in FAMILIES]
    return [
        binding
        for binding in bindings
        if next(family for family in families if binding.template.startswith(family)) == prefix
    ]


def local_reply_config(options: BootstrapOptions, bindings: Sequence[Binding]) -> dict[str, Any]:
    """``local_reply_config`` of the connection manager.

    Native gRPC and gRPC-Web keep Envoy's plain text, because there it becomes ``grpc-message``.
    """
    native = _all_of(
        _header("content-type", string_match={"prefix": "application/grpc"}),
        _header(ORIGINAL_PATH, present_match=False),
    )
    mappers = [{"filter": native, "body_format_override": {"text_format_source": {"inline_string": TEXT}}}]
    for prefix, body_of in FAMILIES:
        under = None if prefix == "/" else _under(prefix)
        for paths in known_paths(_of_family(prefix, bindings)):
            path, overrides = _wrong_verb(paths)
            body = {"json_format": body_of(WRONG_VERB), "content_type": "application/json"}
            found = _all_of(under, _status(HTTPStatus.NOT_FOUND), path)
            mappers.append({"filter": found, **overrides, "body_format_override": body})
        for kind in _kinds(options):
            body = {"json_format": body_of(kind), "content_type": "application/json"}
            found = _all_of(under, _status(kind.status), _cel(kind.cel))
            mapper: dict[str, Any] = {"filter": found, "body_format_override": body}
            if kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
                mapper["headers_to_add"] = [{"header": {"key": "retry-after", "value": "1"}}]
            mappers.append(mapper)
    return {"mappers": mappers}
