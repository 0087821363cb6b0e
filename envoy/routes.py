"""Routes: everything goes to the server, because the transcoder has already refused what it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from headrace.envoy.descriptors import Binding
from headrace.envoy.options import BootstrapOptions

CLUSTER: Final = "headrace"

#: Request headers that scripts in a browser may send. The wildcard does not cover ``authorization``.
CORS_REQUEST_HEADERS: Final = "authorization,*"
#: How often a process that was tried already may be drawn before it is tried again: never, in practice.
_CHOICES: Final = 32
_ANOTHER: Final = "envoy.retry_host_predicates.previous_hosts"
_ANOTHER_TYPE: Final = (
    "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
)
CORS_RESPONSE_HEADERS: Final = "grpc-message,grpc-status,grpc-status-details-bin,x-request-id,*"


def _forward(options: BootstrapOptions, match: dict[str, Any]) -> dict[str, Any]:
    """A route without any limit of time: a stream may last for hours, deadlines are the server's to keep.

    Of several processes another one gets what could not be handed to the first, which has not seen it then.
    """
    route: dict[str, Any] = {"cluster": CLUSTER, "timeout": "0s", "idle_timeout": "0s"}
    if len(options.sockets) > 1:
        route["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": len(options.sockets) - 1,
            "retry_host_predicate": [{"name": _ANOTHER, "typed_config": {"@type": _ANOTHER_TYPE}}],
            "host_selection_retry_max_attempts": _CHOICES,
        }
    return {"match": match, "route": route}


def _cors(options: BootstrapOptions) -> dict[str, Any]:
    if not options.cors_allow_origins:
        return {}
    everywhere = "*" in options.cors_allow_origins
    any_origin = [{"safe_regex": {"regex": ".*"}}]
    policy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": any_origin
        if everywhere
        else [{"exact": origin} for origin in options.cors_allow_origins],
        "allow_methods": "GET,POST,PUT,PATCH,DELETE,OPTIONS",
        "allow_headers": CORS_REQUEST_HEADERS,
        "expose_headers": CORS_RESPONSE_HEADERS,
        "max_age": "86400",
    }
    return {"typed_per_filter_config": {"envoy.filters.http.cors": policy}}


def _virtual_host(routes: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    host = {"name": "headrace", "domains": ["*"], "routes": routes, **extra}
    return {"name": "headrace", "virtual_hosts": [host]}


def route_config(options: BootstrapOptions) -> dict[str, Any]:
    """Routes of the REST and gRPC listener."""
    return _virtual_host([_forward(options, {"prefix": "/"})], **_cors(options))


def metrics_route_config(options: BootstrapOptions, bindings: Sequence[Binding]) -> dict[str, Any]:
    """Routes of the metrics listener: ``GET /metrics``, which the transcoder makes its RPC, and 404.

    Raises:
        ValueError: no RPC is bound to ``GET /metrics``.
    """
    rpcs = [binding.rpc for binding in bindings if (binding.verb, binding.template) == ("GET", "/metrics")]
    if not rpcs:
        raise ValueError("a metrics port needs an RPC that is bound to GET /metrics")
    missing = {"match": {"prefix": "/"}, "direct_response": {"status": int(HTTPStatus.NOT_FOUND)}}
    return _virtual_host([_forward(options, {"path": rpcs[0]}), missing])
