"""Models that generate text in ``ModelStreamInfer``, as Triton's gRPC clients see them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from scripted_text import WORDS
from waiting import until

from headrace.kserve.v2 import grpc_service_pb2 as pb
from headrace.runtimes.datatypes import pack_bytes, unpack_bytes
from headrace.runtimes.generation.messages import Started, Tokens
from headrace.server.errors import WorkerCrashedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from unit.kserve.conftest import Models, Wire

DECOUPLED = "doesn't support models with decoupled transaction policy"


def tensors(prompt: str, shape: tuple[int, ...] = (1,), **others: Any) -> pb.ModelInferRequest:
    """A request with ``others`` as inputs of the types that the model has, or as ``parameters``."""
    request = pb.ModelInferRequest(model_name="llm", id=others.pop("id", ""))
    for key, value in others.pop("parameters", {}).items():
        request.parameters[key].bool_param = value
    request.inputs.add(name="text_input", datatype="BYTES", shape=shape)
    request.raw_input_contents.append(pack_bytes([prompt]))
    for name, value in others.items():
        array = np.array([value])
        datatype = {"b": "BOOL", "i": "INT32", "f": "FP32"}[array.dtype.kind]
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(
            array.astype({"BOOL": "?", "INT32": "<i4", "FP32": "<f4"}[datatype]).tobytes()
        )
    return request


async def stream(*requests: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    for request in requests:
        yield request


def seen(message: pb.ModelStreamInferResponse) -> tuple[str, str | None, bool | None]:
    """Id, text and whether it is the last of a response."""
    reply = message.infer_response
    texts = [unpack_bytes(raw)[0].decode() for raw in reply.raw_output_contents]
    final = reply.parameters["triton_final_response"].bool_param if reply.parameters else None
    return reply.id, message.error_message or (texts[0] if texts else None), final


async def asked(wire: Wire, *requests: pb.ModelInferRequest) -> list[tuple[str, str | None, bool | None]]:
    return [seen(message) async for message in wire.grpc.ModelStreamInfer(stream(*requests))]


async def test_a_stream_has_many_responses(text: Any, wire: Wire) -> None:
    generator = text()
    found = await asked(wire, tensors("Hi", id="a", stream=True, temperature=0.7, max_tokens=4))
    assert found == [("a", "hello", False), ("a", " world", False), ("a", " the", True)]
    assert (generator.tickets[-1].sampling.temperature, generator.tickets[-1].sampling.max_tokens) == (0.7, 4)


async def test_without_streaming_there_is_one(text: Any, wire: Wire) -> None:
    text()
    (message,) = [m async for m in wire.grpc.ModelStreamInfer(stream(tensors("Hi", id="a")))]
    assert seen(message) == ("a", "hello world the", True)
    reply = message.infer_response
    assert (reply.model_name, reply.model_version) == ("llm", "1")
    assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [("text_output", "BYTES", [1])]


async def test_an_empty_final_response_where_it_is_asked_for(text: Any, wire: Wire) -> None:
    text()
    wanted = {"triton_enable_empty_final_response": True}
    found = await asked(wire, tensors("Hi", id="a", stream=True, parameters=wanted))
    assert found == [("a", "hello", False), ("a", " world", False), ("a", " the", False), ("a", None, True)]
    assert await asked(wire, tensors("Hi", id="b", parameters=wanted)) == [
        ("b", "hello world the", False),
        ("b", None, True),
    ]


async def test_clients_that_add_a_batch_dimension(text: Any, wire: Wire) -> None:
    text()
    assert await asked(wire, tensors("Hi", shape=(1, 1), max_tokens=3)) == [("", "hello world the", True)]


async def test_named_outputs(text: Any, wire: Wire) -> None:
    text()
    request = tensors("Hi", return_finish_reason=True, return_num_input_tokens=True)
    request.outputs.add(name="finish_reason")
    (message,) = [m async for m in wire.grpc.ModelStreamInfer(stream(request))]
    assert [output.name for output in message.infer_response.outputs] == ["finish_reason"]
    request.outputs.add(name="nope")
    assert (await asked(wire, request))[0][1] == "unexpected inference output 'nope' for model 'llm'"


async def test_requests_of_a_stream_do_not_wait_for_each_other(models: Models, text: Any, wire: Wire) -> None:
    generator = text(script=[])
    models.simple()
    plain = pb.ModelInferRequest(model_name="simple", id="t")
    for name in ("INPUT0", "INPUT1"):
        plain.inputs.add(name=name, datatype="INT32", shape=(1, 16))
        plain.raw_input_contents.append(bytes(64))
    call = wire.grpc.ModelStreamInfer(
        stream(tensors("one", id="a", stream=True), plain, tensors("two", id="b", stream=True))
    )
    answers = aiter(call)
    assert (await anext(answers)).infer_response.id == "t"
    await until(lambda: len(generator.tickets) == 2)
    first, second = generator.tickets
    second.push(Started(1, 0), Tokens(1, 0, (WORDS[0],), ()))
    assert seen(await anext(answers)) == ("b", "hello", False)
    first.push(Started(1, 0), Tokens(1, 0, (WORDS[1],), (), "length"))
    assert seen(await anext(answers)) == ("a", " world", True)
    second.push(Tokens(1, 0, (WORDS[2],), (), "length"))
    assert [seen(message) async for message in answers] == [("b", " the", True)]


async def test_a_failed_request_leaves_the_stream(text: Any, wire: Wire) -> None:
    generator = text()
    bad = tensors("", id="bad")
    found = await asked(wire, bad, tensors("Hi", id="good"))
    assert sorted(found) == [("bad", "`prompt` cannot be empty", None), ("good", "hello world the", True)]
    generator.script = []
    call = wire.grpc.ModelStreamInfer(stream(tensors("Hi", id="x", stream=True)))
    answers = aiter(call)
    reading = asyncio.ensure_future(anext(answers))
    await until(lambda: len(generator.tickets) == 2)
    generator.tickets[-1].fail(WorkerCrashedError("the worker died"))
    message = await reading
    assert seen(message) == ("x", "the worker died", True)
    assert message.infer_response.model_name == "llm"
    assert [m async for m in answers] == []


async def test_triton_grpc_error_ends_the_stream(text: Any, wire: Wire) -> None:
    generator = text(script=[])
    call = wire.grpc.ModelStreamInfer(
        stream(tensors("Hi", stream=True)), metadata=(("triton_grpc_error", "true"),)
    )
    reading = asyncio.ensure_future(anext(aiter(call)))
    await until(lambda: generator.tickets)
    generator.tickets[0].fail(WorkerCrashedError("the worker died"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reading
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "the worker died",
    )


async def test_cancelling_a_stream_frees_every_slot(text: Any, wire: Wire) -> None:
    generator = text(script=[])
    call = wire.grpc.ModelStreamInfer(stream(*(tensors("Hi", id=str(n), stream=True) for n in range(5))))
    reading = asyncio.ensure_future(anext(aiter(call)))
    await until(lambda: len(generator.tickets) == 5)
    call.cancel()
    await until(lambda: all(ticket.closed for ticket in generator.tickets))
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_callers_deadline_frees_the_slot(text: Any, wire: Wire) -> None:
    generator = text(script=[])
    call = wire.grpc.ModelStreamInfer(stream(tensors("Hi", stream=True)), timeout=2)
    reading = asyncio.ensure_future(anext(aiter(call)))
    await until(lambda: generator.tickets)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reading
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: generator.tickets[0].closed)


async def test_asking_once_is_refused_as_triton_does(text: Any, wire: Wire) -> None:
    text()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await wire.grpc.ModelInfer(tensors("Hi"))
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.UNIMPLEMENTED,
        f"ModelInfer RPC {DECOUPLED}",
    )
    answer = await wire.rest("ModelInfer", model="llm", body=b'{"inputs": []}')
    assert (answer.status, json.loads(answer.body)) == (501, {"error": f"HTTP end point {DECOUPLED}"})
