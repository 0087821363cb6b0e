"""Text Generation Inference's native routes over plain HTTP, through Envoy, with a real model.

One test for each row of the feature list (T15 to T49, M27, M28), named after it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from tokenizers import Tokenizer

MODEL = "smollm2"
PROMPT = "The capital of France is"
INVALID = "Input validation error: "


async def post(http: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with http.post(path, json=body) as answer:
        assert answer.content_type == "application/json"
        return answer.status, await answer.json()


async def generate(http: aiohttp.ClientSession, inputs: str = PROMPT, **parameters: Any) -> Any:
    parameters.setdefault("max_new_tokens", 8)
    status, found = await post(http, "/generate", {"inputs": inputs, "parameters": parameters})
    assert status == 200, found
    return found


async def stream(http: aiohttp.ClientSession, inputs: str = PROMPT, **parameters: Any) -> list[Any]:
    body = {"inputs": inputs, "parameters": {"max_new_tokens": 8, **parameters}}
    async with http.post("/generate_stream", json=body) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        text = await answer.text()
    *lines, last = text.split("\n\n")
    assert last == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != ":"]


async def refused(http: aiohttp.ClientSession, **parameters: Any) -> str:
    """The text by which both routes refuse these parameters."""
    texts = set()
    for path in ("/generate", "/generate_stream"):
        status, found = await post(http, path, {"inputs": "hi", "parameters": parameters})
        assert status == 422
        assert list(found) == ["error", "error_type"]
        assert found["error_type"] == "validation"
        texts.add(found["error"])
    (text,) = texts
    assert isinstance(text, str)
    return text.removeprefix(INVALID)


async def test_t15_generate(http: aiohttp.ClientSession) -> None:
    found = await generate(http, "My name is Olivier and I", max_new_tokens=5)
    assert list(found) == ["generated_text"]
    assert found["generated_text"]


async def test_t15_the_default_model_is_not_the_only_one(http: aiohttp.ClientSession) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    _, expected = await post(http, "/generate", body)
    assert await post(http, f"/models/{MODEL}/proxy/generate", body) == (200, expected)
    assert await post(http, "/generate", {**body, "model": MODEL}) == (200, expected)
    status, _ = await post(http, "/models/minilm/proxy/generate", body)
    assert status == 422
    status, _ = await post(http, "/models/none-such/proxy/generate", body)
    assert status == 404


@pytest.mark.parametrize("prompt", [PROMPT, "Count: 1, 2, 3,", "Ünïcödé 東京 👍:"])
async def test_t15_t16_greedy_text_is_that_of_the_openai_route(
    http: aiohttp.ClientSession, prompt: str
) -> None:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 12}
    _, found = await post(http, "/v1/completions", body)
    expected = found["choices"][0]["text"]
    assert (await generate(http, prompt, max_new_tokens=12))["generated_text"] == expected
    events = await stream(http, prompt, max_new_tokens=12)
    assert events[-1]["generated_text"] == expected
    told = "".join(event["token"]["text"] for event in events if not event["token"]["special"])
    assert told == expected


async def test_t16_generate_stream(http: aiohttp.ClientSession) -> None:
    events = await stream(http, details=True)
    assert [event["index"] for event in events] == list(range(1, 9))
    for event in events:
        assert list(event) == ["index", "token", "generated_text", "details"]
        assert list(event["token"]) == ["id", "text", "logprob", "special"]
        assert event["token"]["logprob"] <= 0
    assert [event["generated_text"] is None for event in events] == [True] * 7 + [False]
    assert events[-1]["details"] == {
        "finish_reason": "length",
        "generated_tokens": 8,
        "seed": None,
        "input_length": 5,
    }
    answer = await generate(http, details=True)
    assert [token["id"] for token in answer["details"]["tokens"]] == [e["token"]["id"] for e in events]


async def test_t16_who_leaves_frees_the_slot(http: aiohttp.ClientSession) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 4000}}
    async with http.post("/generate_stream", json=body) as answer:
        assert answer.status == 200
        assert await answer.content.readline()
    for _ in range(600):
        async with http.get("/load") as load:
            if (await load.json())["server_load"] == 0:
                return
        await asyncio.sleep(0.05)
    pytest.fail("the request goes on although nobody waits for it")


async def test_t19_health(http: aiohttp.ClientSession) -> None:
    async with http.get("/health") as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_t22_tokenize(http: aiohttp.ClientSession, tokenizer: Tokenizer) -> None:
    text = "Grüße, world"
    _, tokens = await post(http, "/tokenize", {"inputs": text})
    assert [token["id"] for token in tokens] == tokenizer.encode(text).ids
    raw = text.encode()
    assert all(raw[token["start"] : token["stop"]].decode() == token["text"] for token in tokens)
    assert tokens[-1]["stop"] == len(raw)
    assert await post(http, "/tokenize", {"inputs": ""}) == (
        422,
        {"error": f"{INVALID}`inputs` cannot be empty", "error_type": "validation"},
    )


async def test_t22_chat_tokenize(http: aiohttp.ClientSession, tokenizer: Tokenizer) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Grüße"}]}
    status, found = await post(http, "/chat_tokenize", body)
    assert status == 200
    text = found["templated_text"]
    assert "Grüße" in text
    ids = [token["id"] for token in found["tokenize_response"]]
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    _, expected = await post(http, "/tokenize", body)
    assert ids == expected["tokens"]


async def test_t25_validation(http: aiohttp.ClientSession) -> None:
    assert await refused(http, temperature=0) == "`temperature` must be strictly positive"
    async with http.post("/generate", data=b"{", headers={"content-type": "application/json"}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"].startswith("Failed to parse the request body as JSON: ")
    async with http.post("/generate", data=b"{}", headers={"content-type": "text/plain"}) as answer:
        assert answer.status == 415
        assert "Content-Type" in (await answer.json())["error"]
    status, _ = await post(http, "/generate", {})
    assert status == 422


async def test_t26_headers(http: aiohttp.ClientSession) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 3}}
    async with http.post("/generate", json=body) as answer:
        headers = answer.headers
    assert headers["x-compute-type"] in {"cpu", "cuda"}
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert (headers["x-prompt-tokens"], headers["x-generated-tokens"]) == ("5", "3")
    for name in ("total", "validation", "queue", "inference"):
        assert headers[f"x-{name}-time"].isdecimal()
    assert headers["x-time-per-token"].isdecimal()
    assert float(headers["x-compute-time"]) > 0
    async with http.post("/generate_stream", json=body) as answer:
        assert answer.headers["x-compute-characters"] == str(len(PROMPT))
        assert answer.headers["x-compute-type"] == headers["x-compute-type"]
        assert answer.headers["x-accel-buffering"] == "no"


async def test_t31_best_of(http: aiohttp.ClientSession) -> None:
    found = await generate(http, best_of=2, do_sample=True, details=True)
    (other,) = found["details"]["best_of_sequences"]
    means = [
        sum(token["logprob"] for token in sequence["tokens"]) / sequence["generated_tokens"]
        for sequence in (found["details"], other)
    ]
    assert means[0] >= means[1]
    assert found["details"]["seed"] != other["seed"]
    again = await generate(http, do_sample=True, seed=found["details"]["seed"])
    assert again["generated_text"] == found["generated_text"]
    status, answer = await post(http, "/generate", {"inputs": "hi", "parameters": {"best_of": 3}})
    assert (status, answer["error"]) == (422, f"{INVALID}`best_of` must be > 0 and <= 2. Given: 3")


async def test_t32_decoder_input_details(http: aiohttp.ClientSession, tokenizer: Tokenizer) -> None:
    found = await generate(http, decoder_input_details=True)
    prefill = found["details"]["prefill"]
    assert [token["id"] for token in prefill] == tokenizer.encode(PROMPT).ids
    assert prefill[0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in prefill[1:])
    assert "".join(token["text"] for token in prefill) == PROMPT
    body = {"inputs": "hi", "parameters": {"decoder_input_details": True}}
    status, answer = await post(http, "/generate_stream", body)
    assert status == 422
    assert answer["error"].endswith("`decoder_input_details` == true is not supported when streaming tokens")


async def test_t33_details(http: aiohttp.ClientSession) -> None:
    assert "details" not in await generate(http, details=False)
    details = (await generate(http, details=True))["details"]
    assert list(details) == ["finish_reason", "generated_tokens", "seed", "prefill", "tokens"]
    assert details["generated_tokens"] == len(details["tokens"]) == 8


async def test_t34_do_sample(http: aiohttp.ClientSession) -> None:
    greedy = await generate(http)
    assert await generate(http, do_sample=False) == await generate(http, temperature=1.0) == greedy
    assert (await generate(http, do_sample=True, details=True))["details"]["seed"] is not None


async def test_t35_repetition_penalty(http: aiohttp.ClientSession) -> None:
    prompt = "Count: 1, 2, 3,"
    plain = await generate(http, prompt)
    assert await generate(http, prompt, repetition_penalty=1.0) == plain
    assert await generate(http, prompt, repetition_penalty=5.0) != plain
    assert (await generate(http, repetition_penalty=1e-6))["generated_text"]
    assert await refused(http, repetition_penalty=0) == "`repetition_penalty` must be strictly positive"


async def test_t36_frequency_penalty(http: aiohttp.ClientSession) -> None:
    for legal in (-2, 2):
        assert await generate(http, frequency_penalty=legal)
    assert await refused(http, frequency_penalty=2.5) == "`frequency_penalty` must be >= -2.0 and <= 2.0"


async def test_t37_return_full_text(http: aiohttp.ClientSession) -> None:
    bare = (await generate(http, return_full_text=False))["generated_text"]
    assert (await generate(http, return_full_text=True))["generated_text"] == PROMPT + bare
    assert (await stream(http, return_full_text=True))[-1]["generated_text"] == PROMPT + bare


async def test_t38_seed(http: aiohttp.ClientSession) -> None:
    texts = {
        (await generate(http, do_sample=True, seed=seed, max_new_tokens=12))["generated_text"]
        for seed in (2**64 - 1, 2**64 - 1)
    }
    assert len(texts) == 1
    assert (await stream(http, do_sample=True, seed=3, details=True))[-1]["details"]["seed"] == 3
    assert await refused(http, seed=-1) == "`seed` must be >= 0. Given: -1"


async def test_t39_temperature(http: aiohttp.ClientSession) -> None:
    cold = await generate(http, temperature=1e-9)
    assert cold == await generate(http)
    assert await generate(http, temperature=1000.0)
    assert await refused(http, temperature=-1) == "`temperature` must be strictly positive"


async def test_t40_top_k(http: aiohttp.ClientSession) -> None:
    assert await generate(http, top_k=1) == await generate(http)
    assert await generate(http, top_k=2**31 - 1)
    assert await refused(http, top_k=0) == "`top_k` must be strictly positive"


async def test_t41_top_p(http: aiohttp.ClientSession) -> None:
    assert await generate(http, top_p=1e-6) == await generate(http, top_p=1.0)
    assert await refused(http, top_p=1.5) == "`top_p` must be > 0.0 and < 1.0"


async def test_t42_typical_p(http: aiohttp.ClientSession) -> None:
    assert await generate(http, typical_p=0.5)
    assert await generate(http, typical_p=1.0) == await generate(http)
    assert await refused(http, typical_p=0) == "`typical_p` must be > 0.0 and < 1.0"


async def test_t43_truncate(http: aiohttp.ClientSession, tokenizer: Tokenizer) -> None:
    long = "Nothing to see here. " * 40 + PROMPT
    kept = tokenizer.encode(long).ids[-5:]
    body = {"model": MODEL, "prompt": kept, "temperature": 0, "max_tokens": 8}
    _, expected = await post(http, "/v1/completions", body)
    found = await generate(http, long, truncate=5, decoder_input_details=True)
    assert found["generated_text"] == expected["choices"][0]["text"]
    assert [token["id"] for token in found["details"]["prefill"]] == kept
    text = await refused(http, truncate=0)
    assert text.startswith("`truncate` must be strictly positive and less than ")


async def test_t44_max_new_tokens(http: aiohttp.ClientSession) -> None:
    assert (await generate(http, max_new_tokens=1, details=True))["details"]["generated_tokens"] == 1
    assert await refused(http, max_new_tokens=0) == "`max_new_tokens` must be strictly positive"
    text = await refused(http, max_new_tokens=2**32 - 1)
    assert text.startswith("`inputs` tokens + `max_new_tokens` must be <= ")
    assert text.endswith("Given: 1 `inputs` tokens and 4294967295 `max_new_tokens`")


async def test_t45_stop(http: aiohttp.ClientSession) -> None:
    found = await generate(http, "Count: 1, 2, 3,", max_new_tokens=40, stop=["6,", "9"], details=True)
    assert found["generated_text"].endswith("6,")
    assert found["details"]["finish_reason"] == "stop_sequence"
    assert "".join(token["text"] for token in found["details"]["tokens"]) == found["generated_text"]
    assert await refused(http, stop=[*"abcde"]) == "`stop` supports up to 4 stop sequences. Given: 5"


async def test_t46_watermark(http: aiohttp.ClientSession) -> None:
    assert await generate(http, watermark=False) == await generate(http)
    assert (await generate(http, watermark=True, max_new_tokens=24)) != await generate(
        http, max_new_tokens=24
    )


async def test_t47_top_n_tokens(http: aiohttp.ClientSession) -> None:
    details = (await generate(http, top_n_tokens=3, details=True))["details"]
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert len(top) == 3
        assert top[0] == token  # greedy
        assert top == sorted(top, key=lambda other: -other["logprob"])
    assert [event["top_tokens"] for event in await stream(http, top_n_tokens=3)] == details["top_tokens"]
    assert await refused(http, top_n_tokens=6) == "`top_n_tokens` must be >= 0 and <= 5. Given: 6"


async def test_t48_grammar(http: aiohttp.ClientSession) -> None:
    schema = {"properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["n"]}
    for grammar in (
        {"type": "json", "value": schema},
        {"type": "json_object", "value": json.dumps(schema)},
        {"type": "json_schema", "value": {"name": "x", "schema": schema}},
    ):
        text = (await generate(http, max_new_tokens=40, grammar=grammar))["generated_text"]
        found = json.loads(text)
        assert list(found) == ["n"]
        assert 0 <= found["n"] <= 99
    digits = await generate(http, grammar={"type": "regex", "value": "[0-9]{4}"}, max_new_tokens=20)
    assert digits["generated_text"].isdecimal()
    assert len(digits["generated_text"]) == 4
    assert (await refused(http, grammar={"type": "regex", "value": "["})).startswith("grammar is not valid: ")
    text = await refused(http, grammar={"type": "json", "value": {}})
    assert text == "grammar is not valid: Grammar must have a 'properties' field"


async def test_t49_adapter_id(http: aiohttp.ClientSession) -> None:
    assert await generate(http, adapter_id=None) == await generate(http)
    assert await refused(http, adapter_id="mine") == "the model has no adapter 'mine'"


async def test_four_at_once_say_the_same(http: aiohttp.ClientSession) -> None:
    found = await asyncio.gather(*(generate(http, details=True) for _ in range(4)))
    texts = {answer["generated_text"] for answer in found}
    ids = {tuple(token["id"] for token in answer["details"]["tokens"]) for answer in found}
    assert len(texts) == len(ids) == 1


async def test_m27_a_body_with_a_prompt_is_vllms(http: aiohttp.ClientSession) -> None:
    _, expected = await post(
        http, "/v1/completions", {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    )
    text = PROMPT + expected["choices"][0]["text"]
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    assert await post(http, "/generate", body) == (200, {"text": [text]})
    assert await post(http, "/generate", {**body, "inputs": "not this"}) == (200, {"text": [text]})
    status, _ = await post(http, "/generate", {"max_tokens": 3})
    assert status == 422


async def test_m28_vllms_stream(http: aiohttp.ClientSession) -> None:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    _, whole = await post(http, "/generate", body)
    async with http.post("/generate", json={**body, "stream": True}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        *pieces, rest = (await answer.read()).split(b"\0")
    assert rest == b""
    texts = [json.loads(piece)["text"][0] for piece in pieces]
    assert len(texts) > 1
    assert all(text.startswith(PROMPT) for text in texts)
    assert texts == sorted(texts, key=len)
    assert {"text": [texts[-1]]} == whole
