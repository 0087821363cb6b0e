"""``/v1/completions`` over a scripted engine."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing


def joined(pieces: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Put lists that came in pieces together."""
    return {key: [value for piece in pieces for value in piece[key]] for key in pieces[0]}


async def test_one_answer(api: Any) -> None:
    api.engine.cached_tokens = 2
    reply = await api.complete("Say", seed=7)
    assert reply.content_type == "application/json"
    answer = reply.json
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "text_completion",
        "model": "lm",
        "choices": [
            {
                "index": 0,
                "text": "Hello wörld",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "total_tokens": 16,
            "completion_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
        "service_tier": None,
        "system_fingerprint": "headrace-1.2",
        "kv_transfer_params": None,
    }
    assert list(answer)[:2] == ["object", "model"]
    assert api.engine.sampling.max_tokens == 16
    assert api.engine.sampling.seed == 7
    assert api.engine.active == 0


async def test_prompts_of_all_forms(api: Any) -> None:
    ids = api.engine.tokenizer.encode("Say").ids
    for prompt, texts in (("Say", 1), (["Say"], 1), (["a", "b"], 2), (ids, 1), ([ids, ids, ids], 3)):
        reply = await api.complete(prompt, max_tokens=3)
        assert [choice["text"] for choice in reply.json["choices"]] == ["Hel"] * texts
        assert [choice["index"] for choice in reply.json["choices"]] == list(range(texts))
        assert reply.json["choices"][0]["finish_reason"] == "length"
    assert api.engine.prompt == "Say"


async def test_samples_are_numbered_within_their_prompt(api: Any) -> None:
    api.engine.script = lambda prompt, sampling, sample: f"{chr(prompt[0])}{sample}" * 2
    reply = await api.complete(["A", "B"], n=2, temperature=1)
    texts = {choice["index"]: choice["text"] for choice in reply.json["choices"]}
    first, second = (chr(api.engine.tokenizer.encode(text).ids[0]) for text in "AB")
    assert texts == {0: f"{first}0" * 2, 1: f"{first}1" * 2, 2: f"{second}0" * 2, 3: f"{second}1" * 2}
    streamed = await api.complete(["A", "B"], n=2, temperature=1, stream=True)
    joined = dict.fromkeys(range(4), "")
    finishes = []
    for event in streamed.events:
        (choice,) = event["choices"]
        joined[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            finishes.append(choice["index"])
    assert joined == texts
    assert sorted(finishes) == [0, 1, 2, 3]


async def test_stream_is_the_answer_in_pieces(api: Any) -> None:
    reply = await api.complete("Say", stream=True)
    assert reply.headers["cache-control"] == "no-cache"
    events = reply.events
    assert "".join(event["choices"][0]["text"] for event in events) == "Hello wörld"
    members = ("id", "object", "created", "model", "system_fingerprint", "choices")
    assert {tuple(event)[:6] for event in events} == {members}
    assert len({(event["id"], event["created"]) for event in events}) == 1
    assert [event["choices"][0]["finish_reason"] for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert all("usage" not in event for event in events)
    assert events[0]["choices"][0] == {
        "index": 0, "text": "H", "logprobs": None, "finish_reason": None, "stop_reason": None,
    }  # fmt: skip


@pytest.mark.parametrize(("options", "last", "each"), [
    (None, False, False),
    ({}, False, False),
    ({"include_usage": False, "continuous_usage_stats": True}, False, False),
    ({"include_usage": True}, True, False),
    ({"include_usage": True, "continuous_usage_stats": True}, True, True),
])  # fmt: skip
async def test_usage_of_a_stream(api: Any, options: Any, last: bool, each: bool) -> None:
    reply = await api.complete("Say", stream=True, stream_options=options)
    events = reply.events
    whole = {
        "prompt_tokens": 3, "total_tokens": 16, "completion_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 0},
    }  # fmt: skip
    if last:
        assert events.pop()["usage"] == whole
        assert all("usage" in event for event in events)
    usages = [event["usage"] for event in events if event.get("usage")]
    assert len(usages) == (len(events) if each else 0)
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert all(event["choices"] for event in events)


async def test_logprobs(api: Any) -> None:
    for count in (0, 3):
        reply = await api.complete("Say", max_tokens=2, logprobs=count)
        logprobs = reply.json["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["H", "e"]
        assert logprobs["token_logprobs"] == [-0.5, -0.5]
        assert logprobs["text_offset"] == [0, 1]
        assert [len(top) for top in logprobs["top_logprobs"]] == [max(1, count)] * 2
    assert reply.json["choices"][0]["logprobs"]["top_logprobs"][0] == {"H": -0.5, "I": -1.5, "J": -2.5}
    named = await api.complete("Say", max_tokens=1, logprobs=1, return_tokens_as_token_ids=True)
    (token,) = named.json["choices"][0]["logprobs"]["tokens"]
    assert token == f"token_id:{api.engine.tokenizer.encode('H').ids[0]}"


async def test_offsets_count_characters(api: Any) -> None:
    api.engine.script = lambda *_: "aé😀b"
    reply = await api.complete("Say", logprobs=0)
    logprobs = reply.json["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 2, 2, 2, 3, 4]
    streamed = await api.complete("Say", logprobs=0, stream=True)
    pieces = [event["choices"][0]["logprobs"] for event in streamed.events]
    assert joined(pieces) == logprobs


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
async def test_echo_with_logprobs_scores_the_prompt(api: Any, stream: bool, as_ids: bool) -> None:
    """What lm-evaluation-harness asks for: the last token is the generated one."""
    prompt = api.engine.tokenizer.encode("Say é").ids if as_ids else "Say é"
    reply = await api.complete(
        prompt, echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234, stream=stream
    )
    choices = [event["choices"][0] for event in reply.events] if stream else reply.json["choices"]
    assert "".join(choice["text"] for choice in choices) == "Say éH"
    pieces = [choice["logprobs"] for choice in choices]
    logprobs = joined(pieces)
    assert logprobs["token_logprobs"] == [None, *[-0.5] * 6]
    assert logprobs["top_logprobs"][0] is None
    assert all(max(top.values()) == -0.5 for top in logprobs["top_logprobs"][1:])
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 4, 5]
    assert api.engine.sampling.prompt_logprobs == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("skip", [None, False])
@pytest.mark.parametrize("as_ids", [False, True])
async def test_offsets_behind_special_tokens_of_the_prompt(
    api: Any, stream: bool, skip: bool | None, as_ids: bool
) -> None:
    text = "<bos>é<|im_end|>y"
    prompt = api.engine.tokenizer.encode(text).ids if as_ids else text
    api.engine.script = lambda *_: "<bos>o"
    reply = await api.complete(prompt, echo=True, logprobs=0, stream=stream, skip_special_tokens=skip)
    choices = [event["choices"][0] for event in reply.events] if stream else reply.json["choices"]
    written = "<bos>o" if skip is False else "o"
    assert "".join(choice["text"] for choice in choices) == text + written
    offsets = joined([choice["logprobs"] for choice in choices])["text_offset"]
    assert offsets == [0, 5, 5, 6, 16, *([17, 22, 23] if skip is False else [17, 17, 18])]


async def test_what_the_tokenizer_adds_to_an_echoed_prompt_moves_no_offset(api: Any) -> None:
    tokenizer = api.engine.tokenizer
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <|im_end|>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<bos>", "<|im_end|>")],
    )
    reply = await api.complete("ab", echo=True, logprobs=0, max_tokens=1, skip_special_tokens=False)
    (choice,) = reply.json["choices"]
    assert choice["text"] == "abH"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2, 2]


async def test_echo_alone(api: Any) -> None:
    reply = await api.complete("Say", echo=True, max_tokens=0, logprobs=2)
    choice = reply.json["choices"][0]
    assert choice["text"] == "Say"
    assert choice["logprobs"]["tokens"] == ["S", "a", "y"]
    assert choice["finish_reason"] == "length"
    plain = await api.complete("Say", echo=True, max_tokens=2)
    assert plain.json["choices"][0]["text"] == "SayHe"
    assert plain.json["choices"][0]["logprobs"] is None


async def test_prompt_logprobs_and_token_ids(api: Any) -> None:
    reply = await api.complete("Say", max_tokens=2, prompt_logprobs=1, return_token_ids=True)
    (choice,) = reply.json["choices"]
    ids = api.engine.tokenizer.encode("Say").ids
    assert choice["prompt_token_ids"] == ids
    assert choice["token_ids"] == api.engine.tokenizer.encode("He").ids
    assert choice["prompt_logprobs"] == [
        None,
        {str(ids[1]): {"logprob": -0.5, "rank": 1, "decoded_token": "a"}},
        {str(ids[2]): {"logprob": -0.5, "rank": 1, "decoded_token": "y"}},
    ]
    streamed = await api.complete("Say", max_tokens=2, return_token_ids=True, stream=True)
    choices = [event["choices"][0] for event in streamed.events]
    assert choices[0]["prompt_token_ids"] == ids
    assert choices[1]["prompt_token_ids"] is None
    assert joined([{"ids": piece["token_ids"]} for piece in choices]) == {"ids": choice["token_ids"]}


@pytest.mark.parametrize(("side", "kept"), [(None, "cdef"), ("left", "cdef"), ("right", "abcd")])
async def test_truncation(api: Any, side: str | None, kept: str) -> None:
    reply = await api.complete(
        "abcdef", truncate_prompt_tokens=4, truncation_side=side, return_token_ids=True
    )
    assert reply.json["choices"][0]["prompt_token_ids"] == api.engine.tokenizer.encode(kept).ids
    everything = await api.complete("x" * 700, truncate_prompt_tokens=-1, max_tokens=12)
    assert everything.json["usage"]["prompt_tokens"] == 500


async def test_stops(api: Any) -> None:
    reply = await api.complete("Say", stop=["wö", *map(str, range(20))])
    assert reply.json["choices"][0]["text"] == "Hello "
    assert reply.json["choices"][0]["finish_reason"] == "stop"
    assert reply.json["choices"][0]["stop_reason"] == "wö"
    kept = await api.complete("Say", stop="lo", include_stop_str_in_output=True)
    assert kept.json["choices"][0]["text"] == "Hello"
    token = api.engine.tokenizer.encode("o").ids[0]
    by_id = await api.complete("Say", stop_token_ids=[token])
    assert by_id.json["choices"][0]["stop_reason"] == token


async def test_parameters_reach_the_engine(api: Any) -> None:
    await api.complete(
        "Say",
        max_tokens="20",
        temperature=0.001,
        top_p=0.5,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=-0.4,
        logit_bias={"5": 250, "6": -1},
        allowed_token_ids=[5, 6, 258],
        bad_words=["x"],
        stop_token_ids=[9],
        ignore_eos=True,
        min_tokens=2,
        seed=-3,
        priority=4,
        cache_salt="s",
        best_of=3,
        n=2,
        user="u",
        unknown={"a": 1},
    )
    sampling = api.engine.sampling
    assert (sampling.max_tokens, sampling.min_tokens, sampling.temperature) == (20, 2, 0.01)
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0, 0.1)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (
        1.2,
        0.3,
        -0.4,
    )
    assert sampling.logit_bias == ((5, 100.0), (6, -1.0))
    assert sampling.allowed_token_ids == (5, 6, 258)
    encode = api.engine.tokenizer.encode
    assert sampling.bad_words == (tuple(encode("x").ids), tuple(encode(" x").ids))
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.seed) == ((9,), True, -3)
    assert (sampling.priority, sampling.cache_salt, sampling.n, sampling.best_of) == (4, "s", 2, 3)


