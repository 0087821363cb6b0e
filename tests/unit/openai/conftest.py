"""A model whose engine is a script, and a way to call the generation facades as Envoy would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from rest_call import post_streamed
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.generation.messages import (
    Accepted,
    EngineStats,
    Event,
    Logprob,
    PromptLogprobs,
    Started,
    Tokens,
)
from headrace.runtimes.generation.parameters import Sampling
from headrace.server.errors import HeadraceError, QueueFullError
from headrace.server.repository import lookup
from headrace.server.repository.lifecycle import Entry, Generation, VersionStatus
from headrace.server.repository.model import GenerationSettings, Model, SamplingDefaults, Task
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.services.openai_generation import OpenaiGenerationService
from headrace.server.services.openai_responses import OpenaiResponsesService
from headrace.server.services.vllm import VllmService
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.statistics import ModelStatistics

SPECIAL = ["<bos>", "<|im_start|>", "<|im_end|>"]
CONTEXT = 512
TEMPLATE = (
    "{%- if tools %}{{ tools | tojson }}\n{% endif -%}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor -%}"
    "{{ '<|im_end|>\n' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"
)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token for each byte, and special ones after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


EOS = 258
"""The id of ``<|im_end|>``."""

Script = Callable[[Sequence[int], Sampling, int], str]


def logprob(token: int, top: int) -> Logprob:
    """Logprobs by which the chosen token is the likeliest and its neighbours follow."""
    best = tuple((other % EOS, -0.5 - place) for place, other in enumerate(range(token, token + top)))
    return Logprob(-0.5, 1, best)


class ScriptedTicket:
    """Answers one request with a script's text, a token in each event; ``steps`` opens the gate."""

    def __init__(self, engine: ScriptedGenerator, prompt: Sequence[int], sampling: Sampling) -> None:
        self.engine = engine
        self.prompt = list(prompt)
        self.sampling = sampling
        self.closed = False
        self.ended: set[int] = set()
        self._batches = iter(self._plan())

    def _plan(self) -> Iterator[list[Event]]:
        sampling, engine = self.sampling, self.engine
        if sampling.checked_by_engine:
            yield [Accepted(0)]
        first: list[Event] = [Started(0, engine.cached_tokens)]
        if sampling.prompt_logprobs is not None:
            rest = tuple(logprob(token, sampling.prompt_logprobs) for token in self.prompt[1:])
            first.append(PromptLogprobs(0, (None, *rest)))
        yield first
        texts = [engine.script(self.prompt, sampling, sample) for sample in range(sampling.n)]
        plans = [
            [
                *engine.tokenizer.encode(text, add_special_tokens=False).ids,
                *([] if sampling.ignore_eos else [EOS]),
            ]
            for text in texts
        ]
        longest = max(map(len, plans))
        if sampling.max_tokens == 0:
            yield [Tokens(0, sample, (), finish="length") for sample in range(sampling.n)]
            return
        for step in range(min(longest, sampling.max_tokens)):
            if engine.fail_at == step:
                raise engine.failure
            yield [self._tokens(sample, plan, step) for sample, plan in enumerate(plans) if step < len(plan)]

    def _tokens(self, sample: int, plan: list[int], step: int) -> Tokens:
        token = plan[step]
        wanted = self.sampling.logprobs
        eos = token == EOS
        stopped = token if token in self.sampling.stop_token_ids else None
        last = step == self.sampling.max_tokens - 1 or step == len(plan) - 1
        return Tokens(
            0,
            sample,
            (token,),
            () if wanted is None else (logprob(token, wanted),),
            "stop" if eos or stopped is not None else "length" if last else None,
            stopped,
            eos,
        )

    async def admitted(self) -> None:
        """The generator refuses in ``submit``."""

    async def events(self) -> Sequence[Event]:
        await self.engine.gate.wait()
        await asyncio.sleep(0)
        batch = next(self._batches)
        return [event for event in batch if not (isinstance(event, Tokens) and event.sample in self.ended)]

    def end(self, sample: int) -> None:
        """Send nothing more of a sample."""
        self.ended.add(sample)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.engine.active -= 1


