"""Renders Envoy's bootstrap from the protos: a pure function of the options and the loaded descriptors.

``headrace serve`` runs Envoy on what :func:`render` returns; ``python -m headrace.envoy.bootstrap`` prints
the document for an Envoy that somebody else runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor

from headrace.envoy.cluster import cluster
from headrace.envoy.descriptors import (
    Binding,
    bindings,
    descriptor_set,
    discover,
    path_variables,
    rest_services,
)
from headrace.envoy.filters import http_filters
from headrace.envoy.golden import GOLDEN, GUIDE, golden_yaml, with_table
from headrace.envoy.listener import listener
from headrace.envoy.local_replies import local_reply_config
from headrace.envoy.options import BootstrapOptions, TlsOptions
from headrace.envoy.routes import metrics_route_config, route_config

__all__ = ["BootstrapOptions", "TlsOptions", "discover", "render", "to_json"]

#: Connections that may be open at once; more are refused, before file descriptors run out.
MAX_CONNECTIONS: Final = 50_000


def _listeners(
    options: BootstrapOptions, found: Sequence[Binding], filters: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    replies = local_reply_config(options, found)
    common: dict[str, Any] = {"filters": filters, "replies": replies}
    rest = listener(
        options, "rest", options.listen_port, routes=route_config(options), tls=options.tls, **common
    )
    if options.metrics_port is None:
        return [rest]
    routes = metrics_route_config(options, found)
    return [rest, listener(options, "metrics", options.metrics_port, routes=routes, **common)]


def _document(options: BootstrapOptions, listeners: list[dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "static_resources": {"listeners": listeners, "clusters": [cluster(options)]},
        # One expression holds all paths that take the same verbs; RE2 matches it in one pass.
        "layered_runtime": {
            "layers": [{"name": "static", "static_layer": {"re2.max_program_size.error_level": 1_000_000}}]
        },
        # Nobody reads Envoy's own statistics, and keeping them costs on every request.
        "stats_config": {"stats_matcher": {"reject_all": True}},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors"
                        ".downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }
    if options.tls is not None:
        document["node"] = {"id": "headrace", "cluster": "headrace"}  # asked for by whatever reads secrets
    if options.admin_socket is not None:
        document["admin"] = {"address": {"pipe": {"path": options.admin_socket, "mode": 0o600}}}
    return document


def render(options: BootstrapOptions, services: Sequence[ServiceDescriptor]) -> dict[str, Any]:
    """The bootstrap as plain dicts and lists.

    Args:
        options: what a deployment chooses.
        services: the server's gRPC services, in any order; those without HTTP rules are reachable as gRPC.

    Raises:
        ValueError: two RPCs claim the same verb and path, no service has a REST binding, or a metrics port is
            asked for and no RPC is bound to ``GET /metrics``.
    """
    rest = rest_services(services)
    if not rest:
        raise ValueError("none of the services has a google.api.http rule")
    names = [service.full_name for service in rest]
    filters = http_filters(options, descriptor_set(rest), names, path_variables(rest))
    return _document(options, _listeners(options, bindings(rest), filters))


def to_json(document: dict[str, Any]) -> str:
    """The bootstrap as Envoy reads it from a ``.json`` file."""
    return json.dumps(document, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print a bootstrap, or write the files that follow from the protos."""
    parser = argparse.ArgumentParser(prog="python -m headrace.envoy.bootstrap", description=__doc__)
    parser.add_argument(
        "--golden", action="store_true", help="write the tests' golden file and the guide's table"
    )
    parser.add_argument(
        "--upstream", default="127.0.0.1:8001", help="the gRPC server: host:port, or a socket's path"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind")
    parser.add_argument("--port", type=int, default=8000, help="port of REST and gRPC")
    parsed = parser.parse_args(arguments)
    if parsed.golden:
        plain = render(BootstrapOptions(upstream_socket="/run/headrace/grpc.sock"), discover())
        GOLDEN.write_text(golden_yaml(plain, discover()), encoding="utf-8")
        GUIDE.write_text(with_table(GUIDE.read_text(encoding="utf-8"), discover()), encoding="utf-8")
        return 0
    place = "upstream_socket" if "/" in parsed.upstream else "upstream_address"
    chosen: dict[str, Any] = {place: parsed.upstream, "listen_host": parsed.host, "listen_port": parsed.port}
    options = BootstrapOptions(**chosen)
    sys.stdout.write(to_json(render(options, discover())) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
