"""The upstream: the gRPC server behind its Unix socket."""

from __future__ import annotations

from typing import Any, Final

from headrace.envoy.options import BootstrapOptions
from headrace.envoy.routes import CLUSTER

#: Name that the server answers for in ``grpc.health.v1.Health/Check`` while its process takes requests.
HEALTH_SERVICE: Final = "headrace.live"

_UNLIMITED: Final = 2147483647
_PRIORITIES: Final = ("DEFAULT", "HIGH")


def _health_check() -> dict[str, Any]:
    """Asks the server once a second.

    One late answer changes nothing, and a server that is out of rotation keeps the requests that it has: only
    new ones get 503. There is no HTTP/2 ping, because gRPC servers end connections that ping too often.
    """
    return {
        "timeout": "5s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_interval": "0.25s",
        "unhealthy_edge_interval": "0.25s",
        "no_traffic_healthy_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "grpc_health_check": {"service_name": HEALTH_SERVICE},
    }


def _addresses(options: BootstrapOptions) -> list[dict[str, Any]]:
    if options.sockets:
        return [{"pipe": {"path": path}} for path in options.sockets]
    host, _, port = options.upstream_address.rpartition(":")
    return [{"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}]


def cluster(options: BootstrapOptions) -> dict[str, Any]:
    """The cluster: HTTP/2 to the server, windows for large tensors, no limit on what is in flight.

    Admission is the server's task; a limit here would answer 503 where the server answers 429.
    """
    limits = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNLIMITED
    )
    thresholds = [{"priority": priority, **limits} for priority in _PRIORITIES]
    http2 = {
        "max_concurrent_streams": _UNLIMITED,
        "initial_stream_window_size": 16 * 1024 * 1024,
        "initial_connection_window_size": 256 * 1024 * 1024,
    }
    protocol = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": http2},
    }
    endpoints = [{"endpoint": {"address": address}} for address in _addresses(options)]
    return {
        "name": CLUSTER,
        "type": "STATIC" if options.sockets else "STRICT_DNS",
        "connect_timeout": "2s",
        # Requests differ by a thousand times in length: who has the fewest gets the next.
        **({"lb_policy": "LEAST_REQUEST"} if len(endpoints) > 1 else {}),
        "load_assignment": {"cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol
        },
        "circuit_breakers": {"thresholds": thresholds},
        "health_checks": [_health_check()],
        # By default Envoy sends requests to an unhealthy host when there is no other.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
