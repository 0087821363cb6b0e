"""Envoy in front of several processes: one cluster, all their sockets, and another try elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.envoy.bootstrap import discover, render, to_json
from headrace.envoy.options import BootstrapOptions
from headrace.server.proxy import validate

SOCKETS = ("/run/headrace/front-0.sock", "/run/headrace/front-1.sock")


async def test_envoy_accepts_several_sockets(tmp_path: Path) -> None:
    document = render(BootstrapOptions(upstream_sockets=SOCKETS, metrics_port=0), discover())
    (cluster,) = document["static_resources"]["clusters"]
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    found = [item["endpoint"]["address"]["pipe"]["path"] for item in endpoints["lb_endpoints"]]
    assert (tuple(found), cluster["type"]) == (SOCKETS, "STATIC")
    assert '"retry_on": "connect-failure,refused-stream,reset-before-request"' in to_json(document)
    config = tmp_path / "envoy.json"
    config.write_text(to_json(document), encoding="utf-8")
    await validate(config)


def test_one_socket_of_several_is_one_socket() -> None:
    one = render(BootstrapOptions(upstream_sockets=SOCKETS[:1]), discover())
    assert one == render(BootstrapOptions(upstream_socket=SOCKETS[0]), discover())


def test_there_is_one_kind_of_place() -> None:
    with pytest.raises(ValueError, match="either upstream_socket or upstream_address"):
        BootstrapOptions(upstream_socket=SOCKETS[0], upstream_sockets=SOCKETS)
    with pytest.raises(ValueError, match="a Unix socket path may have"):
        BootstrapOptions(upstream_sockets=(*SOCKETS, "/" + "x" * 120))
