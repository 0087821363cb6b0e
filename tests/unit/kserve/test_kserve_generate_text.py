"""Models that generate text as Triton's REST clients see them; the engine is scripted."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from scripted_text import TOKENIZER, WORDS
from waiting import until

from headrace.rest.v1 import kserve_pb2
from headrace.runtimes.generation.messages import Started, Tokens
from headrace.server.errors import QueueFullError, WorkerCrashedError

if TYPE_CHECKING:
    from unit.kserve.conftest import Wire

EXACTLY_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates "
    "various number of responses"
)


def events(body: bytes) -> list[dict[str, Any]]:
    assert body.endswith(b"\n\n")
    lines = body[:-2].split(b"\n\n")
    assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


async def test_generate_answers_with_the_whole_text(text: Any, wire: Wire) -> None:
    generator = text()
    answer = await wire.generate("llm", {"id": "a", "text_input": "Hi", "max_tokens": 3, "temperature": 0})
    assert (answer.status, answer.body) == (
        200,
        b'{"id":"a","model_name":"llm","model_version":"1","text_output":"hello world the"}',
    )
    (ticket,) = generator.tickets
    assert (ticket.sampling.max_tokens, ticket.sampling.temperature, ticket.closed) == (3, 0, True)
    assert TOKENIZER.decode(ticket.prompt) == "Hi"


async def test_generate_stream_sends_pieces(text: Any, wire: Wire) -> None:
    text()
    answer = await wire.generate_stream("llm", {"text_input": "Hi"})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.body == b"".join(
        b'data: {"model_name":"llm","model_version":"1","text_output":"%b"}\n\n' % piece
        for piece in (b"hello", b" world", b" the")
    )


async def test_plain_and_other_events_are_alike(text: Any, wire: Wire) -> None:
    text()
    body = {"id": "ü", "text_input": "Hi"}
    plain = events((await wire.generate_stream("llm", body)).body)
    other = events((await wire.generate_stream("llm", {**body, "return_num_output_tokens": True})).body)
    assert [list(piece) for piece in plain] == [["id", "model_name", "model_version", "text_output"]] * 3
    assert [{**piece, "num_output_tokens": 1} for piece in plain] == other


async def test_generate_stream_without_streaming_is_one_event(text: Any, wire: Wire) -> None:
    text()
    answer = await wire.generate_stream("llm", {"text_input": "Hi", "stream": False})
    assert [event["text_output"] for event in events(answer.body)] == ["hello world the"]


async def test_generate_answers_once(text: Any, wire: Wire) -> None:
    generator = text()
    answer = await wire.generate("llm", {"text_input": "Hi", "parameters": {"stream": True}})
    assert (answer.status, json.loads(answer.body)) == (400, {"error": EXACTLY_ONE})
    assert generator.tickets == []


async def test_the_prompt_comes_back_where_it_is_asked_for(text: Any, wire: Wire) -> None:
    text()
    body = {"text_input": "Hi ", "exclude_input_in_output": False}
    answer = await wire.generate("llm", body)
    assert json.loads(answer.body)["text_output"] == "Hi hello world the"
    refused = await wire.generate_stream("llm", body)
    assert (refused.status, json.loads(refused.body)) == (
        400,
        {"error": "When streaming, `exclude_input_in_output` = False is not allowed."},
    )


async def test_the_default_length_is_vllms(text: Any, wire: Wire) -> None:
    generator = text()
    await wire.generate("llm", {"text_input": "Hi"})
    assert generator.tickets[0].sampling.max_tokens == 16


def sampling(generator: Any) -> Any:
    return generator.tickets[-1].sampling


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"parameters": {"max_tokens": 7}}, {"max_tokens": 7}),
        ({"sampling_parameters": '{"max_tokens": 7}'}, {"max_tokens": 7}),
        (
            {"sampling_parameters": '{"max_tokens": "7", "min_tokens": "2"}'},
            {"max_tokens": 7, "min_tokens": 2},
        ),
        ({"sampling_parameters": '{"max_tokens": 7}', "max_tokens": 5}, {"max_tokens": 5}),
        ({"sampling_parameters": '{"min_p": 0.1}', "min_p": 0.2}, {"min_p": 0.1}),
        ({"min_p": 0.2}, {"min_p": 0.2}),
        ({"min_length": 2}, {"min_tokens": 2}),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}),
        ({"top_k": 5, "top_p": 0}, {"top_k": 5, "top_p": 1.0}),
        ({"random_seed": 11}, {"seed": 11}),
        ({"seed": 12}, {"seed": 12}),
        ({"end_id": 3}, {"stop_token_ids": (3,)}),
        ({"end_id": -1}, {"stop_token_ids": ()}),
        (
            {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5},
            {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5},
        ),
        (
            {"beam_width": 2, "length_penalty": 0.5},
            {"beam": True, "n": 2, "best_of": 2, "length_penalty": 0.5},
        ),
        ({"beam_width": 1}, {"beam": False, "n": 1}),
        ({"sampling_parameters": '{"n": 2, "best_of": 3}'}, {"n": 2, "best_of": 3}),
        ({"priority": 3}, {"priority": 3}),
        ({"bad_words": ""}, {"bad_words": ()}),
        ({"return_cumulative_logprob": True}, {"logprobs": 0}),
        ({"return_log_probs": True}, {"logprobs": 0}),
        ({"details": True}, {"logprobs": 0}),
        ({"return_finish_reason": True}, {"logprobs": None}),
        ({"sampling_parameters": '{"logprobs": 2}', "return_logprobs": True}, {"logprobs": 2}),
        ({"unknown": 1, "stream": None, "seed": None}, {"seed": None}),
    ],
)
async def test_fields(text: Any, wire: Wire, body: dict[str, Any], expected: dict[str, Any]) -> None:
    generator = text()
    default = {"temperature": 0} if expected.get("seed", 0) is None else {}
    answer = await wire.generate("llm", {"text_input": "Hi", **default, **body})
    assert answer.status == 200, answer.body
    assert {name: getattr(sampling(generator), name) for name in expected} == expected


async def test_words(text: Any, wire: Wire) -> None:
    generator = text()
    body = {"text_input": "Hi", "bad_words": ["fox", ""], "stop": [" the"], "stop_words": [" world", ""]}
    answer = await wire.generate("llm", body)
    assert json.loads(answer.body)["text_output"] == "hello"
    spelt = [TOKENIZER.decode(list(word)) for word in sampling(generator).bad_words]
    assert spelt == ["fox", " fox"]


async def test_a_grammar(text: Any, wire: Wire) -> None:
    generator = text()
    given = json.dumps({"structured_outputs": {"regex": "a+"}})
    await wire.generate("llm", {"text_input": "Hi", "sampling_parameters": given})
    assert (sampling(generator).grammar.kind, sampling(generator).grammar.text) == ("regex", "a+")


@pytest.mark.parametrize(
    ("body", "status", "text_part"),
    [
        ({"text_input": ""}, 400, "`prompt` cannot be empty"),
        ({"text_input": 5}, 400, "attempt to access JSON non-string as string"),
        ({"max_tokens": 0}, 400, "max_tokens must be at least 1, got 0."),
        ({"max_tokens": 2**31}, 400, "is out of range for datatype INT32"),
        ({"max_tokens": 1.5}, 400, "attempt to access JSON non-signed-integer as signed-integer"),
        ({"temperature": -1}, 400, "`temperature` is -1.0, expected at least 0"),
        ({"top_p": 0}, 400, "`top_p` is 0.0, expected greater than 0, at most 1"),
        ({"top_p": 1.5}, 400, "`top_p` is 1.5"),
        ({"stream": "yes"}, 400, "attempt to access JSON non-boolean as boolean"),
        ({"sampling_parameters": "{"}, 400, "`sampling_parameters` is not valid JSON"),
        ({"sampling_parameters": "[]"}, 400, "`sampling_parameters` is not a JSON object"),
        ({"sampling_parameters": '{"max_tokens": "x"}'}, 400, "`max_tokens`: expected `int"),
        ({"sampling_parameters": '{"lora_name": "x"}'}, 400, "the model has no adapter 'x'"),
        ({"return_context_logits": True}, 501, "`return_context_logits` is not offered by this server"),
        ({"text_input": ["a", "b"]}, 400, "The schema can not convert input 'text_input'"),
    ],
)
async def test_what_is_refused(
    text: Any, wire: Wire, body: dict[str, Any], status: int, text_part: str
) -> None:
    generator = text()
    for answer in (
        await wire.generate("llm", {"text_input": "Hi", **body}),
        await wire.generate_stream("llm", {"text_input": "Hi", **body}),
    ):
        assert answer.status == status
        assert text_part in json.loads(answer.body)["error"]
    assert generator.tickets == []


async def test_extra_outputs(text: Any, wire: Wire) -> None:
    text()
    flags = (
        "return_finish_reason", "return_cumulative_logprob", "return_num_input_tokens",
        "return_num_output_tokens", "return_log_probs", "return_logprobs", "details",
    )  # fmt: skip
    body = {"text_input": "hello", "temperature": 0, **dict.fromkeys(flags, True)}
    found = json.loads((await wire.generate("llm", body)).body)
    scores = [-token / 100 for token in WORDS]
    assert found["finish_reason"] == "length"
    assert (found["num_input_tokens"], found["num_output_tokens"]) == (1, 3)
    assert found["cumulative_logprob"] == found["cum_log_probs"] == pytest.approx(sum(scores))
    assert found["output_log_probs"] == pytest.approx(scores)
    assert found["logprobs"] == "null"  # the request did not ask for any
    assert found["details"]["finish_reason"] == "length"
    assert found["details"]["generated_tokens"] == 3
    assert found["details"]["logprobs"][1] == {
        "id": WORDS[1], "text": " world", "logprob": scores[1], "special": False,
    }  # fmt: skip
    pieces = events((await wire.generate_stream("llm", body)).body)
    assert [piece["num_output_tokens"] for piece in pieces] == [1, 1, 1]
    assert [piece["finish_reason"] for piece in pieces] == ["None", "None", "length"]
    assert [piece["details"]["finish_reason"] for piece in pieces] == [None, None, "length"]
    sums = [piece["cumulative_logprob"] for piece in pieces]
    assert sums == pytest.approx([sum(scores[:1]), sum(scores[:2]), sum(scores)])


async def test_alternatives(text: Any, wire: Wire) -> None:
    text()
    given = '{"logprobs": 1, "temperature": 0}'
    body = {"text_input": "hello", "sampling_parameters": given, "return_logprobs": True}
    found = json.loads((await wire.generate("llm", body)).body)
    first = json.loads(found["logprobs"])[0]
    assert first[str(WORDS[0])] == {"logprob": -WORDS[0] / 100, "rank": 1, "decoded_token": "hello"}
    assert first["10"]["rank"] == 1
    assert len(first) == 2


async def test_several_samples(text: Any, wire: Wire) -> None:
    text(script=WORDS[:2])
    body = {"text_input": "Hi", "sampling_parameters": '{"n": 2}', "return_finish_reason": True}
    found = json.loads((await wire.generate("llm", body)).body)
    assert found["text_output"] == ["hello world"] * 2
    assert found["finish_reason"] == ["length"] * 2
    pieces = events((await wire.generate_stream("llm", body)).body)
    assert [piece["text_output"] for piece in pieces] == [
        ["hello", ""], ["", "hello"], [" world", ""], ["", " world"],
    ]  # fmt: skip
    assert pieces[-1]["finish_reason"] == ["None", "length"]


async def test_a_failure_before_the_first_piece_has_a_status(text: Any, wire: Wire) -> None:
    generator = text(script=[])
    task = asyncio.create_task(wire.generate_stream("llm", {"text_input": "Hi"}))
    await until(lambda: generator.tickets)
    generator.tickets[0].fail(WorkerCrashedError("the worker died"))
    answer = await task
    assert (answer.status, json.loads(answer.body)) == (503, {"error": "the worker died"})
    assert answer.headers["retry-after"] == "1"


async def test_a_later_failure_is_an_event(text: Any, wire: Wire) -> None:
    generator = text(script=[])
    task = asyncio.create_task(wire.generate_stream("llm", {"text_input": "Hi"}))
    await until(lambda: generator.tickets)
    generator.tickets[0].push(Started(1, 0), Tokens(1, 0, (WORDS[0],), ()))
    generator.tickets[0].fail(WorkerCrashedError("the worker died"))
    answer = await task
    assert answer.status == 200
    assert answer.body.endswith(b'"text_output":"hello"}\n\ndata: {"error":"the worker died"}\n\n')


async def test_a_full_queue(text: Any, wire: Wire) -> None:
    text().refuse = QueueFullError("Exceeds maximum queue size")
    answer = await wire.generate("llm", {"id": "q", "text_input": "Hi"})
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert json.loads(answer.body) == {"error": "[request id: q] Exceeds maximum queue size"}


async def test_a_caller_who_goes_frees_the_slot(text: Any, wire: Wire) -> None:
    generator = text(script=[])
    request = kserve_pb2.KserveGenerateServiceGenerateStreamRequest(
        model="llm", body={"data": b'{"text_input": "Hi"}'}
    )
    call = wire.generating.GenerateStream(request)
    await until(lambda: generator.tickets)
    (ticket,) = generator.tickets
    ticket.push(Started(1, 0), Tokens(1, 0, (WORDS[0],), ()))
    assert b"hello" in (await anext(aiter(call))).data
    assert not ticket.closed
    call.cancel()
    await until(lambda: ticket.closed)
    gone = wire.generating.Generate(
        kserve_pb2.KserveGenerateServiceGenerateRequest(model="llm", body=request.body)
    )
    await until(lambda: len(generator.tickets) == 2)
    gone.cancel()
    await until(lambda: generator.tickets[1].closed)


async def test_triton_s_timeout_ends_the_text(text: Any, wire: Wire) -> None:
    generator = text(script=[])
    answer = await wire.generate("llm", {"text_input": "Hi", "timeout": 1000})
    assert answer.status == 504
    assert generator.tickets[0].closed