class ScriptedGenerator:
    """An engine that says what ``script`` returns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.script: Script = lambda prompt, sampling, sample: "Hello wörld"
        self.tickets: list[ScriptedTicket] = []
        self.statistics = GenerationStatistics(ModelStatistics(), CONTEXT)
        self.stats: tuple[EngineStats, ...] = ()
        self.gate = asyncio.Event()
        self.gate.set()
        self.active = 0
        self.waiting = 0
        self.cached_tokens = 0
        self.full = False
        self.fail_at: int | None = None
        self.failure: HeadraceError = HeadraceError("failed")

    def submit(self, prompt: NDArray[np.int32], sampling: Sampling) -> ScriptedTicket:
        if self.full:
            raise QueueFullError("Exceeds maximum queue size")
        ticket = ScriptedTicket(self, prompt.tolist(), sampling)
        self.tickets.append(ticket)
        self.active += 1
        return ticket

    @property
    def running(self) -> int:
        return self.active - self.waiting

    @property
    def sampling(self) -> Sampling:
        """Parameters of the last request."""
        return self.tickets[-1].sampling

    @property
    def prompt(self) -> str:
        """Text of the last prompt, special tokens included."""
        return str(self.tokenizer.decode(self.tickets[-1].prompt, skip_special_tokens=False))


@dataclass
class Repository:
    """One model that generates; services resolve it as any other."""

    entries: dict[str, Entry] = field(default_factory=dict)
    created = 1_700_000_000

    def add(self, model: Model) -> None:
        generation = Generation(versions={1: VersionStatus.ready(model)})
        self.entries[model.name] = Entry(model.name, generation=generation)

    def resolve(self, name: str, *tasks: Task) -> Model:
        return lookup.resolve(self.entries, name, tasks)

    def ready_models(self) -> list[Model]:
        return lookup.ready(self.entries)


@dataclass
class Reply:
    """What a REST client would see."""

    status: int
    body: bytes
    headers: dict[str, str]
    content_type: str
    pieces: list[bytes]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of the stream's events; the last must be ``[DONE]`` and is left out."""
        assert self.status == 200
        assert self.content_type.startswith("text/event-stream")
        lines = self.body.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        assert all(line.startswith("data: ") and "\n" not in line for line in lines[:-1])
        return [orjson.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@dataclass
class Api:
    """The services over one scripted model."""

    engine: ScriptedGenerator
    model: Model
    repository: Repository
    generating: Generating

    async def post(
        self,
        rpc: str,
        body: Any,
        *,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
        service: Any = None,
    ) -> Reply:
        """Call a method with a JSON body: bytes as they are, anything else encoded."""
        if service is None:
            service = OpenaiGenerationService(self.repository, self.generating, "1.2")  # type: ignore[arg-type]
        status, pieces, sent, kind = await post_streamed(
            service, rpc, body, content_type=content_type, headers=headers
        )
        return Reply(status, b"".join(pieces), sent, kind, pieces)

    async def chat(self, body: dict[str, Any] | None = None, **fields: Any) -> Reply:
        messages = {"messages": [{"role": "user", "content": "Hi"}]}
        return await self.post("CreateChatCompletion", {**messages, **(body or {}), **fields})

    async def complete(self, prompt: Any = "Say", **fields: Any) -> Reply:
        return await self.post("CreateCompletion", {"prompt": prompt, **fields})

    async def respond(self, given: Any = "Hi", **fields: Any) -> Reply:
        service = OpenaiResponsesService(self.repository, self.generating, "1.2")  # type: ignore[arg-type]
        return await self.post("CreateResponse", {"input": given, **fields}, service=service)

    def vllm(self) -> VllmService:
        return VllmService(self.repository, self.generating, "1.2")  # type: ignore[arg-type]


@pytest.fixture
def tokenizing() -> Iterator[Tokenizing]:
    pool = Tokenizing(2)
    yield pool
    pool.close()


@pytest.fixture
async def api(tokenizing: Tokenizing) -> Api:
    tokenizer = byte_tokenizer()
    engine = ScriptedGenerator(tokenizer)
    settings = GenerationSettings(
        tokenizer=tokenizer,
        max_tokens=CONTEXT,
        vocabulary_size=tokenizer.get_vocab_size(),
        eos_ids=(EOS,),
        special_tokens={"bos_token": "<bos>", "eos_token": "<|im_end|>"},
        chat_templates={"default": TEMPLATE},
        defaults=SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20),
        tool_parser="hermes",
        max_samples=8,
    )
    statistics = ModelStatistics()
    model = Model(
        name="lm",
        version=1,
        task=Task.GENERATE,
        platform="test",
        config=ModelConfig(name="lm"),
        max_batch_size=0,
        inputs=(),
        outputs=(),
        batcher=Batcher(BatchingPolicy(max_rows=1), statistics),
        statistics=statistics,
        generation=settings,
        generator=engine,
    )
    repository = Repository()
    repository.add(model)
    return Api(engine, model, repository, Generating(tokenizing))
