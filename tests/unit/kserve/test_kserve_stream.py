"""ModelStreamInfer: order, concurrency, errors, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import pytest

from headrace.kserve.v2.grpc_service_pb2 import ModelInferRequest, ModelStreamInferResponse
from headrace.server.errors import TensorRefusedError
from headrace.server.services.ordered import answer_in_order

if TYPE_CHECKING:
    from unit.kserve.conftest import Arrays, Models, Wire

FINAL = "triton_final_response"


def request(identifier: str, model: str = "simple", rows: int = 1) -> ModelInferRequest:
    message = ModelInferRequest(model_name=model, id=identifier)
    for name in ("INPUT0", "INPUT1"):
        message.inputs.add(name=name, datatype="INT32", shape=[rows, 16])
        message.raw_input_contents.append(bytes(64 * rows))
    return message


def float_request(identifier: str, model: str) -> ModelInferRequest:
    message = ModelInferRequest(model_name=model, id=identifier, raw_input_contents=[bytes(4)])
    message.inputs.add(name="INPUT0", datatype="FP32", shape=[1])
    return message


async def stream(*messages: ModelInferRequest) -> AsyncIterator[ModelInferRequest]:
    for message in messages:
        yield message


async def test_answers_are_in_the_order_of_the_requests(models: Models, wire: Wire) -> None:
    slow = models.simple(name="late")
    models.simple()
    late = models.instances["late"]
    late.open = False
    names = ["late", "simple", "nope", "late", "simple"]
    messages = [request(str(number), model) for number, model in enumerate(names)]
    call = wire.grpc.ModelStreamInfer(stream(*messages))
    while not models.instances["simple"].shapes or slow.active < 2:
        await asyncio.sleep(0.001)  # all are under way although the first has no answer yet
    late.release()
    answers = [answer async for answer in call]
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3", "4"]
    assert [answer.error_message for answer in answers] == [
        "",
        "",
        "Request for unknown model: 'nope' is not found",
        "",
        "",
    ]
    finals = [answer.infer_response.parameters[FINAL].bool_param for answer in answers]
    assert finals == [True, True, False, True, True]
    assert list(answers[2].infer_response.outputs) == []
    assert answers[2].infer_response.model_name == ""
    assert len(answers[4].infer_response.raw_output_contents) == 2


async def test_a_failed_model_does_not_end_the_stream(models: Models, wire: Wire) -> None:
    models.failing()
    models.identity("FP32")
    messages = [float_request("a", "failing"), float_request("b", "id_fp32")]
    failed, fine = [answer async for answer in wire.grpc.ModelStreamInfer(stream(*messages))]
    assert failed.error_message == "model says no"
    assert failed.infer_response.id == "a"
    assert failed.infer_response.model_name == "failing"
    assert failed.infer_response.model_version == ""
    assert failed.infer_response.parameters[FINAL].bool_param
    assert fine.error_message == ""
    assert fine.infer_response.model_version == "1"


async def test_wrong_requests_are_answered_by_their_text(models: Models, wire: Wire) -> None:
    models.simple()
    wrong = request("x", rows=1)
    del wrong.inputs[1]
    (answer,) = [answer async for answer in wire.grpc.ModelStreamInfer(stream(wrong))]
    assert answer.error_message == (
        "unexpected additional raw_input_contents for model 'simple': got 2 elements, but the request has "
        "1 inputs"
    )
    assert not answer.infer_response.parameters


async def test_with_triton_grpc_error_a_failed_model_ends_the_stream(models: Models, wire: Wire) -> None:
    models.failing()
    models.identity("FP32")
    messages = [
        float_request("a", "nope"),
        float_request("b", "id_fp32"),
        float_request("c", "failing"),
        float_request("d", "id_fp32"),
    ]
    call = wire.grpc.ModelStreamInfer(stream(*messages), metadata=(("triton_grpc_error", "true"),))
    answers = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - what came before the error counts
        async for answer in call:
            answers.append(answer)  # noqa: PERF401
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "model says no"
    assert [answer.infer_response.id for answer in answers] == ["a", "b"]
    assert answers[0].error_message == "Request for unknown model: 'nope' is not found"


async def test_an_empty_stream_has_no_answers(models: Models, wire: Wire) -> None:
    assert [answer async for answer in wire.grpc.ModelStreamInfer(stream())] == []


async def test_cancelling_the_stream_withdraws_what_waits(models: Models, wire: Wire) -> None:
    model = models.simple()
    instance = models.instances["simple"]
    instance.open = False
    call = wire.grpc.ModelStreamInfer(stream(*(request(str(n), rows=8) for n in range(6))))
    while model.active < 6 or len(instance.held) < 2:
        await asyncio.sleep(0.001)
    call.cancel()
    while model.active:
        await asyncio.sleep(0.001)
    assert model.waiting == 0
    instance.release()
    assert len(instance.shapes) == 2  # the two that the instance had


async def test_values_that_the_model_refuses_are_its_failure(models: Models, wire: Wire) -> None:
    """Unlike what is found wrong before the scheduler takes the request."""

    def refuse(inputs: Arrays) -> Arrays:
        raise TensorRefusedError("indices element out of data bounds")

    models.identity("FP32", name="picky", compute=refuse)
    (answer,) = [a async for a in wire.grpc.ModelStreamInfer(stream(float_request("a", "picky")))]
    assert answer.error_message == "indices element out of data bounds"
    assert (answer.infer_response.id, answer.infer_response.model_name) == ("a", "picky")
    assert answer.infer_response.parameters[FINAL].bool_param
    metadata = (("triton_grpc_error", "true"),)
    call = wire.grpc.ModelStreamInfer(stream(float_request("b", "picky")), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError, match="out of data bounds") as caught:
        [answer async for answer in call]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_more_requests_are_read_than_may_run() -> None:
    read = 0
    gates = [asyncio.Event() for _ in range(10)]

    async def requests() -> AsyncIterator[int]:
        nonlocal read
        for number in range(10):
            read += 1
            yield number

    async def answer(number: int) -> int:
        await gates[number].wait()
        return number

    answers = answer_in_order(requests(), answer, 3)
    first = asyncio.ensure_future(anext(answers))
    for _ in range(20):
        await asyncio.sleep(0)
    assert read == 4  # three run, one waits for room
    for gate in gates[1:]:
        gate.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not first.done()
    assert read == 4
    gates[0].set()
    assert [await first] + [number async for number in answers] == list(range(10))


async def test_leaving_early_cancels_what_runs() -> None:
    cancelled: list[int] = []

    async def requests() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        await asyncio.Event().wait()

    async def answer(number: int) -> int:
        try:
            await asyncio.Event().wait() if number else None
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async with contextlib.aclosing(answer_in_order(requests(), answer, 8)) as answers:
        assert await anext(answers) == 0
        await asyncio.sleep(0)
    assert sorted(cancelled) == [1, 2]


async def test_an_error_in_reading_comes_after_the_answers() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 1
        raise ConnectionResetError

    async def answer(number: int) -> int:
        return number

    seen = []
    with pytest.raises(ConnectionResetError):  # noqa: PT012 - as above
        async for number in answer_in_order(requests(), answer, 2):
            seen.append(number)  # noqa: PERF401
    assert seen == [1]


async def test_a_message_that_cannot_be_read_ends_its_call(models: Models, wire: Wire) -> None:
    """With a reason, and not as an internal error."""
    models.simple()

    async def messages() -> AsyncIterator[bytes]:
        yield request("1").SerializeToString()
        yield b"\x0a\xff"

    open_stream = wire.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=None,
        response_deserializer=ModelStreamInferResponse.FromString,
    )
    call = open_stream(messages())
    with pytest.raises(grpc.aio.AioRpcError, match="not a valid message") as failure:
        [answer async for answer in call]
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    unary = wire.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=None, response_deserializer=None
    )
    for body in (b"\x0a\xff", bytes(100_000)):
        with pytest.raises(grpc.aio.AioRpcError, match="not a valid message") as failure:
            await unary(body)
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
