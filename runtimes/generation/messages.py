"""Messages between the server and a generation worker; framed as ``headrace.runtimes.wire`` frames them.

Everything travels on the data socket: the engine looks at it between steps. The worker answers with one
:class:`Outputs` for each step that has something to tell.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.runtimes.generation.parameters import Sampling

Finish = Literal["stop", "length", "abort"]


class Add(msgspec.Struct, array_like=True, frozen=True, tag="add"):
    """Server → worker: generate. ``prompt`` is int32 little-endian token ids, at least one."""

    request: int
    prompt: bytes
    sampling: Sampling


class Abort(msgspec.Struct, array_like=True, frozen=True, tag="abort"):
    """Server → worker: nobody waits for this request any more, or for one sample of it. It is not answered.

    ``sample`` is the one that ends, -1 for all. One that ended already, or of which nothing was told yet, is
    passed over: so are those of a beam search and of a choice of the best, told when all have ended.
    """

    request: int
    sample: int = -1


class Logprob(msgspec.Struct, array_like=True, frozen=True):
    """One token's natural-log probability, its rank from 1, and the most likely alternatives, best first."""

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class Accepted(msgspec.Struct, array_like=True, frozen=True, tag="accepted"):
    """The request can run, its grammar is compiled; only sent where ``Sampling.checked_by_engine``."""

    request: int


class Started(msgspec.Struct, array_like=True, frozen=True, tag="started"):
    """The request is scheduled for the first time; sent before its first step runs.

    ``cached_tokens`` of its prompt came out of the prefix cache.
    """

    request: int
    cached_tokens: int


class PromptLogprobs(msgspec.Struct, array_like=True, frozen=True, tag="prompt-logprobs"):
    """Logprobs of the prompt's tokens; the first is None, for nothing precedes it. Sent before any token."""

    request: int
    logprobs: tuple[Logprob | None, ...]


class Tokens(msgspec.Struct, array_like=True, frozen=True, tag="tokens"):
    """New tokens of one sample.

    ``logprobs`` has an entry for each token when the request asked for them. ``finish`` is set with the
    sample's last tokens (there may be none); ``stop_token`` is the id that ended it, the last of
    ``token_ids``, when it is not one of the model's own end-of-sequence ids; ``eos`` says that it is one.
    """

    request: int
    sample: int
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()
    finish: Finish | None = None
    stop_token: int | None = None
    eos: bool = False


class Rejected(msgspec.Struct, array_like=True, frozen=True, tag="rejected"):
    """The request cannot be served; nothing else follows. ``kind`` is ``invalid`` or ``execution``."""

    request: int
    kind: Literal["invalid", "execution"]
    message: str


class StepStats(msgspec.Struct, array_like=True, frozen=True):
    """Totals of the steps of one kind: how many began, how many of them failed, and how long the others took.

    Times are nanoseconds: of whole steps, of the decoder in them, and of the choice of tokens after it.
    """

    steps: int = 0
    failures: int = 0
    ns: int = 0
    forward_ns: int = 0
    choice_ns: int = 0


class EngineStats(msgspec.Struct, array_like=True, frozen=True):
    """The state of an engine after a step, and totals since it started.

    ``running`` and ``waiting`` count sequences; ``free_slots`` sequences that could run beside them. Steps
    that computed any part of a prompt are counted in ``prefill``, the others in ``decode``.
    """

    running: int = 0
    waiting: int = 0
    free_slots: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    prefill: StepStats = StepStats()
    decode: StepStats = StepStats()


Event = Accepted | Started | PromptLogprobs | Tokens | Rejected


class Outputs(msgspec.Struct, array_like=True, frozen=True, tag="outputs"):
    """Worker → server: what happened in a step (or while requests were taken in)."""

    events: tuple[Event, ...]
    stats: EngineStats


GenerationRequest = Add | Abort
