"""What an RPC costs without anything behind it: ``python -m benchmarks.transports`` (decision 0026).

The same empty handler behind gRPC's library and behind Headrace's own event loop, in turn.
"""

from __future__ import annotations

from statistics import median
from typing import Annotated, Final, get_args

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.empty_server import METHOD, EmptyServer
from benchmarks.load import LoadGenerator
from benchmarks.payloads import Payload
from benchmarks.points import ask
from benchmarks.results import Measurement
from headrace.kserve.v2 import grpc_service_pb2 as pb
from headrace.server.config import GrpcTransport

SIZES: Final = (64, 602_112)
"""Bytes of the request's tensor: sixteen numbers, an image."""
CLIENTS: Final = (1, 8, 32)


def main(
    seconds: Annotated[float, typer.Option(help="Seconds of each point.")] = 3.0,
    rounds: Annotated[int, typer.Option(help="Times that each point is measured.")] = 3,
) -> None:
    """Measure an empty handler behind each transport."""
    answer = pb.ModelInferResponse(model_name="addsub", raw_output_contents=[bytes(64)]).SerializeToString()
    transports: tuple[GrpcTransport, ...] = get_args(GrpcTransport)
    points = [(transport, size, clients) for size in SIZES for clients in CLIENTS for transport in transports]
    found: dict[tuple[str, int, int], list[Measurement]] = {point: [] for point in points}
    console = Console()
    with LoadGenerator() as load:
        for point in track(points * rounds, "measuring", console=console, transient=True):
            transport, size, clients = point
            with EmptyServer(answer, transport) as server:
                groups = {"server": [psutil.Process(server.pid)]}
                found[point].append(ask(load, server.address, _payload(size), clients, seconds, 0.5, groups))
    table = Table("transport", "tensor bytes", "clients", "requests/s", "server CPU µs", "failed")
    for (name, size, clients), measured in found.items():
        rate, cpu = median(each.rate for each in measured), median(each.cpu["server"] for each in measured)
        failed = sum(each.failed for each in measured)
        table.add_row(name, f"{size:,}", str(clients), f"{rate:,.0f}", f"{cpu * 1000:.0f}", str(failed))
    console.print(table)


def _payload(size: int) -> Payload:
    request = pb.ModelInferRequest(model_name="addsub", raw_input_contents=[bytes(size), bytes(64)])
    return Payload("grpc", METHOD, (), (request.SerializeToString(),), (1.0,), lambda _: np.zeros((1, 1)))


if __name__ == "__main__":
    typer.run(main)
