"""What a contender is given and what it answers; standard library only, as every contender imports it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Setup:
    """How a contender is loaded.

    Attributes:
        model: file or folder of the model in the contender's form.
        threads: that it may compute with.
        streams: most requests at once.
        tokens: longest sequence, prompt and output together.
        options: what only this contender understands.
    """

    model: str
    threads: int
    streams: int
    tokens: int
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """Requests to be continued greedily, end-of-sequence ignored.

    Attributes:
        prompts: token ids of each request.
        new_tokens: tokens that each is to be continued by.
        callers: how many ask at once; each takes the next request as soon as its last one is answered.
        gaps: seconds after the beginning at which each caller asks first; empty: all at once.
    """

    prompts: list[list[int]]
    new_tokens: list[int]
    callers: int
    gaps: list[float]

    @property
    def uniform(self) -> bool:
        """Whether a static batch can do it: all at once, and all of the same lengths."""
        alike = len({len(prompt) for prompt in self.prompts}) == len(set(self.new_tokens)) == 1
        return alike and not any(self.gaps) and self.callers >= len(self.prompts)


@dataclass(slots=True)
class Trace:
    """What happened, in seconds of the monotonic clock, which all processes of a machine share.

    Attributes:
        begin: when the first request was handed over.
        sent: when each was.
        times: when each token of each request was there.
        tokens: the tokens; empty lists where the contender does not tell them.
        errors: what went wrong, a text for each request that failed.
    """

    begin: float
    sent: list[float]
    times: list[list[float]]
    tokens: list[list[int]]
    errors: list[str]

    @classmethod
    def empty(cls, requests: int) -> Self:
        """Return the trace of ``requests`` requests that begin now."""
        now = time.monotonic()
        return cls(now, [now] * requests, [[] for _ in range(requests)], [[] for _ in range(requests)], [])

    def step(self, tokens: list[int]) -> None:
        """Note that every request got one more token now."""
        now = time.monotonic()
        for times, ids, token in zip(self.times, self.tokens, tokens, strict=True):
            times.append(now)
            ids.append(token)

    def data(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


async def drive(work: Work, ask: Callable[[int, Trace], Awaitable[None]]) -> Trace:
    """Let the callers ask; ``ask(index, trace)`` does one request and notes its tokens in the trace."""
    trace = Trace.empty(len(work.prompts))
    numbers = count()
    gaps = work.gaps or [0.0] * work.callers

    async def call(gap: float) -> None:
        await asyncio.sleep(gap)
        while (number := next(numbers)) < len(work.prompts):
            trace.sent[number] = time.monotonic()
            try:
                await ask(number, trace)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is a failed request
                trace.errors.append(f"{type(error).__name__}: {error}"[:500])

    await asyncio.gather(*(call(gap) for gap in gaps[: work.callers]))
    return trace
