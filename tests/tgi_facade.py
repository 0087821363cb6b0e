"""Text Generation Inference's facade over a model whose engine is a script, called as Envoy would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson
from google.api.httpbody_pb2 import HttpBody
from scripted_generation import OneModel, ScriptedGenerator, byte_tokenizer, scripted_model, token_id

from headrace.server.codecs.tgi_limits import TgiLimits
from headrace.server.errors import HeadraceError
from headrace.server.interceptors import Interceptors
from headrace.server.repository.model import SamplingDefaults
from headrace.server.services.call import Call
from headrace.server.services.tgi import TgiService
from headrace.server.services.tgi_requests import TgiRequests
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.requests import RequestMetrics

CONTEXT = 64
TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- if not loop.last or add_generation_prompt %}{{ '<|im_end|>\\n' }}{% endif -%}{% endfor -%}"
)


class Context:
    """The part of grpc's context that the interceptors and :class:`Call` use."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = tuple(headers.items())
        self.sent: dict[str, str] = {}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._headers

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str]]) -> None:
        self.sent |= dict(metadata)


@dataclass
class Reply:
    """What a REST client would see."""

    status: int
    body: bytes
    headers: dict[str, str]
    content_type: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, text and type of a refusal, which has nothing else."""
        found = self.json
        assert list(found) == ["error", "error_type"]
        return self.status, found["error"], found["error_type"]

    @property
    def events(self) -> list[Any]:
        """The data of the stream's events."""
        assert (self.status, self.content_type) == (200, "text/event-stream")
        *lines, last = self.body.decode().split("\n\n")
        assert last == ""
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        return [orjson.loads(line.removeprefix("data: ")) for line in lines]


@dataclass
class Facade:
    """The service, and the engine behind it: ``words`` are what it says, token by token."""

    tokenizing: Tokenizing
    limits: TgiLimits = field(default_factory=TgiLimits)

    def __post_init__(self) -> None:
        self.tokenizer = byte_tokenizer()
        self.engine = ScriptedGenerator()
        self.say("hello", " world")
        self.model = scripted_model(
            self.engine,
            self.tokenizer,
            max_tokens=CONTEXT,
            chat_templates={"default": TEMPLATE},
            defaults=SamplingDefaults(temperature=0.3, top_k=7, repetition_penalty=1.3),
        )
        self.generating = Generating(self.tokenizing)
        repository: Any = OneModel(self.model)
        self.requests = TgiRequests(repository, self.generating, self.limits, "1.2")
        self.service = TgiService(self.requests, self.generating)

    def say(self, *words: str, eos: bool = True) -> None:
        """Let the engine say these words, each its tokens, and end the sequence."""
        ids = [token for word in words for token in self.tokenizer.encode(word).ids]
        if eos:
            ids.append(token_id(self.tokenizer, "<|im_end|>"))
        self.engine.script = ids
        self.engine.eos, self.engine.finish = eos, "stop" if eos else "length"

    @property
    def sampling(self) -> Any:
        """Parameters of the last request, as the engine sees them."""
        return self.engine.tickets[-1].sampling

    async def post(
        self,
        rpc: str,
        body: Any,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Call a method with a JSON body; bytes are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        context = Context(headers or {})
        handle = Interceptors(RequestMetrics()).facade_stream(
            "tgi", rpc, getattr(self.service, rpc), self.service
        )
        request: Any = SimpleNamespace(body=HttpBody(content_type=content_type, data=data))
        replies = [reply async for reply in handle(request, context)]  # type: ignore[arg-type]
        status = int(context.sent.pop("x-http-status", "200"))
        return Reply(status, b"".join(reply.data for reply in replies), context.sent, replies[0].content_type)

    async def generate(self, inputs: Any = "hi", **parameters: Any) -> Reply:
        """``/generate`` with these parameters."""
        return await self.post("Generate", {"inputs": inputs, "parameters": parameters})

    async def stream(self, inputs: Any = "hi", **parameters: Any) -> Reply:
        """``/generate_stream`` with these parameters."""
        return await self.post("GenerateStream", {"inputs": inputs, "parameters": parameters})

    def call(self, headers: Mapping[str, str] | None = None) -> Call:
        """One RPC, for the methods that services share."""
        context: Any = Context(headers or {})
        return Call(context, "tgi")


async def refusal(awaitable: Any) -> HeadraceError:
    """The error that a request raises."""
    try:
        await awaitable
    except HeadraceError as error:
        return error
    raise AssertionError("it was not refused")
