"""The KServe gRPC wire on a running server: the table of Triton's answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc
import pytest
from conformance.kserve_tables import (
    GRPC_CASES,
    Case,
    check_error,
    check_message,
    for_a_server,
    request_message,
)

from headrace.kserve.v2.grpc_service_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from running import ServerProcess


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize("case", for_a_server(GRPC_CASES), ids=lambda case: case["name"])
def test_table(case: Case, stub: GRPCInferenceServiceStub) -> None:
    if "text" not in case:
        check_message(case, stub.ModelInfer(request_message(case)))
        return
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request_message(case))
    check_error(case, caught.value)
