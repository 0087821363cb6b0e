"""``headrace.v1.GenerationService`` over a scripted engine: every field arrives, every answer is complete."""

from __future__ import annotations

import asyncio

import pytest
from scripted_generation import Context, ScriptedGenerator, byte_ids
from typed_generation import parameters, service

from headrace.runtimes.generation.messages import Accepted, Logprob, PromptLogprobs, Started, Tokens
from headrace.runtimes.generation.parameters import Grammar, Sampling
from headrace.server.errors import (
    InputEmptyError,
    InputTooLongError,
    InvalidArgumentError,
    ModelNotFoundError,
)
from headrace.server.repository.model import SamplingDefaults
from headrace.server.services.call import Call
from headrace.server.tasks.generate import Generating
from headrace.v1 import generation_pb2 as pb


async def test_a_prompt_is_continued(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator(byte_ids(" says 東京"))
    generator.cached = 1
    own = service(generating, generator)
    request = pb.GenerateRequest(
        text="hello", parameters=parameters(logprobs=1, return_prompt_token_ids=True)
    )
    answer = await own.Generate(request, call)
    (sample,) = answer.samples
    assert (sample.text, list(sample.token_ids)) == (" says 東京", byte_ids(" says 東京"))
    assert sample.finish == pb.Finish(reason=pb.FINISH_REASON_LENGTH)
    assert b"".join(token.raw for token in sample.tokens) == " says 東京".encode()
    first = sample.tokens[0]
    assert (first.id, first.rank, first.top[0].id) == (sample.token_ids[0], 1, 10)
    assert first.logprob == pytest.approx(-first.id / 100)
    assert (answer.start.model, answer.start.model_version) == ("llm", "1")
    assert list(answer.start.prompt_token_ids) == byte_ids("hello")
    assert not answer.start.HasField("seed")
    usage = answer.usage
    count = len(byte_ids(" says 東京"))
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (
        len(byte_ids("hello")),
        count,
        1,
    )
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    total = answer.timings.total_duration.ToNanoseconds()
    parts = (
        answer.timings.tokenization_duration,
        answer.timings.queue_duration,
        answer.timings.inference_duration,
    )
    assert 0 < sum(part.ToNanoseconds() for part in parts) == total
    assert 0 < answer.timings.first_token_duration.ToNanoseconds() <= total
    assert call.model is not None


async def test_every_parameter_arrives(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator([5])
    given = pb.GenerationParameters(
        max_tokens=9, min_tokens=2, temperature=0.7, top_k=4, top_p=0.9, min_p=0.1, typical_p=0.8,
        repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=-0.3, logit_bias={7: 1.5},
        allowed_token_ids=[5, 6], bad_words=["fox"], stop=["x"], stop_token_ids=[8], ignore_eos=True,
        seed=11, n=2, best_of=3, beam_search=True, length_penalty=0.5, logprobs=2, prompt_logprobs=3,
        watermark=True, structured_output=pb.StructuredOutput(regex="a+"), priority=-2, cache_salt="s",
        use_prefix_cache=False,
    )  # fmt: skip
    await service(generating, generator).Generate(pb.GenerateRequest(text="x", parameters=given), call)
    sent = generator.tickets[0].sampling
    assert sent.bad_words
    assert set(sent.bad_words) == {tuple(byte_ids("fox")), tuple(byte_ids(" fox"))}
    expected = Sampling(
        max_tokens=9, min_tokens=2, temperature=0.7, top_k=4, top_p=0.9, min_p=0.1, typical_p=0.8,
        repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=-0.3, logit_bias=((7, 1.5),),
        allowed_token_ids=(5, 6), bad_words=sent.bad_words, stop_token_ids=(8,), ignore_eos=True, seed=11,
        n=2, best_of=3, beam=True, length_penalty=0.5, logprobs=2, prompt_logprobs=3, watermark=True,
        grammar=Grammar("regex", "a+"), priority=-2, cache_salt="s", prefix_cache=False,
    )  # fmt: skip
    assert sent == expected


async def test_defaults_are_the_models(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator([5])
    defaults = SamplingDefaults(0.6, 0.95, 20, 0.05, 0.9, 1.05, 17)
    for own in (SamplingDefaults(), defaults):
        request = pb.GenerateRequest(text="hello")
        answer = await service(generating, generator, defaults=own).Generate(request, call)
        assert answer.start.seed == generator.tickets[-1].sampling.seed  # it was drawn
    plain, set_ = (ticket.sampling for ticket in generator.tickets)
    assert plain == Sampling(max_tokens=256 - len(byte_ids("hello")), seed=plain.seed)
    assert set_ == Sampling(17, temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, typical_p=0.9,
                            repetition_penalty=1.05, seed=set_.seed)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pb.StructuredOutput(json_schema="{}", compact=True), Grammar("json_schema", "{}", compact=True)),
        (pb.StructuredOutput(json_object=True), Grammar("json_object")),
        (pb.StructuredOutput(choice=pb.StringList(values=["a", "b"])), Grammar("choice", '["a","b"]')),
        (pb.StructuredOutput(grammar="root ::= x"), Grammar("grammar", "root ::= x")),
    ],
)
async def test_structured_outputs(
    generating: Generating, call: Call, given: pb.StructuredOutput, expected: Grammar
) -> None:
    generator = ScriptedGenerator([5])
    request = pb.GenerateRequest(text="hello", parameters=parameters(structured_output=given))
    await service(generating, generator).Generate(request, call)
    assert generator.tickets[0].sampling.grammar == expected