async def test_the_models_own_defaults(api: Any) -> None:
    await api.complete("Say", temperature=None, top_k=None)
    sampling = api.engine.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 20)


async def test_beam_search(api: Any) -> None:
    await api.complete("Say", use_beam_search=True, n=2, temperature=0, length_penalty=0.5)
    sampling = api.engine.sampling
    assert (sampling.beam, sampling.n, sampling.best_of, sampling.length_penalty) == (True, 2, 2, 0.5)


@pytest.mark.parametrize(("fields", "kind", "text"), [
    ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a","b"]'),
    ({"structured_outputs": {"grammar": "root ::= x"}}, "grammar", "root ::= x"),
    ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema", '{"type":"object"}'),
    ({"structured_outputs": {"json": '{"a":1}'}}, "json_schema", '{"a":1}'),
    ({"structured_outputs": {"json_object": True}}, "json_object", ""),
    ({"guided_regex": "a+"}, "regex", "a+"),
    ({"guided_json": {"type": "object"}}, "json_schema", '{"type":"object"}'),
    ({"guided_choice": ["a"]}, "choice", '["a"]'),
    ({"guided_grammar": "g"}, "grammar", "g"),
    ({"response_format": {"type": "json_object"}}, "json_object", ""),
    ({"response_format": {"type": "json_object", "value": {"a": 1}}}, "json_schema", '{"a":1}'),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"b": 1}}}},
     "json_schema", '{"b":1}'),
])  # fmt: skip
async def test_constraints_reach_the_engine(api: Any, fields: Any, kind: str, text: str) -> None:
    assert (await api.complete("Say", **fields)).status == 200
    grammar = api.engine.sampling.grammar
    assert (grammar.kind, grammar.text) == (kind, text)
    free = await api.complete("Say", response_format={"type": "text"})
    assert free.status == 200
    assert api.engine.sampling.grammar is None


async def test_answers_are_named_after_the_request(api: Any) -> None:
    by_header = await api.post("CreateCompletion", {"prompt": "a"}, headers={"x-request-id": "r-1"})
    assert by_header.json["id"] == "cmpl-r-1"
    by_body = await api.complete("a", request_id="mine")
    assert by_body.json["id"] == "cmpl-mine"
