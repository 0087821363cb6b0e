"""Prediction on any number of rows."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from headrace.runtimes.datatypes import pack_bytes, unpack_bytes
from headrace.server.errors import ExecutionFailedError, InvalidTensorError
from headrace.server.repository.model import ModelTensor, Task
from headrace.server.tasks import batching
from headrace.server.tasks.predict import predict
from headrace.server.tasks.tensors import InferRequest, InputTensor, RequestedOutput
from headrace.server.tasks.tokenization import Tokenizing


def doubler(repository: Any, **options: Any) -> Any:
    def compute(arrays: Any) -> Any:
        values = arrays["x"]
        return {"y": values.sum(1), "z": values * 2}

    return repository.tensors(
        "m",
        [ModelTensor("x", "FP32", (3,))],
        [ModelTensor("y", "FP32", ()), ModelTensor("z", "FP32", (3,))],
        compute,
        **options,
    )


def rows(count: int) -> Any:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def request(values: Any, *outputs: str) -> InferRequest:
    tensor = InputTensor("x", "FP32", values.shape, values.tobytes())
    return InferRequest("m", inputs=[tensor], outputs=[RequestedOutput(name) for name in outputs])


@pytest.mark.parametrize("count", [1, 8, 9, 16, 35])
async def test_more_rows_than_the_batch_are_run_in_turns(
    repository: Any, tokenizing: Tokenizing, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(batching, "MAX_PARTS", 2)
    model = doubler(repository)
    values = rows(count)
    result = await predict(tokenizing, model, request(values))
    y, z = result.outputs
    assert (y.name, list(y.shape), z.name, list(z.shape)) == ("y", [count], "z", [count, 3])
    np.testing.assert_array_equal(np.frombuffer(y.data, np.float32), values.sum(1))
    np.testing.assert_array_equal(np.frombuffer(z.data, np.float32).reshape(count, 3), values * 2)
    assert model.statistics.inference_count == count


async def test_named_outputs_keep_their_order(repository: Any, tokenizing: Tokenizing) -> None:
    result = await predict(tokenizing, doubler(repository), request(rows(20), "z", "y"))
    assert [output.name for output in result.outputs] == ["z", "y"]


async def test_strings_are_split_by_element(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.tensors(
        "s",
        [ModelTensor("x", "BYTES", (2,))],
        [ModelTensor("y", "BYTES", (2,))],
        lambda arrays: {"y": arrays["x"]},
    )
    elements = [b"a" * length for length in range(40)]
    tensor = InputTensor("x", "BYTES", (20, 2), pack_bytes(elements))
    result = await predict(tokenizing, model, InferRequest("s", inputs=[tensor]))
    assert unpack_bytes(result.outputs[0].data) == elements


async def test_models_without_batching_take_the_whole_shape(repository: Any, tokenizing: Tokenizing) -> None:
    model = repository.tensors(
        "w", [ModelTensor("x", "FP32", (-1, 3))], [ModelTensor("y", "FP32", (-1,))],
        lambda arrays: {"y": arrays["x"].sum(1)}, max_batch_size=0, task=Task.TENSORS,
    )  # fmt: skip
    result = await predict(tokenizing, model, request(rows(20)))
    assert list(result.outputs[0].shape) == [20]
    assert model.statistics.execution_count == 1


@pytest.mark.parametrize("tensor", [
    InputTensor("x", "FP32", (20, 3), b"\0" * 7),
    InputTensor("x", "FP32", (20,), b"\0" * 80),
    InputTensor("x", "FP32", (), b""),
    InputTensor("x", "FP32", (20, -1, -3), b"\0" * 240),
    InputTensor("x", "NONSENSE", (20, 3), b"\0" * 240),
    InputTensor("x", "BYTES", (20, 3), b"\0" * 7),
    InputTensor("x", "BYTES", (1 << 40, 1), b""),
    InputTensor("x", "FP32", (1 << 62, 0), b""),
    InputTensor("x", "FP32", (1 << 62, 3), b""),
    InputTensor("x", "FP32", (1 << 62,) * 1000, b""),
    InputTensor("other", "FP32", (20, 3), b"\0" * 240),
])  # fmt: skip
async def test_wrong_tensors_are_refused(
    repository: Any, tokenizing: Tokenizing, tensor: InputTensor
) -> None:
    with pytest.raises(InvalidTensorError):
        await predict(tokenizing, doubler(repository), InferRequest("m", inputs=[tensor]))


async def test_the_first_failure_is_the_answer(repository: Any, tokenizing: Tokenizing) -> None:
    def compute(arrays: Any) -> Any:
        if arrays["x"].max() > 50:
            raise ExecutionFailedError("too large for me")
        return {"y": arrays["x"].sum(1)}

    model = repository.tensors("m", [ModelTensor("x", "FP32", (3,))], [ModelTensor("y", "FP32", ())], compute)
    with pytest.raises(ExecutionFailedError, match="too large for me"):
        await predict(tokenizing, model, request(rows(100)))
    for _ in range(5):  # the other batches are given up in the next turns of the loop
        await asyncio.sleep(0)
    assert model.batcher.active == 0
