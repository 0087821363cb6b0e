"""What users of vLLM's server rely on, asked over plain HTTP: streams, limits, tokens, cancellation."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer

MODEL = "smollm2"


async def post(http: aiohttp.ClientSession, path: str, **fields: Any) -> tuple[int, Any]:
    async with http.post(path, json={"model": MODEL, **fields}) as answer:
        return answer.status, await answer.json()


async def complete(http: aiohttp.ClientSession, prompt: Any, **fields: Any) -> Any:
    status, answer = await post(http, "/v1/completions", prompt=prompt, temperature=0, **fields)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("count", [None, 0, 5])
async def test_counts_of_logprobs(http: aiohttp.ClientSession, count: int | None) -> None:
    logprobs = (await complete(http, "Hello", max_tokens=4, logprobs=count))["choices"][0]["logprobs"]
    if count is None:
        assert logprobs is None
        return
    assert {len(top) for top in logprobs["top_logprobs"]} <= {max(1, count), count + 1}
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == len(logprobs["token_logprobs"]) == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_logprobs(http: aiohttp.ClientSession, stream: bool) -> None:
    status, answer = await post(http, "/v1/completions", prompt="Hello", logprobs=21, stream=stream)
    assert status == 400
    assert answer["error"]["param"] == "logprobs"
    assert await complete(http, "Hello", max_tokens=1)


@pytest.mark.parametrize("count", [0, 1])
async def test_echo_with_logprobs(http: aiohttp.ClientSession, tokenizer: Tokenizer, count: int) -> None:
    ids = tokenizer.encode("Hello, my name is").ids
    answer = await complete(http, ids, max_tokens=1, echo=True, logprobs=count)
    (choice,) = answer["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("Hello, my name is")
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert all(1 <= len(top) <= count + 1 for top in logprobs["top_logprobs"][1:])
    assert logprobs["text_offset"][0] == 0


@pytest.mark.parametrize("side", ["left", "right"])
async def test_truncation(http: aiohttp.ClientSession, tokenizer: Tokenizer, side: str) -> None:
    text = "one two three four five six seven eight"
    ids = tokenizer.encode(text).ids
    answer = await complete(
        http, text, max_tokens=1, truncate_prompt_tokens=4, truncation_side=side, return_token_ids=True
    )
    assert answer["choices"][0]["prompt_token_ids"] == (ids[-4:] if side == "left" else ids[:4])


async def test_stop_texts(http: aiohttp.ClientSession) -> None:
    free = (await complete(http, "One, two, three,", max_tokens=12))["choices"][0]["text"]
    assert "," in free
    cut = (await complete(http, "One, two, three,", max_tokens=12, stop=[","] + ["§"] * 15))["choices"][0]
    assert cut["text"] == free.partition(",")[0]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", ",")


async def test_min_tokens_and_ignore_eos(http: aiohttp.ClientSession) -> None:
    messages = [{"role": "user", "content": "Say hi."}]
    fields = {"messages": messages, "temperature": 0, "ignore_eos": True, "max_tokens": 40}
    status, answer = await post(http, "/v1/chat/completions", **fields)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 40)
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_beam_search(http: aiohttp.ClientSession) -> None:
    answer = await complete(http, ["The sky is"] * 2, n=2, max_tokens=6, use_beam_search=True)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[0] == texts[2] != texts[1] == texts[3]


async def test_prompt_logprobs(http: aiohttp.ClientSession, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello, my name is").ids
    answer = await complete(http, ids, max_tokens=1, prompt_logprobs=2)
    found = answer["choices"][0]["prompt_logprobs"]
    assert found[0] is None
    for token, entry in zip(ids[1:], found[1:], strict=True):
        assert entry[str(token)]["decoded_token"] == tokenizer.decode([token])
        assert 2 <= len(entry) <= 3


async def test_too_long_a_prompt(http: aiohttp.ClientSession) -> None:
    status, answer = await post(http, "/v1/completions", prompt=[1] * 9000)
    assert status == 400
    assert "Please reduce the length of the input prompt" in answer["error"]["message"]
    assert "context_length_exceeded" in answer["error"]["message"]


async def test_tokenize_and_back(http: aiohttp.ClientSession, tokenizer: Tokenizer) -> None:
    text = "Grüße, 世界 😀"
    status, found = await post(http, "/tokenize", prompt=text)
    assert (status, found["tokens"]) == (200, tokenizer.encode(text).ids)
    assert (found["count"], found["max_model_len"], found["token_strs"]) == (len(found["tokens"]), 8192, None)
    _, named = await post(http, "/tokenize", prompt=text, return_token_strs=True)
    assert named["token_strs"] == tokenizer.encode(text).tokens
    assert await post(http, "/detokenize", tokens=found["tokens"]) == (200, {"prompt": text})


async def test_tokenized_conversation(http: aiohttp.ClientSession) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    _, found = await post(http, "/tokenize", messages=messages)
    _, answer = await post(
        http, "/v1/chat/completions", messages=messages, max_tokens=1, return_token_ids=True
    )
    assert answer["prompt_token_ids"] == found["tokens"]


async def test_tokenize_of_the_other_families(http: aiohttp.ClientSession) -> None:
    async with http.post("/tokenize", json={"inputs": "Hi", "model": MODEL}) as answer:
        (token,) = await answer.json()
    assert (token["text"], token["start"], token["stop"]) == ("Hi", 0, 2)


async def test_content_types(http: aiohttp.ClientSession) -> None:
    body = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 1}).encode()
    for kind, status in (("application/json; charset=utf-8", 200), ("text/plain", 400)):
        async with http.post("/v1/completions", data=body, headers={"content-type": kind}) as answer:
            assert answer.status == status
            assert answer.content_type == "application/json"


async def test_server_facts(http: aiohttp.ClientSession) -> None:
    from importlib.metadata import version

    for path, expected in (("/version", {"version": version("headrace")}), ("/load", {"server_load": 0})):
        async with http.get(path) as answer:
            assert (answer.status, await answer.json()) == (200, expected)
    for method in ("GET", "POST"):
        async with http.request(method, "/ping") as answer:
            assert answer.status == 200
    async with http.get(f"/models/{MODEL}/proxy/tokenizer_info") as answer:
        assert (await answer.json())["eos_token"] == "<|im_end|>"


async def load(http: aiohttp.ClientSession) -> int:
    async with http.get("/load") as answer:
        return int((await answer.json())["server_load"])


async def test_a_stream_arrives_while_it_is_made_and_ends_with_its_reader(
    http: aiohttp.ClientSession,
) -> None:
    fields = {"model": MODEL, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    async with http.post("/v1/completions", json=fields) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-request-id"]
        for _ in range(3):
            assert (await answer.content.readuntil(b"\n\n")).startswith(b'data: {"id":"cmpl-')
        assert await load(http) == 1
    async with asyncio.timeout(30):
        while await load(http):
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_callers_who_leave_free_the_engine(server: Any) -> None:
    fields = {"model": MODEL, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=connector) as many:

        async def leave() -> None:
            async with many.post("/v1/completions", json=fields):
                pass

        tasks = [asyncio.ensure_future(leave()) for _ in range(200)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(60):
            answer = await complete(many, "Hello", max_tokens=10)
            assert answer["usage"]["completion_tokens"] <= 10
            while await load(many):
                await asyncio.sleep(0.05)
