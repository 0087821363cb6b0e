"""From a checked request to the batcher and back: batching, splitting, optional inputs, outputs, queues."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_tensors import to_raw

from headrace.runtimes.datatypes import NUMPY_TYPES, pack_bytes, to_array, unpack_bytes
from headrace.server.errors import (
    ExecutionFailedError,
    InvalidTensorError,
    QueueFullError,
    QueueTimeoutError,
)
from headrace.server.repository.model import ModelTensor
from headrace.server.scheduling.work import PartInput, PartOutput
from headrace.server.tasks.infer import infer
from headrace.server.tasks.infer_split import join_rows, row_counts, split_rows
from headrace.server.tasks.infer_validation import MAX_SPLIT, validate
from headrace.server.tasks.tensors import InferRequest, InputTensor, RequestedOutput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from unit.kserve.conftest import Models

    from headrace.server.tasks.tokenization import Tokenizing


def as_input(name: str, array: NDArray[Any], datatype: str = "") -> InputTensor:
    kind, raw = to_raw(array)
    return InputTensor(name, datatype or kind, array.shape, bytes(raw))


def add_request(left: NDArray[Any], right: NDArray[Any], **fields: Any) -> InferRequest:
    return InferRequest("simple", inputs=[as_input("INPUT0", left), as_input("INPUT1", right)], **fields)


def numbers(rows: int) -> NDArray[np.int32]:
    return np.arange(rows * 16, dtype=np.int32).reshape(rows, 16)


async def test_inputs_may_come_in_any_order(models: Models, tokenizing: Tokenizing) -> None:
    request = add_request(numbers(2), numbers(2) * 3)
    request.inputs.reverse()
    response = await infer(tokenizing, models.simple(), request)
    assert response.version == "1"
    difference = response.outputs[1]
    np.testing.assert_array_equal(
        to_array(difference.datatype, difference.shape, difference.data), numbers(2) * -2
    )


async def test_requests_share_a_batch_whatever_order_they_name_things_in(
    models: Models, tokenizing: Tokenizing
) -> None:
    model = models.simple()
    first = add_request(numbers(1), numbers(1))
    second = add_request(numbers(2) + 7, numbers(2))
    second.inputs.reverse()
    answers = await asyncio.gather(infer(tokenizing, model, first), infer(tokenizing, model, second))
    assert [list(answer.outputs[0].shape) for answer in answers] == [[1, 16], [2, 16]]
    assert to_array("INT32", (2, 16), answers[1].outputs[1].data).tolist() == [[7] * 16] * 2
    assert models.instances["simple"].shapes == [{"INPUT0": (3, 16), "INPUT1": (3, 16)}]


async def test_oversize_batch_is_refused_unless_the_model_splits_it(
    models: Models, tokenizing: Tokenizing
) -> None:
    request = add_request(numbers(19), numbers(19) * 2, id="big")
    message = r"^\[request id: big\] inference request batch-size must be <= 8 for 'simple'$"
    with pytest.raises(InvalidTensorError, match=message):
        await infer(tokenizing, models.simple(), request)
    splitting = models.simple(parameters={"oversize_batch": "split"})
    response = await infer(tokenizing, splitting, request)
    total = response.outputs[0]
    assert list(total.shape) == [19, 16]
    np.testing.assert_array_equal(to_array("INT32", (19, 16), total.data), numbers(19) * 3)
    batches = models.instances["simple"].shapes
    assert sorted(shape["INPUT0"][0] for shape in batches) == [3, 8, 8]


async def test_more_batches_than_the_queue_holds_go_in_turns(models: Models, tokenizing: Tokenizing) -> None:
    model = models.simple(max_queue=2, parameters={"oversize_batch": "split"})
    response = await infer(tokenizing, model, add_request(numbers(65), numbers(65)))
    np.testing.assert_array_equal(to_array("INT32", (65, 16), response.outputs[0].data), numbers(65) * 2)


async def test_what_predict_splits_is_still_refused_here(models: Models, tokenizing: Tokenizing) -> None:
    model = models.simple()
    request = add_request(numbers(19), numbers(19))
    assert list((await infer(tokenizing, model, request, split=True)).outputs[0].shape) == [19, 16]
    with pytest.raises(InvalidTensorError, match="batch-size must be <= 8"):
        await infer(tokenizing, model, request)


async def test_oversize_batch_of_bytes_is_split_between_elements(
    models: Models, tokenizing: Tokenizing
) -> None:
    model = models.identity("BYTES", 2, max_batch_size=2, parameters={"oversize_batch": "split"})
    texts = [b"a" * n for n in range(10)]
    request = InferRequest("id_bytes", inputs=[InputTensor("INPUT0", "BYTES", (5, 2), pack_bytes(texts))])
    (output,) = (await infer(tokenizing, model, request)).outputs
    assert list(output.shape) == [5, 2]
    assert unpack_bytes(output.data) == texts


@pytest.mark.parametrize("shape", [(1 << 62, 0), (2 * MAX_SPLIT + 1, 0)])
async def test_rows_without_data_are_bounded(
    models: Models, tokenizing: Tokenizing, shape: tuple[int, int]
) -> None:
    model = models.identity("FP32", max_batch_size=2, parameters={"oversize_batch": "split"})
    request = InferRequest("id_fp32", inputs=[InputTensor("INPUT0", "FP32", shape, b"")])
    with pytest.raises(InvalidTensorError, match=r"batch-size must be <= 131072 for 'id_fp32'$"):
        await infer(tokenizing, model, request)


@given(
    data=st.data(),
    datatype=st.sampled_from(sorted(NUMPY_TYPES)),
    rows=st.integers(1, 20),
    width=st.integers(0, 3),
    limit=st.integers(1, 7),
)
def test_split_and_joined_is_the_same(
    data: st.DataObject, datatype: str, rows: int, width: int, limit: int
) -> None:
    if datatype == "BYTES":
        count = rows * width
        raw = pack_bytes(data.draw(st.lists(st.binary(max_size=4), min_size=count, max_size=count)))
    else:
        size = rows * width * NUMPY_TYPES[datatype].itemsize
        raw = data.draw(st.binary(min_size=size, max_size=size))
    counts = row_counts(rows, limit)
    assert sum(counts) == rows
    assert all(0 < count <= limit for count in counts)
    parts = split_rows([PartInput("X", datatype, (rows, width), raw)], counts)
    results = [{"Y": PartOutput(part.datatype, part.shape, bytes(part.data))} for (part,) in parts]
    assert join_rows(results) == {"Y": PartOutput(datatype, (rows, width), raw)}


def test_parts_whose_outputs_differ_in_shape_cannot_be_joined() -> None:
    results = [{"Y": PartOutput("INT8", (1, n), bytes(n))} for n in (2, 3)]
    with pytest.raises(ExecutionFailedError, match=r"output 'Y' .* \[1, 2\], \[1, 3\]"):
        join_rows(results)


async def test_optional_inputs_may_be_left_out(models: Models, tokenizing: Tokenizing) -> None:
    model = models.optional()
    one = np.array([1.5], np.float32)
    response = await infer(tokenizing, model, InferRequest("opt", inputs=[as_input("INPUT0", one)]))
    assert response.outputs[0].data == one.tobytes()
    both = [as_input("INPUT1", one), as_input("INPUT0", one)]
    assert (await infer(tokenizing, model, InferRequest("opt", inputs=both))).outputs[0].data == one.tobytes()
    assert models.instances["opt"].shapes == [{"INPUT0": (1,)}, {"INPUT0": (1,), "INPUT1": (1,)}]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["INPUT1"],
            (
                "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 1 inputs for "
                "model 'opt'. Got input(s) ['INPUT1'], but missing required input(s) ['INPUT0']. Please "
                "provide all required input(s)."
            ),
        ),
        (
            [],
            (
                "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 0 inputs for "
                "model 'opt'. Got input(s) [], but missing required input(s) ['INPUT0']. Please "
                "provide all required input(s)."
            ),
        ),
        (
            ["INPUT1", "A", "B"],
            (
                "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 3 inputs for "
                "model 'opt'. Got input(s) ['INPUT1','A','B'], but missing required input(s) ['INPUT0'] "
                "and unexpected input(s) ['A','B']. Please provide all required input(s)."
            ),
        ),
        (["INPUT0", "BAD"], "unexpected inference input 'BAD' for model 'opt'"),
    ],
)
async def test_missing_and_unexpected_inputs_are_named(
    models: Models, tokenizing: Tokenizing, names: list[str], message: str
) -> None:
    request = InferRequest("opt", inputs=[as_input(name, np.array([1], np.float32)) for name in names])
    with pytest.raises(InvalidTensorError) as caught:
        await infer(tokenizing, models.optional(), request)
    assert caught.value.message == message


async def test_only_the_named_outputs_are_computed(models: Models, tokenizing: Tokenizing) -> None:
    model = models.simple()
    request = add_request(numbers(1), numbers(1), outputs=[RequestedOutput("OUTPUT1")])
    response = await infer(tokenizing, model, request)
    assert [output.name for output in response.outputs] == ["OUTPUT1"]
    await infer(tokenizing, model, add_request(numbers(1), numbers(1)))
    assert models.instances["simple"].outputs == [("OUTPUT1",), ()]


async def test_a_model_that_leaves_out_an_output_is_at_fault(models: Models, tokenizing: Tokenizing) -> None:
    specs = [ModelTensor("INPUT0", "INT8", (1,))]
    outputs = [ModelTensor("A", "INT8", (1,)), ModelTensor("B", "INT8", (1,))]
    model = models.build("half", specs, outputs, lambda inputs: {"A": inputs["INPUT0"]})
    request = InferRequest("half", inputs=[as_input("INPUT0", np.array([1], np.int8))])
    with pytest.raises(ExecutionFailedError, match="model 'half' did not produce output 'B'"):
        await infer(tokenizing, model, request)


async def test_the_models_own_error_comes_through(models: Models, tokenizing: Tokenizing) -> None:
    request = InferRequest("failing", inputs=[as_input("INPUT0", np.array([1], np.float32))])
    with pytest.raises(ExecutionFailedError, match=r"^model says no$"):
        await infer(tokenizing, models.failing(), request)


async def test_full_queue_names_the_request(models: Models, tokenizing: Tokenizing) -> None:
    model = models.simple(max_queue=1)
    models.instances["simple"].open = False
    waiting = []
    for _ in range(3):  # two for the slots of the instance, one for the queue
        waiting.append(asyncio.create_task(infer(tokenizing, model, add_request(numbers(8), numbers(8)))))
        await asyncio.sleep(0.02)  # a busy loop forms batches up to 2 ms later
    with pytest.raises(QueueFullError, match=r"^\[request id: s\] Exceeds maximum queue size$"):
        await infer(tokenizing, model, add_request(numbers(1), numbers(1), id="s"))
    models.instances["simple"].release()
    assert all(answer.outputs for answer in await asyncio.gather(*waiting))


async def test_timeout_of_the_request_reaches_the_queue(models: Models, tokenizing: Tokenizing) -> None:
    model = models.simple()
    models.instances["simple"].open = False
    waiting = []
    for _ in range(2):
        waiting.append(asyncio.create_task(infer(tokenizing, model, add_request(numbers(8), numbers(8)))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(QueueTimeoutError, match=r"^Request timeout expired$"):
        await infer(tokenizing, model, add_request(numbers(8), numbers(8), timeout_us=1000))
    models.instances["simple"].release()
    await asyncio.gather(*waiting)


async def test_cancelled_requests_never_run(models: Models, tokenizing: Tokenizing) -> None:
    model = models.simple()
    instance = models.instances["simple"]
    instance.open = False
    tasks = [
        asyncio.create_task(infer(tokenizing, model, add_request(numbers(8), numbers(8)))) for _ in range(5)
    ]
    await asyncio.sleep(0.01)
    for task in tasks[2:]:
        task.cancel()
    await asyncio.wait(tasks[2:])
    instance.release()
    await asyncio.gather(*tasks[:2])
    await asyncio.sleep(0.01)
    assert len(instance.shapes) == 2
    assert model.active == 0


async def test_large_requests_are_checked_in_a_thread(models: Models, tokenizing: Tokenizing) -> None:
    model = models.identity("BYTES", name="long")
    texts = [b"x" * 100] * 2000
    request = InferRequest("long", inputs=[InputTensor("INPUT0", "BYTES", (2000,), pack_bytes(texts))])
    assert unpack_bytes((await infer(tokenizing, model, request)).outputs[0].data) == texts
    request.inputs[0].shape = (1999,)
    with pytest.raises(InvalidTensorError, match="unexpected number of string elements 2000"):
        await infer(tokenizing, model, request)


@given(
    data=st.binary(max_size=40),
    datatype=st.sampled_from([*NUMPY_TYPES, "", "STRING"]),
    shape=st.lists(st.integers(-2, 5) | st.integers(1 << 40, 1 << 63), max_size=3),
)
def test_any_tensor_is_accepted_or_refused(data: bytes, datatype: str, shape: list[int]) -> None:
    kind = datatype if datatype in NUMPY_TYPES else "INT8"
    for max_batch_size in (0, 4):
        model: Any = SimpleNamespace(
            name="m",
            max_batch_size=max_batch_size,
            inputs=(ModelTensor("X", kind, (-1,)),),
            outputs=(),
            config=SimpleNamespace(parameters={}),
        )
        tensor = InputTensor("X", datatype, tuple(shape), data)
        with contextlib.suppress(InvalidTensorError):
            checked = validate(model, InferRequest("m", inputs=[tensor]))
            array = to_array(datatype, shape, data) if data else np.empty(shape)
            assert array.shape == tuple(shape)
            assert checked.rows == (shape[0] if max_batch_size else 1)
