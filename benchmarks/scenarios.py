"""What is measured: plain data, one entry per hot path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.encoding.peers.registry import PEERS

Reference = Literal["raw", "empty"]
"""What a scenario is related to: the model in a bare loop, or an RPC handler that does nothing."""

CLIENTS: Final = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Route:
    """One way to ask.

    Attributes:
        name: what ``--route`` takes.
        payload: key of ``payloads.BUILDERS``.
        concurrency: how many clients.
        peer: who is asked, a key of ``PEERS``; "" for Headrace.
    """

    name: str
    payload: str
    concurrency: tuple[int, ...] = CLIENTS
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One model under one kind of load.

    Attributes:
        name: what ``--only`` takes.
        title: one line for people.
        model: name in the model repository.
        workload: key of ``workloads.WORKLOADS``.
        items: texts, images or rows in one request.
        unit: what an item is called.
        reference: what throughput is related to.
        batches: batch sizes tried for the raw limit.
        routes: the ways to ask.
        peers: other servers that get the same, keys of ``encoding.peers.registry.PEERS``.
        peer_clients: how many clients ask them.
    """

    name: str
    title: str
    model: str
    workload: str
    items: int
    unit: str
    reference: Reference
    batches: tuple[int, ...]
    routes: tuple[Route, ...]
    peers: tuple[str, ...] = ()
    peer_clients: tuple[int, ...] = CLIENTS


@dataclass(frozen=True, slots=True)
class Point:
    """One measured cell of a scenario."""

    scenario: Scenario
    route: Route
    clients: int


_EMBED: Final = (
    Route("grpc", "embed-grpc"),
    Route("rest", "embed-openai"),
    Route("rest-tei", "embed-tei", (32,)),
)


def _encoding(
    name: str,
    title: str,
    routes: tuple[Route, ...],
    *,
    workload: str = "texts",
    items: int = 1,
    peer_clients: tuple[int, ...] = CLIENTS,
) -> Scenario:
    """Return a scenario of MiniLM beside its peers."""
    return Scenario(
        name=name,
        title=title,
        model="minilm",
        workload=workload,
        items=items,
        unit="texts",
        reference="raw",
        batches=(1, 2, 4, 8, 16, 32),
        routes=routes,
        peers=tuple(PEERS),
        peer_clients=peer_clients,
    )


SCENARIOS: Final = (
    Scenario(
        name="tiny",
        title="addsub, 16 INT32 values a request: what the server itself costs",
        model="addsub",
        workload="addsub",
        items=1,
        unit="requests",
        reference="empty",
        batches=(),
        routes=(Route("grpc", "addsub-grpc"), Route("rest", "addsub-rest")),
    ),
    _encoding(
        "encoding-1",
        "MiniLM, seeded mix of 5-250 tokens, one text a request",
        (
            Route("grpc", "embed-grpc"),
            Route("grpc-infer", "infer-text"),
            Route("rest", "embed-openai"),
            Route("rest-float", "embed-openai-float", (32,)),
            Route("rest-tei", "embed-tei"),
        ),
    ),
    _encoding(
        "encoding-32",
        "MiniLM, seeded mix of 5-250 tokens, 32 texts a request",
        _EMBED,
        items=32,
        peer_clients=(1, 8),
    ),
    _encoding(
        "encoding-short", "MiniLM, queries of 5-15 tokens, one text a request", _EMBED, workload="queries"
    ),
    Scenario(
        name="image",
        title="EfficientNet-Lite0, FP32 [1,3,224,224] a request",
        model="efficientnet-lite0",
        workload="images",
        items=1,
        unit="images",
        reference="raw",
        batches=(1, 2, 4, 8, 16),
        routes=(Route("grpc", "image-grpc", (1, 8, 16, 32)), Route("rest", "image-rest", (1, 8, 16, 32))),
    ),
)


def peers_at(scenario: str, clients: int) -> frozenset[str]:
    """Return the peers that a scenario compares with at a number of clients."""
    every = (point for each in SCENARIOS if each.name == scenario for point in points(each))
    return frozenset(point.route.peer for point in every if point.route.peer and point.clients == clients)


def points(scenario: Scenario) -> list[Point]:
    """Return the cells of a scenario in the order in which a round measures them."""
    peers = [
        Route(
            name,
            PEERS[name].payload,
            tuple(count for count in scenario.peer_clients if count <= PEERS[name].most),
            name,
        )
        for name in scenario.peers
    ]
    return [
        Point(scenario, route, clients)
        for route in (*scenario.routes, *peers)
        for clients in route.concurrency
    ]
