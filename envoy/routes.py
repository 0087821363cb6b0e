"""Routes: gRPC to the server, known paths with a wrong verb to 405, everything else to 404.

The transcoder turns a REST request that it knows into a gRPC request and has its route looked up again, so
only requests that it did not know end at the routes below the first one. Those cost an ordinary request the
match of two or three regular expressions, before its filters run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from headrace.envoy.descriptors import Binding
from headrace.envoy.options import BootstrapOptions

CLUSTER: Final = "headrace"

#: Request headers that scripts in a browser may send. The wildcard does not cover ``authorization``.
CORS_REQUEST_HEADERS: Final = "authorization,*"
CORS_RESPONSE_HEADERS: Final = "grpc-message,grpc-status,grpc-status-details-bin,x-request-id,*"


def _grpc_route(match: dict[str, Any]) -> dict[str, Any]:
    """A route without any limit of time: a stream may last for hours, deadlines are the server's to keep."""
    return {"match": match, "route": {"cluster": CLUSTER, "timeout": "0s", "idle_timeout": "0s"}}


def _direct(match: dict[str, Any], status: HTTPStatus) -> dict[str, Any]:
    return {
        "match": match,
        "direct_response": {"status": int(status), "body": {"inline_string": status.phrase}},
    }


def _wrong_verb(verbs: frozenset[str], found: Sequence[Binding]) -> dict[str, Any]:
    """405 for the paths of the bindings, all of which take exactly these verbs."""
    allowed = "|".join(sorted(verbs))
    paths = "|".join(dict.fromkeys(binding.regex for binding in found))
    regex = f"(?:{paths})/?"  # the transcoder takes a trailing slash too
    match = {
        "safe_regex": {"regex": regex},
        "headers": [
            {"name": ":method", "string_match": {"safe_regex": {"regex": allowed}}, "invert_match": True}
        ],
    }
    route = _direct(match, HTTPStatus.METHOD_NOT_ALLOWED)
    allow = {"header": {"key": "allow", "value": ", ".join(sorted(verbs))}}
    return {**route, "response_headers_to_add": [allow]}


def _wrong_verbs(bindings: Sequence[Binding]) -> list[dict[str, Any]]:
    by_path: dict[str, list[Binding]] = defaultdict(list)
    for binding in bindings:
        by_path[binding.regex].append(binding)
    by_verbs: dict[frozenset[str], list[Binding]] = defaultdict(list)
    for same_path in by_path.values():
        by_verbs[frozenset(binding.verb for binding in same_path)].extend(same_path)
    # More verbs go first: a path that several templates match is refused with the longest list.
    order = sorted(by_verbs.items(), key=lambda item: (-len(item[0]), sorted(item[0])))
    return [_wrong_verb(verbs, found) for verbs, found in order]


def _cors(options: BootstrapOptions) -> dict[str, Any]:
    if not options.cors_allow_origins:
        return {}
    origins = [
        {"prefix": ""} if origin == "*" else {"exact": origin} for origin in options.cors_allow_origins
    ]
    policy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
        "allow_origin_string_match": origins,
        "allow_methods": "GET,POST,PUT,PATCH,DELETE,OPTIONS",
        "allow_headers": CORS_REQUEST_HEADERS,
        "expose_headers": CORS_RESPONSE_HEADERS,
        "max_age": "86400",
    }
    return {"typed_per_filter_config": {"envoy.filters.http.cors": policy}}


def _virtual_host(routes: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
    host = {"name": "headrace", "domains": ["*"], "routes": routes, **extra}
    return {"name": "headrace", "virtual_hosts": [host]}


def route_config(options: BootstrapOptions, bindings: Sequence[Binding]) -> dict[str, Any]:
    """Routes of the REST and gRPC listener."""
    grpc = {
        "prefix": "/",
        "headers": [{"name": "content-type", "string_match": {"prefix": "application/grpc"}}],
    }
    routes = [_grpc_route(grpc), *_wrong_verbs(bindings), _direct({"prefix": "/"}, HTTPStatus.NOT_FOUND)]
    return _virtual_host(routes, **_cors(options))


def metrics_route_config(bindings: Sequence[Binding]) -> dict[str, Any]:
    """Routes of the metrics listener: ``GET /metrics``, which has become its RPC here, and 404.

    Raises:
        ValueError: no RPC is bound to ``GET /metrics``.
    """
    rpcs = [binding.rpc for binding in bindings if (binding.verb, binding.template) == ("GET", "/metrics")]
    if not rpcs:
        raise ValueError("a metrics port needs an RPC that is bound to GET /metrics")
    return _virtual_host([_grpc_route({"path": rpcs[0]}), _direct({"prefix": "/"}, HTTPStatus.NOT_FOUND)])
