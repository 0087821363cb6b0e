"""The contract between the engine and a decoder: plain dataclasses and two protocols, the second optional.

Blocking and single-threaded, as ``headrace.runtimes.base``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from headrace.runtimes.base import InstanceSpec


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What the engine of an instance may use.

    Attributes:
        max_tokens: longest sequence, prompt and output together.
        max_sequences: sequences that run at once, at least 1; a decoder has as many slots.
        kv_tokens: tokens that all running sequences and the cached prefixes may hold together.
        block_tokens: tokens in a KV block.
        step_tokens: most tokens of prompts computed in a step while sequences decode; longer prompts are cut
            into chunks. In a burst as many for every request that waits, up to ``prefill_tokens``.
        prefill_tokens: the same while none decodes.
        prefix_cache: whether prefixes are kept for later requests.
        draft_tokens: tokens guessed by prompt lookup in each step; 0 guesses none.
        mixed_runs: whether prompts are computed in the runs of decodes where the runtime can; that may take
            memory.
        eos_ids: ids that end a sample.
        tokenizer: path of ``tokenizer.json``, for grammars; "" refuses grammars.
    """

    max_tokens: int
    max_sequences: int
    kv_tokens: int
    block_tokens: int = 16
    step_tokens: int = 128
    prefill_tokens: int = 1024
    prefix_cache: bool = True
    draft_tokens: int = 0
    mixed_runs: bool = True
    eos_ids: tuple[int, ...] = ()
    tokenizer: str = ""


@dataclass(slots=True)
class Chunk:
    """Tokens of one sequence to be computed in one step.

    Attributes:
        slot: of the sequence, in ``[0, max_sequences)``; its own from the first chunk until ``release``.
        tokens: ids to compute, at least one.
        start: tokens of the sequence that the KV cache has already; the position of the first of ``tokens``.
        blocks: block table of the sequence; covers ``start + len(tokens)`` tokens. The engine's own list: it
            must not be changed or kept.
        logits: how many of the last positions need logits, from 0 to ``len(tokens)``.
        fresh: the slot's first chunk: when ``start`` is not 0 the KV of that many tokens (whole blocks) lies
            in ``blocks``, where an earlier sequence left it.
    """

    slot: int
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    logits: int
    fresh: bool


Together = Literal["alike", "mixed", "all"]
"""Which chunks of a step a decoder computes in one run: like ones (``groups``); besides, decodes with the
first of the others; all of them."""


class Decoder(Protocol):
    """A loaded decoder-only model with its KV cache."""

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits; ids from 0 to this, exclusive, may be computed."""

    @property
    def platform(self) -> str:
        """What executes the model, as ``TensorModel.platform``."""

    @property
    def together(self) -> Together:
        """Which chunks of a step are computed in one run.

        Where a step takes several runs, the engine asks for one of those at a time: it tells of tokens as
        they come and leaves out what nobody waits for any more.
        """

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Compute all chunks and return their logits, ``[sum of chunk.logits, vocabulary_size]``.

        Rows are in the order of the chunks and, within one, of the positions. The array may be changed by
        the caller and is valid until the next step. KV of blocks that a chunk completes must be found in
        those blocks by later sequences.

        Raises:
            ModelError: the model failed; the sequences of this step are lost, others are not.
        """

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        """Give slot ``target`` the KV of the first ``tokens`` tokens of slot ``source``.

        Equal entries of both tables are shared; where they differ the block's content is copied.
        """

    def release(self, slot: int) -> None:
        """Forget the sequence of ``slot``; its completed blocks stay."""

    def prepare(self) -> bool:
        """Do a few milliseconds of what later steps would have to do; called while nothing runs.

        Returns:
            False when there is nothing left to do.
        """

    def close(self) -> None:
        """Free what the model holds; it is not used afterwards."""


class Draw(NamedTuple):
    """How a decoder chooses one token itself.

    Attributes:
        temperature: 0 or less takes the most likely token, the first of equals.
        top_k, top_p, min_p: as ``parameters.Sampling`` has them, in the order of
            :mod:`headrace.runtimes.generation.truncation`.
        uniform: in [0, 1): where in the cumulative distribution, in order of ids, the token is.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float


class Outcome(NamedTuple):
    """What came out of a step.

    Attributes:
        logits: of the chunks without a draw, as :meth:`Decoder.step` returns them.
        tokens: drawn, in the order of the chunks with a draw. Each is in the vocabulary, whatever the logits.
        sound: for each of them, whether its logits had a finite maximum and no NaN.
    """

    logits: NDArray[np.float32]
    tokens: Sequence[int]
    sound: Sequence[bool]


class Begun(Protocol):
    """A step that was begun, and may not be done yet."""

    def read(self) -> Outcome:
        """Wait until the step is done and return what came out of it; called once at most.

        Raises:
            ModelError: as :meth:`Decoder.step`.
        """


DeviceSampling = Literal["host", "device", "ahead"]
"""Who chooses tokens: the engine all of them; the decoder those that it can; the decoder, and the engine may
begin a step before it has read the one before."""


@runtime_checkable
class SamplingDecoder(Decoder, Protocol):
    """A decoder that can choose tokens where its logits are, and begin a step without waiting for its end.

    Whatever is asked of it (steps, copies) happens in the order in which it was asked, each after the one
    before is done. So blocks that a step writes may be given away as soon as it was begun: who gets them
    writes later.
    """

    @property
    def sampling(self) -> DeviceSampling:
        """How much of this is to be used; ``device`` and ``ahead`` only where ``together`` is ``all``."""

    def begin(
        self, chunks: Sequence[Chunk], draws: Sequence[Draw | None], follows: Sequence[int] | None = None
    ) -> Begun:
        """Begin a step; chunks are used as in ``step``, before this returns.

        Args:
            chunks: as for ``step``.
            draws: for each chunk how its token is chosen, None to return its logits; a chunk with a draw has
                ``logits == 1``.
            follows: given when the step that was begun last has not been read: ``follows[i]`` is the place,
                among that step's drawn tokens, of the one that chunk ``i`` computes. The chunks are of one
                token then, which stands for it and is not looked at.

        Raises:
            ModelError: as ``step``.
        """


DecoderLoader = Callable[["InstanceSpec"], Decoder]
"""Loads one decoder or raises ``headrace.runtimes.base.ModelError`` with a text for the user."""
