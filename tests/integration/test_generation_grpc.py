"""``headrace.v1.GenerationService`` of a running server: its text is the model's own, whatever else runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from headrace.v1 import generation_pb2 as pb
from headrace.v1 import generation_pb2_grpc
from running import ServerProcess

NEW = 20
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "東京は日本の",
    "1, 2, 3, 4,",
    "Ein Gedicht über Zürich: 👩‍👩‍👧",
]
MODEL = "smollm2"


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


@pytest.fixture(scope="module")
def tokenizer(demo_repository: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_repository / MODEL / "1" / "tokenizer.json"))


@pytest.fixture(scope="module")
def reference(demo_repository: Path, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """What transformers generates greedily from the same weights, in float32."""
    folder = demo_repository / "smollm2-torch" / "1"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def generate(prompt: str) -> list[int]:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=2
        )
        result: list[int] = found[0, ids.shape[1] :].tolist()
        return result

    return generate


@pytest.fixture(scope="module")
def expected(reference: Callable[[str], list[int]]) -> dict[str, list[int]]:
    return {prompt: reference(prompt) for prompt in PROMPTS}


def greedy(**values: Any) -> pb.GenerationParameters:
    return pb.GenerationParameters(**({"temperature": 0, "max_tokens": NEW} | values))


def streamed(stub: Any, prompt: str, **values: Any) -> tuple[str, list[int]]:
    request = pb.GenerateStreamRequest(model=MODEL, text=prompt, parameters=greedy(**values))
    deltas = [event.delta for event in stub.GenerateStream(request) if event.WhichOneof("event") == "delta"]
    assert not any("\ufffd" in delta.text for delta in deltas[:-1])
    return "".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.token_ids]


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(
    stub: Any, tokenizer: Tokenizer, expected: dict[str, list[int]]
) -> None:
    for prompt in PROMPTS:
        for cached in (False, True):
            parameters = greedy(use_prefix_cache=cached)
            request = pb.GenerateRequest(model=MODEL, text=prompt, parameters=parameters)
            (sample,) = stub.Generate(request).samples
            assert list(sample.token_ids) == expected[prompt]
            assert sample.text == tokenizer.decode(expected[prompt])
        assert streamed(stub, prompt) == (sample.text, expected[prompt])


@pytest.mark.slow
def test_it_is_the_same_in_a_full_batch(
    stub: Any, tokenizer: Tokenizer, expected: dict[str, list[int]]
) -> None:
    prompts = PROMPTS * 4
    with ThreadPoolExecutor(len(prompts)) as pool:
        for prompt, (text, ids) in zip(
            prompts, pool.map(lambda prompt: streamed(stub, prompt), prompts), strict=True
        ):
            assert ids == expected[prompt]
            assert text == tokenizer.decode(expected[prompt])


def test_a_seed_gives_the_same_text_alone_and_beside_others(stub: Any) -> None:
    def sampled() -> tuple[str, list[int]]:
        return streamed(stub, PROMPTS[1], temperature=1.0, seed=5, max_tokens=12)

    alone = sampled()
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(streamed, stub, prompt, temperature=1.0) for prompt in PROMPTS[:3]]
        assert sampled() == alone
        for other in others:
            other.result()
    again = stub.Generate(
        pb.GenerateRequest(model=MODEL, text=PROMPTS[1], parameters=greedy(temperature=1.0, max_tokens=12))
    )
    seed = again.start.seed
    repeated = streamed(stub, PROMPTS[1], temperature=1.0, seed=seed, max_tokens=12)
    assert repeated == (again.samples[0].text, list(again.samples[0].token_ids))


def test_logprobs_are_of_the_tokens(stub: Any, tokenizer: Tokenizer) -> None:
    request = pb.GenerateRequest(
        model=MODEL, text=PROMPTS[0], parameters=greedy(max_tokens=6, logprobs=3, prompt_logprobs=1)
    )
    answer = stub.Generate(request)
    (sample,) = answer.samples
    assert [token.id for token in sample.tokens] == list(sample.token_ids)
    assert b"".join(token.raw for token in sample.tokens).decode() == sample.text
    for token in sample.tokens:
        assert (token.rank, token.top[0].id, len(token.top)) == (1, token.id, 3)
        assert token.logprob == token.top[0].logprob <= 0
    prompt = answer.start.prompt_tokens
    assert [token.id for token in prompt] == tokenizer.encode(PROMPTS[0]).ids
    assert [token.HasField("logprob") for token in prompt] == [False, *[True] * (len(prompt) - 1)]


def test_a_stop_text_is_cut_and_told(stub: Any) -> None:
    request = pb.GenerateRequest(
        model=MODEL, text="1, 2, 3, 4,", parameters=greedy(max_tokens=40, stop=[" 7,", "nothing"])
    )
    (sample,) = stub.Generate(request).samples
    assert sample.text == " 5, 6,"
    assert sample.finish == pb.Finish(reason=pb.FINISH_REASON_STOP, stop_text=" 7,")


def chat(text: str, **values: Any) -> pb.Conversation:
    return pb.Conversation(messages=[pb.ChatMessage(role="user", content=text)], **values)


def test_a_chat_is_the_same_streamed_or_not(stub: Any) -> None:
    question = chat("What is the capital of France?")
    answer = stub.Chat(pb.ChatRequest(model=MODEL, conversation=question, parameters=greedy()))
    (choice,) = answer.choices
    assert choice.message.content == "The capital of France is Paris."
    assert choice.finish == pb.Finish(reason=pb.FINISH_REASON_STOP, end_of_sequence=True)
    request = pb.ChatStreamRequest(model=MODEL, conversation=question, parameters=greedy())
    events = list(stub.ChatStream(request))
    assert "".join(event.delta.content for event in events) == choice.message.content
    assert events[-2].delta.finish == choice.finish
    assert events[-1].end.usage.completion_tokens == len(choice.token_ids)
    assert events[-1].end.usage.prompt_tokens == answer.usage.prompt_tokens


def test_a_required_tool_is_called_with_matching_arguments(stub: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    tool = pb.Tool(name="get_weather", parameters_json_schema=json.dumps(schema))
    for mode in (pb.TOOL_CHOICE_MODE_REQUIRED, pb.TOOL_CHOICE_MODE_FUNCTION):
        choice = pb.ToolChoice(mode=mode, function="get_weather", single=True)
        question = chat("What is the weather in Rome?", tools=[tool], tool_choice=choice)
        request = pb.ChatRequest(model=MODEL, conversation=question, parameters=greedy(max_tokens=80))
        (answer,) = stub.Chat(request).choices
        (call,) = answer.message.tool_calls
        assert (call.name, answer.message.content) == ("get_weather", "")
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
        assert answer.finish.reason == pb.FINISH_REASON_TOOL_CALLS


def test_text_follows_a_constraint(stub: Any) -> None:
    wanted: list[tuple[pb.StructuredOutput, Callable[[str], bool]]] = [
        (pb.StructuredOutput(regex=r"[0-9]{3}-[a-c]"), lambda text: len(text) == 5 and text[3] == "-"),
        (pb.StructuredOutput(choice=pb.StringList(values=["yes", "no"])), lambda text: text in ("yes", "no")),
        (
            pb.StructuredOutput(json_schema='{"type":"array","items":{"type":"boolean"},"maxItems":2}'),
            lambda text: isinstance(json.loads(text), list),
        ),
    ]
    for output, check in wanted:
        parameters = greedy(structured_output=output, max_tokens=40)
        request = pb.GenerateRequest(model=MODEL, text="Answer:", parameters=parameters)
        (sample,) = stub.Generate(request).samples
        assert check(sample.text), sample.text
    broken = greedy(structured_output=pb.StructuredOutput(regex="("))
    with pytest.raises(grpc.RpcError) as failure:
        stub.Generate(pb.GenerateRequest(model=MODEL, text="x", parameters=broken))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


LONG = {"ignore_eos": True, "max_tokens": 2000}


def test_a_deadline_and_a_caller_who_goes_free_the_slot(stub: Any) -> None:
    request = pb.GenerateStreamRequest(model=MODEL, text="Hello", parameters=greedy(**LONG))
    with pytest.raises(grpc.RpcError) as failure:
        list(stub.GenerateStream(request, timeout=0.4))
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    events = stub.GenerateStream(request)
    assert next(events).WhichOneof("event") == "start"
    events.cancel()
    answer = stub.Generate(pb.GenerateRequest(model=MODEL, text="Hello", parameters=greedy(max_tokens=1)))
    assert answer.usage.completion_tokens == 1


def test_abort_ends_a_stream_with_what_it_has(stub: Any) -> None:
    request = pb.GenerateStreamRequest(
        model=MODEL, text="Hello", parameters=greedy(**LONG), request_id="to-be-aborted"
    )
    events: list[pb.GenerateStreamResponse] = []
    reader = threading.Thread(target=lambda: events.extend(stub.GenerateStream(request)))
    reader.start()
    aborted = 0
    deadline = time.monotonic() + 60
    while not aborted and time.monotonic() < deadline:
        aborted = stub.Abort(pb.AbortRequest(request_id="to-be-aborted")).aborted
    reader.join(60)
    assert aborted == 1
    assert events[-1].WhichOneof("event") == "end"
    assert events[-2].delta.finish.reason == pb.FINISH_REASON_ABORT
    assert stub.Abort(pb.AbortRequest(request_id="to-be-aborted")).aborted == 0


def test_a_prompt_that_is_too_long_is_refused_with_its_reason(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub.Generate(pb.GenerateRequest(model=MODEL, token_ids={"ids": [5] * 20_000}))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "maximum context length" in (failure.value.details() or "")


def test_other_models_do_not_generate(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub.Generate(pb.GenerateRequest(model="minilm", text="x"))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "minilm" in (failure.value.details() or "")
