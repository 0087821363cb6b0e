"""The conformance tables of both KServe wires against the services in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from conformance.kserve_tables import (
    GRPC_CASES,
    REST_CASES,
    Case,
    check_answer,
    check_error,
    check_message,
    request_body,
    request_message,
)

if TYPE_CHECKING:
    from unit.kserve.conftest import Models, Wire


@pytest.mark.parametrize("case", GRPC_CASES, ids=lambda case: case["name"])
async def test_grpc(case: Case, models: Models, wire: Wire) -> None:
    models.everything()
    if "text" not in case:
        check_message(case, await wire.grpc.ModelInfer(request_message(case)))
        return
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.grpc.ModelInfer(request_message(case))
    check_error(case, caught.value)


@pytest.mark.parametrize("case", REST_CASES, ids=lambda case: case["name"])
async def test_rest(case: Case, models: Models, wire: Wire) -> None:
    models.everything()
    answer = await wire.rest(
        "ModelInfer",
        case.get("headers"),
        model=case["model"],
        version=case.get("version", ""),
        body=request_body(case),
    )
    check_answer(case, answer.status, answer.headers, answer.body)
