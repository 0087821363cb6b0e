"""vLLM's own paths over a scripted engine, and ``/tokenize`` as the other families know it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody

from headrace.rest.v1 import vllm_pb2
from headrace.server.errors import HeadraceError
from headrace.server.repository.model import Task, TextSettings


class Call:
    """What the facades read of an RPC."""

    def __init__(self, model_id: str = "") -> None:
        self.headers: dict[str, str] = {}
        self.model_id = model_id
        self.model: Any = None
        self.protocol = "vllm"


Post = Callable[..., Awaitable[Any]]


@pytest.fixture
def post(api: Any) -> Post:
    """Call a method with a JSON body; a refused request answers its status and error object."""
    service = api.vllm()

    async def run(rpc: str, body: Any = None, **options: Any) -> Any:
        message = getattr(vllm_pb2, f"VllmService{rpc}Request")
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = message() if body is None else message(body=HttpBody(data=data))
        call: Any = Call(**options)
        try:
            reply = await getattr(service, rpc)(request, call)
        except HeadraceError as error:
            reply = service.error_reply(error, call)
            return reply.status, json.loads(reply.body)["error"]
        return json.loads(reply.body)

    return run


def encoder(api: Any) -> None:
    """Add an embedding model beside the one that generates."""
    from dataclasses import replace

    tokenizer = api.engine.tokenizer
    text = TextSettings(tokenizer, 16, prompts={"q": "ask: "})
    model = replace(api.model, name="enc", task=Task.EMBED, generation=None, generator=None, text=text)
    api.repository.add(model)


async def test_tokenize_a_prompt(api: Any, post: Post) -> None:
    ids = api.engine.tokenizer.encode("hé").ids
    answer = {"count": 3, "max_model_len": 512, "tokens": ids, "token_strs": None}
    assert await post("Tokenize", {"prompt": "hé"}) == answer
    named = await post("Tokenize", {"prompt": "hé", "return_token_strs": True, "model": "lm"})
    assert named["token_strs"] == ["h", "Ã", "©"]
    assert (await post("Tokenize", {"prompt": ""}))["count"] == 0
    special = await post("Tokenize", {"prompt": "<|im_end|>", "add_special_tokens": False})
    assert special["tokens"] == [258]


async def test_tokenize_with_an_encoder(api: Any, post: Post) -> None:
    """vLLM's forms are the tokenizer's own: no prompt of the model, no limit, nothing is too short."""
    from dataclasses import replace

    encoder(api)
    model = next(model for model in api.repository.ready_models() if model.name == "enc")
    template = {"default": "{% for message in messages %}<{{ message.content }}>{% endfor %}"}
    text = replace(model.text, default_prompt="q", chat_templates=template)
    api.repository.add(replace(model, name="prompted", text=text))
    ids = api.engine.tokenizer.encode("ab").ids
    assert (await post("Tokenize", {"prompt": "ab", "model": "prompted"}))["tokens"] == ids
    assert (await post("Tokenize", {"prompt": "", "model": "prompted"}))["count"] == 0
    assert (await post("Tokenize", {"prompt": "a" * 1000, "model": "prompted"}))["count"] == 1000
    status, error = await post("Tokenize", {"prompt": "a" * (16 * 250 + 1), "model": "prompted"})
    assert (status, error["param"]) == (400, "prompt")
    messages = [{"role": "user", "content": "ab"}]
    rendered = await post("Tokenize", {"messages": messages, "model": "prompted"})
    assert rendered["tokens"] == api.engine.tokenizer.encode("<ab>").ids
    status, error = await post("Tokenize", {"messages": messages, "model": "enc"})
    assert (status, error["message"]) == (400, "model 'enc' has no chat template")


async def test_tokenize_a_conversation(api: Any, post: Post) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    found = await post("Tokenize", {"messages": messages})
    await api.chat(messages=messages)
    assert found["tokens"] == api.engine.tickets[-1].prompt
    bare = await post("Tokenize", {"messages": messages, "add_generation_prompt": False})
    assert found["tokens"][: bare["count"]] == bare["tokens"]
    assert bare["count"] < found["count"]


async def test_detokenize_is_the_inverse(api: Any, post: Post) -> None:
    text = "<|im_start|>Grüße 😀"
    found = await post("Tokenize", {"prompt": text})
    assert await post("Detokenize", {"tokens": found["tokens"]}) == {"prompt": text}
    assert await post("Detokenize", {"tokens": []}) == {"prompt": ""}


async def test_inputs_of_a_model_that_generates(api: Any, post: Post) -> None:
    """Text Generation Inference's flat list; places count bytes."""
    ids = api.engine.tokenizer.encode("aé").ids
    found = await post("Tokenize", {"inputs": "aé", "parameters": {}})
    assert [entry["id"] for entry in found] == ids
    assert found[0] == {"id": ids[0], "text": "a", "start": 0, "stop": 1}
    assert found[1]["stop"] == 3


async def test_inputs_of_an_encoder(api: Any, post: Post) -> None:
    """Text Embeddings Inference's nested lists."""
    encoder(api)
    ids = api.engine.tokenizer.encode("ab").ids
    row = [
        {"id": ids[0], "text": "a", "special": False, "start": 0, "stop": 1},
        {"id": ids[1], "text": "b", "special": False, "start": 1, "stop": 2},
    ]
    assert await post("Tokenize", {"inputs": "ab"}, model_id="enc") == [row]
    assert await post("Tokenize", {"inputs": ["ab", "ab"], "model": "enc"}) == [row, row]
    (prompted,) = await post("Tokenize", {"inputs": "ab", "model": "enc", "prompt_name": "q"})
    assert "".join(entry["text"] for entry in prompted) == "ask: ab"
    assert (await post("Tokenize", {"prompt": "ab", "model": "enc"}))["tokens"] == ids


@pytest.mark.parametrize(("rpc", "body", "status"), [
    ("Tokenize", {}, 400),
    ("Tokenize", b"[]", 400),
    ("Tokenize", {"prompt": 5}, 400),
    ("Tokenize", {"prompt": "x" * 200_000}, 400),
    ("Tokenize", {"messages": []}, 400),
    ("Tokenize", {"prompt": "a", "model": "no"}, 404),
    ("Detokenize", {}, 400),
    ("Detokenize", {"tokens": [-1]}, 400),
    ("Detokenize", {"tokens": [999_999]}, 400),
    ("Detokenize", {"tokens": ["x"]}, 400),
])  # fmt: skip
async def test_bad_requests(post: Post, rpc: str, body: Any, status: int) -> None:
    found, error = await post(rpc, body)
    assert found == error["code"] == status


async def test_errors_of_inputs_are_those_of_the_family_that_knows_them(post: Post) -> None:
    expected = "Input validation error: `inputs` cannot be empty"
    assert await post("Tokenize", {"inputs": ""}) == (422, expected)


async def test_facts(api: Any, post: Post) -> None:
    assert await post("Version") == {"version": "1.2"}
    info = await post("TokenizerInfo")
    assert info["eos_token"] == "<|im_end|>"
    assert info["bos_token"] == "<bos>"
    assert "im_start" in info["chat_template"]


async def test_load_counts_running_requests(api: Any, post: Post) -> None:
    import asyncio

    assert await post("Load") == {"server_load": 0}
    api.engine.gate.clear()
    running = asyncio.ensure_future(api.complete("Say"))
    while not api.engine.tickets:
        await asyncio.sleep(0)
    assert await post("Load") == {"server_load": 1}
    api.engine.gate.set()
    await running
    assert await post("Load") == {"server_load": 0}
