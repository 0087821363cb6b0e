"""A text model whose engine says what a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.generation.messages import Event, Finish, Logprob, Started, Tokens
from headrace.runtimes.generation.parameters import Sampling
from headrace.server.errors import CancelledError, HeadraceError
from headrace.server.repository import lookup
from headrace.server.repository.lifecycle import Entry, Generation, VersionStatus
from headrace.server.repository.model import GenerationSettings, Model, SamplingDefaults, Task
from headrace.server.tasks.generation import GenerationOptions
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.statistics import ModelStatistics

WORDS = ["hello", " world", " stop", " the", " fox", " says", " Zürich", " 東京", " 👍"]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer with a few words of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    return tokenizer


@cache
def plain_tokenizer() -> Tokenizer:
    """The one that tests share: nobody changes it."""
    return byte_tokenizer()


def byte_ids(text: str) -> list[int]:
    """The shared tokenizer's ids of a text."""
    found: list[int] = plain_tokenizer().encode(text).ids
    return found


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that exists."""
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None
    return found


@dataclass
class ScriptedTicket:
    """A request; the test pushes its events, an error ends them."""

    sampling: Sampling
    prompt: list[int]
    closed: bool = False
    ended: list[int] = field(default_factory=list)
    queue: asyncio.Queue[Sequence[Event] | HeadraceError] = field(default_factory=asyncio.Queue)

    async def admitted(self) -> None:
        """The generator refuses in ``submit``."""

    async def events(self) -> Sequence[Event]:
        assert not self.closed, "the task waits for a ticket that it closed"
        news = await self.queue.get()
        if isinstance(news, HeadraceError):
            raise news
        return news

    def end(self, sample: int) -> None:
        assert not self.closed
        self.ended.append(sample)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.queue.put_nowait(CancelledError("the request was cancelled"))

    def push(self, *events: Event) -> None:
        self.queue.put_nowait(events)

    def fail(self, error: HeadraceError) -> None:
        self.queue.put_nowait(error)


class ScriptedGenerator:
    """Hands out tickets; with a ``script`` each answers at once: one event per token, then its end."""

    def __init__(self, script: Sequence[int] = (), finish: Finish = "length", *, eos: bool = False) -> None:
        self.script = list(script)
        self.finish: Finish = finish
        self.eos = eos
        self.cached = 0
        self.refuse: HeadraceError | None = None
        self.tickets: list[ScriptedTicket] = []
        self.statistics = GenerationStatistics(ModelStatistics(), 256)
        self.active = self.waiting = self.running = 0
        self.stats = ()

    def submit(self, prompt: NDArray[np.int32], sampling: Sampling) -> ScriptedTicket:
        if self.refuse is not None:
            raise self.refuse
        assert prompt.dtype == np.int32
        ticket = ScriptedTicket(sampling, prompt.tolist())
        self.tickets.append(ticket)
        if self.script:
            ticket.push(Started(1, self.cached))
            for place, token in enumerate(self.script):
                last = place == len(self.script) - 1
                for sample in range(sampling.n):
                    logprobs = () if sampling.logprobs is None else (described(token, sampling.logprobs),)
                    ticket.push(
                        Tokens(
                            1,
                            sample,
                            (token,),
                            logprobs,
                            self.finish if last else None,
                            eos=last and self.eos,
                        )
                    )
        return ticket


def options(**values: Any) -> GenerationOptions:
    """Options, greedy unless told otherwise; names of GenerationOptions and of Sampling."""
    own = {key: values.pop(key) for key in list(values) if key in GenerationOptions.__dataclass_fields__}
    return GenerationOptions(Sampling(**({"max_tokens": 200, "temperature": 0.0} | values)), **own)


def described(token: int, top: int) -> Logprob:
    """A logprob that tells which token it belongs to."""
    return Logprob(-token / 100, 1, tuple((other, -other / 100) for other in range(10, 10 + top)))


def scripted_model(generator: ScriptedGenerator, tokenizer: Tokenizer, **settings: Any) -> Model:
    """A loaded model with this engine."""
    values: dict[str, Any] = {
        "max_tokens": 256,
        "vocabulary_size": 512,
        "eos_ids": (tokenizer.token_to_id("<|im_end|>"),),
        "special_tokens": {"bos_token": "<s>", "eos_token": "<|im_end|>"},
        "chat_templates": {},
        "defaults": SamplingDefaults(),
    }
    return Model(
        name="llm",
        version=1,
        task=Task.GENERATE,
        platform="test",
        config=ModelConfig(name="llm"),
        max_batch_size=0,
        inputs=(),
        outputs=(),
        batcher=None,
        statistics=ModelStatistics(),
        generation=GenerationSettings(tokenizer, **(values | settings)),
        generator=generator,
    )


class Context:
    """The part of grpc's context that the service uses."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds

    def time_remaining(self) -> float | None:
        return self.seconds

    def invocation_metadata(self) -> tuple[()]:
        return ()


class OneModel:
    """A repository of one model."""

    def __init__(self, model: Model) -> None:
        entry = Entry(model.name, generation=Generation(versions={1: VersionStatus.ready(model)}))
        self.entries = {model.name: entry}

    def resolve(self, name: str, *tasks: Task) -> Model:
        return lookup.resolve(self.entries, name, tasks)