async def test_a_stream_is_start_deltas_end(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator()
    own = service(generating, generator)
    request = pb.GenerateStreamRequest(
        token_ids={"ids": [1, 5, 6]}, parameters=parameters(n=2, prompt_logprobs=0, seed=4, temperature=1)
    )
    events = own.GenerateStream(request, call)
    first = asyncio.ensure_future(anext(events))
    while not generator.tickets:
        await asyncio.sleep(0)
    (ticket,) = generator.tickets
    ticket.push(Started(1, 2), PromptLogprobs(1, (None, Logprob(-1.0, 3), Logprob(-2.0, 1))))
    ticket.push(Tokens(1, 1, tuple(byte_ids(" fox"))), Tokens(1, 0, (9,), finish="stop", stop_token=9))
    ticket.push(Tokens(1, 1, (2,), finish="stop", eos=True))
    messages = [await first, *[message async for message in events]]
    assert [message.WhichOneof("event") for message in messages] == [
        "start",
        "delta",
        "delta",
        "delta",
        "end",
    ]
    start = messages[0].start
    assert (start.seed, [token.id for token in start.prompt_tokens]) == (4, [1, 5, 6])
    assert [token.HasField("logprob") for token in start.prompt_tokens] == [False, True, True]
    assert ticket.prompt == [1, 5, 6]
    fox, stopped, ended = (message.delta for message in messages[1:4])
    assert (fox.index, fox.text, fox.HasField("finish"), len(fox.tokens)) == (1, " fox", False, 0)
    assert (stopped.index, stopped.finish) == (0, pb.Finish(reason=pb.FINISH_REASON_STOP, stop_token_id=9))
    assert ended.finish == pb.Finish(reason=pb.FINISH_REASON_STOP, end_of_sequence=True)
    assert messages[-1].end.usage.cached_tokens == 2
    assert ticket.closed


async def test_a_dropped_stream_frees_the_slot(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator()
    events = service(generating, generator).GenerateStream(pb.GenerateStreamRequest(text="hello"), call)
    reader = asyncio.ensure_future(anext(events))
    while not generator.tickets:
        await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert generator.tickets[0].closed


async def test_abort_over_the_wire(generating: Generating, call: Call) -> None:
    generator = ScriptedGenerator()
    own = service(generating, generator)
    running = asyncio.create_task(
        own.Generate(pb.GenerateRequest(text="hello", parameters=parameters(), request_id="mine"), call)
    )
    while not len(generating.running):
        await asyncio.sleep(0)
    generator.tickets[0].push(Started(1, 0), Tokens(1, 0, tuple(byte_ids(" fox"))))
    assert (await own.Abort(pb.AbortRequest(request_id="mine"), call)).aborted == 1
    answer = await running
    assert answer.samples[0].finish.reason == pb.FINISH_REASON_ABORT
    assert (await own.Abort(pb.AbortRequest(request_id="mine"), call)).aborted == 0
    with pytest.raises(InvalidArgumentError):
        await own.Abort(pb.AbortRequest(), call)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (pb.GenerateRequest(), InputEmptyError),
        (pb.GenerateRequest(token_ids={}), InputEmptyError),
        (pb.GenerateRequest(text="x", model="other"), ModelNotFoundError),
        (pb.GenerateRequest(text="x", parameters={"top_p": 2}), InvalidArgumentError),
        (pb.GenerateRequest(text="x", parameters={"structured_output": {"regex": ""}}), InvalidArgumentError),
        (
            pb.GenerateRequest(text="x", parameters={"structured_output": {"json_object": False}}),
            InvalidArgumentError,
        ),
        (pb.GenerateRequest(token_ids={"ids": [1] * 300}), InputTooLongError),
    ],
)
async def test_wrong_requests(
    generating: Generating, call: Call, request_: pb.GenerateRequest, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await service(generating, ScriptedGenerator()).Generate(request_, call)


async def test_the_deadline_of_the_rpc_is_the_requests(generating: Generating) -> None:
    generator = ScriptedGenerator()
    short = Call(Context(0.01), "headrace")  # type: ignore[arg-type]
    request = pb.GenerateRequest(text="hello", parameters=parameters(structured_output={"regex": "a"}))
    running = asyncio.create_task(service(generating, generator).Generate(request, short))
    while not generator.tickets:
        await asyncio.sleep(0)
    generator.tickets[0].push(Accepted(1))
    with pytest.raises(Exception, match="deadline"):
        await running
    assert generator.tickets[0].closed
