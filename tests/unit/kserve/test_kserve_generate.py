"""Triton's generate extension for models of tensors: names, shapes, statuses, bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headrace.server.repository.model import ModelTensor

if TYPE_CHECKING:
    from unit.kserve.conftest import Arrays, Models, Wire

ONES, SIXTEEN = [1] * 16, list(range(16))
MISFIT = "The schema can not convert input '{}' to tensor with proper shape"

RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
NOTHING_GIVEN = (
    "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'id_fp32'. Got input(s) [], but "
    "missing required input(s) ['INPUT0']. Please provide all required input(s)."
)


def same(inputs: Arrays) -> Arrays:
    return dict(inputs)


def shapes(models: Models, *dims: int, datatype: str = "INT32", max_batch_size: int = 0) -> None:
    """A model with input IN and output IN of these dims."""
    tensor = ModelTensor("IN", datatype, dims)
    models.build("shapes", [tensor], [tensor], same, max_batch_size=max_batch_size)


async def test_a_tensor_model_answers_flat_and_sorted(models: Models, wire: Wire) -> None:
    models.simple()
    answer = await wire.generate("simple", {"INPUT0": SIXTEEN, "INPUT1": ONES})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == (
        b'{"OUTPUT0":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],'
        b'"OUTPUT1":[-1,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14],"model_name":"simple","model_version":"1"}'
    )


async def test_parameters_are_inputs_too_and_the_id_comes_back(models: Models, wire: Wire) -> None:
    models.simple()
    body = {"id": "r1", "INPUT0": SIXTEEN, "parameters": {"INPUT1": ONES, "custom": "x", "priority": 1}}
    document = json.loads((await wire.generate("simple", body)).body)
    assert list(document) == ["OUTPUT0", "OUTPUT1", "id", "model_name", "model_version"]
    assert document["id"] == "r1"


async def test_null_is_absent(models: Models, wire: Wire) -> None:
    models.optional()
    body = {"id": None, "parameters": None, "INPUT0": [1.5], "INPUT1": None, "other": None}
    answer = await wire.generate("opt", body)
    assert json.loads(answer.body) == {"OUTPUT0": 1.5, "model_name": "opt", "model_version": "1"}


@pytest.mark.parametrize(
    ("dims", "batch", "values", "shape"),
    [
        ((1,), 0, 7, (1,)),
        ((1,), 0, [7], (1,)),
        ((-1,), 0, [1, 2, 3], (3,)),
        ((-1,), 0, [], (0,)),
        ((2, -1), 0, [1, 2, 3, 4], (2, 2)),
        ((-1, 2), 0, [1, 2, 3, 4], (2, 2)),
        ((-1, -1), 0, [1, 2, 3], (1, 3)),
        ((-1, 2, -1), 0, [1, 2, 3, 4, 5, 6], (1, 2, 3)),
        ((2, 2), 0, [1, 2, 3, 4], (2, 2)),
        ((1,), 4, 7, (1, 1)),
        ((2,), 4, [1, 2, 3, 4], (2, 2)),
        ((-1,), 4, [1, 2, 3], (1, 3)),
    ],
)
async def test_elements_are_spread_over_the_dims(
    models: Models, wire: Wire, dims: tuple[int, ...], batch: int, values: Any, shape: tuple[int, ...]
) -> None:
    shapes(models, *dims, max_batch_size=batch)
    answer = await wire.generate("shapes", {"IN": values})
    assert answer.status == 200, answer.body
    assert models.instances["shapes"].shapes == [{"IN": shape}]
    listed = values if isinstance(values, list) else [values]
    assert json.loads(answer.body)["IN"] == (listed[0] if len(listed) == 1 else listed)


@pytest.mark.parametrize(
    ("dims", "values"),
    [
        ((1,), [1, 2]),
        ((1,), []),
        ((2, -1), [1, 2, 3]),
        ((2, 2), [1, 2]),
        ((-1,), [[1], [2]]),
        ((1,), {"x": 1}),
        ((-1,), [{"x": 1}]),
    ],
)
async def test_what_does_not_fit_the_dims(
    models: Models, wire: Wire, dims: tuple[int, ...], values: Any
) -> None:
    shapes(models, *dims)
    answer = await wire.generate("shapes", {"IN": values})
    assert (answer.status, json.loads(answer.body)) == (400, {"error": MISFIT.format("IN")})


@pytest.mark.parametrize(
    ("datatype", "values", "given", "answered"),
    [
        ("BYTES", "Grüße", [b"Gr\xc3\xbc\xc3\x9fe"], "Grüße"),
        ("BYTES", ["a", ""], [b"a", b""], ["a", ""]),
        ("BOOL", [True, False], [True, False], [True, False]),
        ("FP32", [0.5, 2], [0.5, 2.0], [0.5, 2.0]),
        ("UINT64", 2**64 - 1, [2**64 - 1], 2**64 - 1),
        ("FP16", 0.25, [0.25], 0.25),
    ],
)
async def test_values(
    models: Models, wire: Wire, datatype: str, values: Any, given: list[Any], answered: Any
) -> None:
    seen: list[list[Any]] = []

    def keep(inputs: Arrays) -> Arrays:
        seen.append(inputs["INPUT0"].tolist())
        return {"OUTPUT0": inputs["INPUT0"]}

    models.identity(datatype, compute=keep)
    answer = await wire.generate(f"id_{datatype.lower()}", {"INPUT0": values})
    assert json.loads(answer.body)["OUTPUT0"] == answered
    assert seen == [given]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "failed to parse the request JSON buffer: The document is empty. at 0"),
        (b"[]", "failed to parse the request JSON buffer: attempt to access JSON non-object as object"),
        (
            {"parameters": 3},
            "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object",
        ),
        ({"id": 5, "INPUT0": 1.0}, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ({"INPUT0": "x"}, "Unable to parse 'data': attempt to access JSON non-number as number"),
        (
            {"INPUT0": 1.0, "x": [1]},
            "parameter 'x' has invalid type. It should be either 'int', 'bool', or 'string'.",
        ),
        (
            {"INPUT0": 1.0, "triton_x": 1},
            RESERVED,
        ),
        (
            {},
            NOTHING_GIVEN,
        ),
        (
            {"INPUT0": 1.0, "parameters": {"INPUT0": 2.0}},
            "[request id: <id_unknown>] input 'INPUT0' already exists in request",
        ),
    ],
)
async def test_wrong_bodies(models: Models, wire: Wire, body: Any, text: str) -> None:
    models.identity("FP32")
    for answer in (await wire.generate("id_fp32", body), await wire.generate_stream("id_fp32", body)):
        assert (answer.status, json.loads(answer.body)) == (400, {"error": text})
        assert answer.headers["content-type"] == "application/json"


async def test_a_text_that_is_not_json(models: Models, wire: Wire) -> None:
    models.identity("FP32")
    answer = await wire.generate("id_fp32", b"{")
    assert answer.status == 400
    assert json.loads(answer.body)["error"].startswith("failed to parse the request JSON buffer: ")


async def test_an_input_that_is_called_parameters(models: Models, wire: Wire) -> None:
    tensor = ModelTensor("parameters", "FP32", (1,))
    models.build("odd", [tensor], [tensor], same)
    answer = await wire.generate("odd", {"parameters": {"x": 1}})
    text = "Keyword 'parameters' for nested schema also given as input tensor name"
    assert (answer.status, json.loads(answer.body)) == (400, {"error": text})


@pytest.mark.parametrize(
    ("coding", "status"), [("gzip", 400), ("deflate", 400), ("identity", 200), ("Identity", 200)]
)
async def test_bodies_are_not_compressed(models: Models, wire: Wire, coding: str, status: int) -> None:
    models.identity("FP32")
    answer = await wire.generate("id_fp32", {"INPUT0": 1.0}, {"content-encoding": coding})
    assert answer.status == status
    if status == 400:
        text = "Unsupported content-encoding, only 'identity' is supported."
        assert json.loads(answer.body) == {"error": text}


async def test_versions_and_unknown_models(models: Models, wire: Wire) -> None:
    models.identity("FP32")
    assert (await wire.generate("id_fp32", {"INPUT0": 1.0}, version="1")).status == 200
    unknown = await wire.generate("id_fp32", {"INPUT0": 1.0}, version="2")
    assert unknown.status == 404
    assert json.loads(unknown.body)["error"] == "Request for unknown model: 'id_fp32' version 2 is not found"
    missing = await wire.generate_stream("nope", {})
    assert missing.status == 404
    assert json.loads(missing.body) == {"error": "Request for unknown model: 'nope' is not found"}


async def test_a_model_that_fails(models: Models, wire: Wire) -> None:
    models.failing()
    for answer in (
        await wire.generate("failing", {"INPUT0": 1.0}),
        await wire.generate_stream("failing", {"INPUT0": 1.0}),
    ):
        assert (answer.status, json.loads(answer.body)) == (500, {"error": "model says no"})


async def test_a_full_queue(models: Models, wire: Wire) -> None:
    models.identity("FP32", max_queue=0)
    models.instances["id_fp32"].open = False
    answer = await wire.generate("id_fp32", {"INPUT0": 1.0})
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert "Exceeds maximum queue size" in json.loads(answer.body)["error"]


async def test_one_event_for_a_model_that_answers_once(models: Models, wire: Wire) -> None:
    models.identity("FP32")
    answer = await wire.generate_stream("id_fp32", {"id": "a", "INPUT0": [1.5, float("nan")]})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.body == (
        b'data: {"OUTPUT0":[1.5,NaN],"id":"a","model_name":"id_fp32","model_version":"1"}\n\n'
    )


async def test_bytes_that_are_no_text_cannot_be_sent(models: Models, wire: Wire) -> None:
    def broken(inputs: Arrays) -> Arrays:
        return {"OUTPUT0": np.array([b"\xff"], object)}

    models.identity("BYTES", compute=broken)
    answer = await wire.generate("id_bytes", {"INPUT0": "x"})
    assert answer.status == 400
    assert "is not UTF-8" in json.loads(answer.body)["error"]
