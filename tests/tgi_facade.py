"""Text Generation Inference's facade over a model whose engine is a script, called as Envoy would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from rest_call import Context, post_streamed
from scripted_generation import OneModel, ScriptedGenerator, byte_tokenizer, scripted_model, token_id

from headrace.server.codecs.tgi_limits import TgiLimits
from headrace.server.errors import HeadraceError
from headrace.server.repository.model import SamplingDefaults
from headrace.server.services.call import Call
from headrace.server.services.tgi import TgiService
from headrace.server.services.tgi_requests import TgiRequests
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing

CONTEXT = 64
TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{%- if not loop.last or add_generation_prompt %}{{ '<|im_end|>\\n' }}{% endif -%}{% endfor -%}"
)


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
        status, pieces, sent, kind = await post_streamed(
            self.service, rpc, body, protocol="tgi", content_type=content_type, headers=headers
        )
        return Reply(status, b"".join(pieces), sent, kind)

    async def generate(self, inputs: Any = "hi", **parameters: Any) -> Reply:
        """``/generate`` with these parameters."""
        return await self.post("Generate", {"inputs": inputs, "parameters": parameters})

    async def stream(self, inputs: Any = "hi", **parameters: Any) -> Reply:
        """``/generate_stream`` with these parameters."""
        return await self.post("GenerateStream", {"inputs": inputs, "parameters": parameters})

    def call(self, headers: Mapping[str, str] | None = None) -> Call:
        """One RPC, for the methods that services share."""
        context: Any = Context(headers)
        return Call(context, "tgi")


async def refusal(awaitable: Any) -> HeadraceError:
    """The error that a request raises."""
    try:
        await awaitable
    except HeadraceError as error:
        return error
    raise AssertionError("it was not refused")
