"""A decoder for tests that chooses tokens itself, and computes as a device does: later, and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from hash_decoder import HashDecoder
from numpy.typing import NDArray

from headrace.runtimes.generation.base import Chunk, DeviceSampling, Draw, Outcome
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.truncation import truncate


class DrawingDecoder:
    """Has a ``HashDecoder`` compute, which checks what is asked of it.

    ``lazy``: only when something is read, and what was asked before it; else at once. ``ahead`` counts the
    steps that were begun while one had not been read, ``wasted`` those that were never read.
    """

    platform = "hash"

    def __init__(self, inner: HashDecoder, sampling: DeviceSampling = "ahead", *, lazy: bool = True) -> None:
        self.inner = inner
        self.sampling = sampling
        self.together = inner.together
        self.vocabulary_size = inner.vocabulary_size
        self.ahead = 0
        self.begun: list[_Step] = []
        self._lazy = lazy
        self._asked: deque[Callable[[], None]] = deque()

    @property
    def wasted(self) -> int:
        return sum(not step.told for step in self.begun)

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        assert self.sampling == "host", "steps are to be begun and read"
        return self.inner.step(chunks)

    def begin(
        self, chunks: Sequence[Chunk], draws: Sequence[Draw | None], follows: Sequence[int] | None = None
    ) -> _Step:
        before = self.begun[-1] if self.begun else None
        if follows is not None:
            assert before is not None
            assert not before.told
            assert len(set(follows)) == len(follows) == len(chunks)
            self.ahead += 1
        copies = [replace(chunk, tokens=list(chunk.tokens), blocks=list(chunk.blocks)) for chunk in chunks]
        step = _Step(self, copies, draws, follows, before)
        self.begun.append(step)
        self._ask(step.compute)
        if step.error is not None:
            raise step.error
        return step

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        self._ask(partial(self.inner.copy, source, target, [*source_blocks], [*target_blocks], tokens))

    def release(self, slot: int) -> None:
        self._ask(partial(self.inner.release, slot))

    def prepare(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def finish(self) -> None:
        """Do all that was asked."""
        while self._asked:
            self._asked.popleft()()

    def _ask(self, work: Callable[[], None]) -> None:
        self._asked.append(work)
        if not self._lazy:
            self.finish()


class _Step:
    def __init__(
        self,
        decoder: DrawingDecoder,
        chunks: list[Chunk],
        draws: Sequence[Draw | None],
        follows: Sequence[int] | None,
        before: _Step | None,
    ) -> None:
        self.decoder = decoder
        self.chunks = chunks
        self.draws = draws
        self.follows = follows
        self.before = before
        self.done = self.told = False
        self.error: Exception | None = None
        self.outcome = Outcome(np.empty((0, decoder.vocabulary_size), np.float32), (), ())

    def compute(self) -> None:
        self.done = True
        if self.follows is not None and self.before is not None:
            known = self.before.outcome.tokens
            for chunk, place in zip(self.chunks, self.follows, strict=True):
                assert len(chunk.tokens) == 1
                chunk.tokens = [known[place] if known else 0]
        self.before = None
        try:
            logits = self.decoder.inner.step(self.chunks)
        except Exception as error:  # noqa: BLE001 - told when the step is read
            self.error = error
            return
        rest, tokens, sound = [], [], []
        row = 0
        for chunk, draw in zip(self.chunks, self.draws, strict=True):
            own = logits[row : row + chunk.logits]
            row += chunk.logits
            if draw is None:
                rest.append(own)
            else:
                assert len(own) == 1
                sound.append(bool(np.isfinite(own.max())))
                tokens.append(_chosen(own[0], draw) if sound[-1] else 0)
        self.outcome = Outcome(np.concatenate(rest) if rest else logits[:0], tokens, sound)

    def read(self) -> Outcome:
        assert not self.told
        self.told = True
        while not self.done:
            self.decoder._asked.popleft()()
        if self.error is not None:
            raise self.error
        return self.outcome


def _chosen(row: NDArray[np.float32], draw: Draw) -> int:
    if draw.temperature <= 0:
        return int(row.argmax())
    wanted = Sampling(
        max_tokens=1, temperature=draw.temperature, top_k=draw.top_k, top_p=draw.top_p, min_p=draw.min_p
    )
    with np.errstate(all="ignore"):
        return truncate(row, wanted).draw(draw.uniform)
