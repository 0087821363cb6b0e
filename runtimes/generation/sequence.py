"""What the engine knows of a request and of each of its samples."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.runtimes.generation.blocks import next_key, root_key
from headrace.runtimes.generation.drafts import PromptLookup
from headrace.runtimes.generation.messages import Finish, Logprob
from headrace.runtimes.generation.parameters import Sampling

if TYPE_CHECKING:
    from headrace.runtimes.generation.sampling import SamplerState
    from headrace.runtimes.generation.search import BeamSearch
    from headrace.runtimes.generation.structured import CompiledGrammar

NO_SLOT: Final = -1


class Ending(NamedTuple):
    """Why a sample ended; the fields are those of ``messages.Tokens``."""

    finish: Finish
    stop_token: int | None = None
    eos: bool = False


class Request:
    """One request: its prompt, its parameters and its samples.

    Attributes:
        identifier: what the server calls it.
        prompt: token ids.
        sampling: its parameters.
        arrival: place in the order of arrival.
        last: longest sequence, prompt and output together, that this request may make.
        grammar: what its output must match, compiled.
        sequences: samples that run or wait; only the first until the prompt is computed.
        caching: whether it uses cached prefixes and leaves its own behind.
        root: key before its first block.
        slots: slots that its first sequence takes: more than one for a beam search.
        spare: those of them that no beam has at present.
        started: whether it has been scheduled before.
        scored: logprobs of the prompt's tokens so far; None where they are not wanted or told already.
        ended: samples that ended, kept for the choice of the best where fewer are returned than made.
        search: the beam search, from the end of the prompt on.
        closed: whether it ended, was refused or aborted.
    """

    def __init__(
        self,
        identifier: int,
        prompt: list[int],
        sampling: Sampling,
        *,
        arrival: int,
        last: int,
        caching: bool,
        grammar: CompiledGrammar | None = None,
    ) -> None:
        self.identifier = identifier
        self.prompt = prompt
        self.sampling = sampling
        self.arrival = arrival
        self.last = last
        self.grammar = grammar
        self.caching = caching and sampling.prefix_cache
        self.root = root_key(sampling.cache_salt, sampling.adapter) if self.caching else b""
        self.slots = sampling.best_of if sampling.beam else 1
        self.spare: list[int] = []
        self.started = False
        self.scored: list[Logprob | None] | None = None if sampling.prompt_logprobs is None else [None]
        self.ended: list[tuple[Sequence, Ending]] = []
        self.search: BeamSearch | None = None
        self.closed = False
        self.sequences = [Sequence(self, 0, prompt)]

    @property
    def chooses(self) -> bool:
        """Whether samples are held back until all have ended, and the best of them returned."""
        return self.sampling.best_of > self.sampling.n and not self.sampling.beam

    @property
    def unscored(self) -> bool:
        """Whether logprobs of prompt tokens are still to be computed."""
        return self.scored is not None and len(self.scored) < len(self.prompt)

    def restart(self) -> Sequence:
        """Forget a beam search that lost its place; it gives the same beams from its prompt on."""
        self.search = None
        self.sequences = [Sequence(self, 0, self.prompt)]
        return self.sequences[0]


class Sequence:
    """One sample: its tokens, and how much of them the KV cache holds.

    What is left to compute is ``tokens[computed:]``: the prompt at first, then the newest token, and all of
    them again after a preemption. The last of ``tokens`` is the only one whose logits are needed.

    Attributes:
        tokens: prompt and output.
        computed: how many of them the KV cache holds.
        blocks: block table; covers at least ``computed`` tokens.
        registered: blocks, from the first, that later sequences can find.
        promised: blocks that others may wait for, as this sequence is about to compute them.
        slot: of the decoder, or ``NO_SLOT`` while it waits.
        fresh: whether no chunk of it ran since it got its slot.
        state: the sampler's; None until the first token is sampled.
        logprobs: of the output, where they are kept.
        lookup: index of guesses; None until the first is wanted.
        draft: tokens guessed for the step that is being run.
        order: place among sequences; smaller runs first.
        cached: tokens that the prefix cache had when it got its slot.
    """

    __slots__ = (
        "blocks",
        "cached",
        "computed",
        "draft",
        "fresh",
        "keys",
        "logprobs",
        "lookup",
        "order",
        "promised",
        "registered",
        "request",
        "sample",
        "slot",
        "state",
        "tokens",
    )

    def __init__(self, request: Request, sample: int, tokens: Tokens[int]) -> None:
        self.request = request
        self.sample = sample
        self.tokens = list(tokens)
        self.computed = 0
        self.blocks: list[int] = []
        self.keys: list[bytes] = []
        self.registered = 0
        self.promised = 0
        self.slot = NO_SLOT
        self.fresh = True
        self.state: SamplerState | None = None
        self.logprobs: list[Logprob] = []
        self.lookup: PromptLookup | None = None
        self.draft: list[int] = []
        self.order = (request.sampling.priority, request.arrival, sample)
        self.cached = 0

    @property
    def generated(self) -> int:
        """Tokens of the output."""
        return len(self.tokens) - len(self.request.prompt)

    def known(self, blocks: int, block_tokens: int) -> list[bytes]:
        """Return the keys of at least the first ``blocks`` blocks, all full; new ones are computed once."""
        keys = self.keys
        while len(keys) < blocks:
            start = len(keys) * block_tokens
            parent = keys[-1] if keys else self.request.root
            keys.append(next_key(parent, self.tokens[start : start + block_tokens]))
        return keys

    def lookup_draft(self, most: int, room: int) -> list[int]:
        """Guess up to ``room`` tokens, never more than ``most``."""
        if self.lookup is None:
            self.lookup = PromptLookup(most)
        return self.lookup.draft(self.tokens, room)
