"""The generate task from prompt to deltas: text, stop texts, details, abort, deadlines, refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from scripted_generation import (
    ScriptedGenerator,
    ScriptedTicket,
    byte_ids,
    options,
    plain_tokenizer,
    scripted_model,
    token_id,
)

from headrace.runtimes.generation.messages import Accepted, Logprob, PromptLogprobs, Started, Tokens
from headrace.runtimes.generation.parameters import Grammar
from headrace.server.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
    TaskNotSupportedError,
    WorkerCrashedError,
)
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.generation import Delta, GenerationOptions
from headrace.server.tasks.prompts import Prompt
from headrace.server.tasks.text_stream import TextStream, complete

HELLO = Prompt("hello")


async def started(
    generating: Generating, generator: ScriptedGenerator, given: GenerationOptions, **more: Any
) -> TextStream:
    return await generating.start(scripted_model(generator, plain_tokenizer()), HELLO, given, **more)


async def test_deltas_joined_are_the_whole_text(generating: Generating) -> None:
    text = " says the fox 東京 👍"
    generator = ScriptedGenerator(byte_ids(text))
    stream = await started(generating, generator, options())
    deltas = [delta async for delta in stream]
    assert "".join(delta.text for delta in deltas) == text
    assert not any("\ufffd" in delta.text for delta in deltas)
    assert [token for delta in deltas for token in delta.token_ids] == byte_ids(text)
    assert [delta.finish for delta in deltas][-2:] == [None, "length"]
    result = await complete(await started(generating, generator, options()))
    assert (result.samples[0].text, result.samples[0].token_ids) == (text, byte_ids(text))
    times = result.timeline
    assert 0 < times.received <= times.tokenized <= times.started <= times.first_token <= times.finished
    assert generator.tickets[0].prompt == byte_ids("hello")
    assert all(ticket.closed for ticket in generator.tickets)
    assert generator.statistics.finished["length"] == 2
    assert len(generating.running) == 0


async def test_the_end_of_sequence_is_a_token_but_no_text(generating: Generating) -> None:
    end = token_id(plain_tokenizer(), "<|im_end|>")
    for skip, include, text in [
        (True, False, " fox"),
        (False, False, " fox"),
        (False, True, " fox<|im_end|>"),
    ]:
        generator = ScriptedGenerator([*byte_ids(" fox"), end], "stop", eos=True)
        given = options(skip_special_tokens=skip, include_stop=include)
        (sample,) = (await complete(await started(generating, generator, given))).samples
        assert (sample.text, sample.finish, sample.stop, sample.eos) == (text, "stop", None, True)
        assert sample.token_ids[-1] == end


async def test_a_stop_token_is_told(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options(stop_token_ids=(9,)))
    generator.tickets[0].push(Tokens(1, 0, (*byte_ids(" fox"), 9), finish="stop", stop_token=9))
    (sample,) = (await complete(stream)).samples
    assert (sample.text, sample.finish, sample.stop, sample.eos) == (" fox", "stop", 9, False)


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_text_ends_the_request(generating: Generating, *, include: bool) -> None:
    generator = ScriptedGenerator(byte_ids(" says stop the fox"))
    given = options(stop=("nothing", "s stop"), include_stop=include)
    stream = await started(generating, generator, given)
    deltas = [delta async for delta in stream]
    assert "".join(delta.text for delta in deltas) == (" says stop" if include else " say")
    assert (deltas[-1].finish, deltas[-1].stop) == ("stop", "s stop")
    assert [token for delta in deltas for token in delta.token_ids] == byte_ids(" says stop")
    assert generator.tickets[0].closed


async def test_tokens_that_come_together_are_cut_at_the_stop_text(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options(stop=(" stop",), details=True, logprobs=0))
    tokens = byte_ids(" says stop the fox")
    generator.tickets[0].push(Tokens(1, 0, tuple(tokens), tuple(Logprob(-1.0, 1) for _ in tokens), "length"))
    (sample,) = (await complete(stream)).samples
    assert (sample.text, sample.finish, sample.stop) == (" says", "stop", " stop")
    assert sample.token_ids == byte_ids(" says stop") == [detail.token_id for detail in sample.details]


async def test_no_stop_text_counts_before_min_tokens(generating: Generating) -> None:
    text = " stop the stop fox"
    generator = ScriptedGenerator(byte_ids(text))
    given = options(stop=(" stop",), min_tokens=len(byte_ids(" stop")))
    (sample,) = (await complete(await started(generating, generator, given))).samples
    assert (sample.text, sample.stop) == (" stop the", " stop")


async def test_text_that_was_held_back_comes_at_the_end(generating: Generating) -> None:
    generator = ScriptedGenerator(byte_ids(" the fox"))
    (sample,) = (await complete(await started(generating, generator, options(stop=("fox!",))))).samples
    assert sample.text == " the fox"


async def test_samples_interleave_and_end_one_by_one(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options(n=2, best_of=2, stop=(" stop",)))
    (ticket,) = generator.tickets
    fox, stop = tuple(byte_ids(" fox")), tuple(byte_ids(" stop"))
    ticket.push(Tokens(1, 1, fox), Tokens(1, 0, stop))
    ticket.push(Tokens(1, 0, fox), Tokens(1, 1, fox, finish="length"))
    deltas = [delta async for delta in stream]
    assert [(delta.sample, delta.text, delta.finish) for delta in deltas] == [
        (1, " fox", None), (0, "", "stop"), (1, " fox", "length"),
    ]  # fmt: skip
    assert ticket.closed
    assert ticket.ended == [0], "the last sample ends with the request"


async def test_a_sample_that_the_engine_ended_is_not_ended_again(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options(n=3, best_of=3, stop=(" stop",)))
    (ticket,) = generator.tickets
    stop = tuple(byte_ids(" stop"))
    ticket.push(Tokens(1, 0, stop, finish="length"), Tokens(1, 1, stop), Tokens(1, 2, stop))
    assert [delta.stop async for delta in stream] == [" stop"] * 3
    assert (ticket.ended, ticket.closed) == ([1], True)


async def test_details_have_texts_bytes_and_alternatives(generating: Generating) -> None:
    generator = ScriptedGenerator(byte_ids(" 東"))
    stream = await started(generating, generator, options(details=True, logprobs=2))
    (sample,) = (await complete(stream)).samples
    assert b"".join(detail.raw for detail in sample.details) == " 東".encode()
    first = sample.details[0]
    assert (first.logprob, first.rank) == (-sample.token_ids[0] / 100, 1)
    assert [(other.token_id, other.logprob) for other in first.top] == [(10, -0.1), (11, -0.11)]
    assert (
        first.top[0].raw == generating.vocabulary(scripted_model(generator, plain_tokenizer())).text(10).raw
    )


async def test_prompt_logprobs_describe_the_prompt(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options(max_tokens=0, prompt_logprobs=0))
    prompt = stream.prompt_ids
    logprobs = (None, *(Logprob(-0.5, 2) for _ in prompt[1:]))
    generator.tickets[0].push(Started(1, 3), PromptLogprobs(1, logprobs), Tokens(1, 0, (), finish="length"))
    result = await complete(stream)
    assert [detail.token_id for detail in result.prompt_details] == list(prompt)
    assert [detail.logprob for detail in result.prompt_details] == [None, *[-0.5] * (len(prompt) - 1)]
    assert (result.cached_tokens, result.samples[0].text, result.samples[0].finish) == (3, "", "length")


async def test_a_seed_is_drawn_and_told(generating: Generating) -> None:
    generator = ScriptedGenerator()
    drawn = await started(generating, generator, options(temperature=0.5))
    given = await started(generating, generator, options(temperature=0.5, seed=7))
    greedy = await started(generating, generator, options(seed=7))
    assert drawn.seed is not None
    assert [ticket.sampling.seed for ticket in generator.tickets[:2]] == [drawn.seed, 7]
    assert (given.seed, greedy.seed) == (7, None)
    for stream in (drawn, given, greedy):
        await stream.aclose()


async def next_of(stream: TextStream) -> Delta:
    return await anext(stream)


async def test_abort_ends_a_waiting_reader(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options(request_id="mine", stop=("fox!",)))
    generator.tickets[0].push(Tokens(1, 0, tuple(byte_ids(" the fox"))))
    assert (await anext(stream)).text == " the "
    reader = asyncio.create_task(next_of(stream))
    await asyncio.sleep(0)
    assert generating.running.abort("other") == 0
    assert generating.running.abort("mine") == 1
    last = await reader
    assert (last.text, last.finish) == ("fox", "abort")
    assert [delta async for delta in stream] == []
    assert generator.tickets[0].closed
    assert generating.running.abort("mine") == 0
    assert generator.statistics.finished["abort"] == 1


async def test_abort_while_nobody_reads(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options(request_id="mine", n=2, best_of=2))
    generator.tickets[0].push(Tokens(1, 0, tuple(byte_ids(" fox")), finish="length"))
    assert (await anext(stream)).finish == "length"
    assert generating.running.abort("mine") == 1
    assert [(delta.sample, delta.finish) async for delta in stream] == [(1, "abort")]


async def test_the_deadline_frees_the_slot(generating: Generating) -> None:
    generator = ScriptedGenerator()
    deadline = asyncio.get_running_loop().time() + 0.02
    stream = await started(generating, generator, options(), deadline=deadline)
    with pytest.raises(DeadlineExceededError):
        await anext(stream)
    assert generator.tickets[0].closed
    assert generator.statistics.finished["error"] == 1


async def test_a_caller_who_goes_frees_the_slot(generating: Generating) -> None:
    generator = ScriptedGenerator()
    reader = asyncio.create_task(complete(await started(generating, generator, options(request_id="a"))))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert generator.tickets[0].closed
    assert len(generating.running) == 0


async def test_a_crash_ends_the_stream_after_what_came(generating: Generating) -> None:
    generator = ScriptedGenerator()
    stream = await started(generating, generator, options())
    generator.tickets[0].push(Tokens(1, 0, tuple(byte_ids(" fox"))))
    generator.tickets[0].fail(WorkerCrashedError("the worker died"))
    assert (await anext(stream)).text == " fox"
    with pytest.raises(WorkerCrashedError):
        await anext(stream)
    assert generator.tickets[0].closed


@pytest.mark.parametrize(
    "asked",
    [{"grammar": Grammar("regex", "(")}, {"n": 2, "best_of": 2, "beam": True}],
    ids=["grammar", "beams"],
)
async def test_what_the_engine_checks_is_accepted_before_the_stream_is_there(
    generating: Generating, asked: dict[str, Any]
) -> None:
    generator = ScriptedGenerator()
    given = options(**asked)
    waiting = asyncio.create_task(started(generating, generator, given))
    ticket = await first_ticket(generator)
    assert not waiting.done()
    ticket.fail(InvalidArgumentError("never"))
    with pytest.raises(InvalidArgumentError, match="never"):
        await waiting
    assert ticket.closed

    waiting = asyncio.create_task(started(generating, generator, given))
    while len(generator.tickets) < 2:
        await asyncio.sleep(0)
    generator.tickets[1].push(Accepted(2))
    stream = await waiting
    await stream.aclose()

    waiting = asyncio.create_task(started(generating, generator, given))
    while len(generator.tickets) < 3:
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert generator.tickets[2].closed


async def test_running_requests_with_equal_stop_texts_share_what_finds_them(generating: Generating) -> None:
    generator = ScriptedGenerator()
    streams = [
        await started(generating, generator, options(stop=("the", text), n=2, best_of=2))
        for text in ("fox", "fox", "says")
    ]
    assert sorted(generating._patterns) == [("the", "fox"), ("the", "says")]
    for stream in streams:
        await stream.aclose()
    del stream, streams
    assert not generating._patterns


async def first_ticket(generator: ScriptedGenerator) -> ScriptedTicket:
    while not generator.tickets:
        await asyncio.sleep(0)
    return generator.tickets[0]


async def test_refusals_of_the_engine_and_of_the_model(generating: Generating) -> None:
    generator = ScriptedGenerator()
    generator.refuse = QueueFullError("Exceeds maximum queue size")
    with pytest.raises(QueueFullError):
        await started(generating, generator, options())
    model = scripted_model(generator, plain_tokenizer())
    model.generation = None
    with pytest.raises(TaskNotSupportedError):
        await generating.start(model, HELLO, options())


async def test_what_is_sent_is_what_was_asked(generating: Generating) -> None:
    generator = ScriptedGenerator()
    given = options(top_p=0.5, seed=3, stop_token_ids=(4,), priority=-1)
    stream = await started(generating, generator, given)
    assert msgspec.structs.asdict(generator.tickets[0].sampling) == msgspec.structs.asdict(given.sampling)
    await stream.aclose()
