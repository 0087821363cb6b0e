"""Decides what each step computes: who runs, how much of each prompt, and who has to wait again.

Sequences run in the order of their priority and arrival. Running ones decode first; what is left of a step's
token budget goes to prompts in chunks, then to waiting sequences as slots and blocks allow, first come first
served. When blocks run out, the last in order gives up all of its own and waits to be computed again: the
first in order can always go on, so everything ends.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain
from operator import attrgetter
from typing import Final

from headrace.runtimes.generation.base import Chunk, GenerationSpec, Together
from headrace.runtimes.generation.blocks import BlockManager
from headrace.runtimes.generation.groups import groups
from headrace.runtimes.generation.prefixes import Prefixes
from headrace.runtimes.generation.sequence import NO_SLOT, Request, Sequence

DRAFTING_SEQUENCES: Final = 2
"""Drafts are tried while at most this many sequences run: with more, a token's place in a step is worth more
than the chance that a guess is right."""

SCORED_TOKENS: Final = 128
"""Longest chunk of a prompt whose logprobs are wanted: its logits are one row of the vocabulary for each."""

STRETCH: Final = 2
"""A chunk may be this part longer than the budget when that ends its prompt: the rest would cost another pass
over the weights."""

BURST: Final = 2
"""While at least one request waits for so many sequences that decode, these come second."""

LEAST: Final = 96
"""Tokens of prompts that a step computes at least beside decodes: each pass over the weights costs as much as
some 20 tokens, so shorter chunks have fewer pauses and less throughput."""

PACE: Final = 6
"""The same for each sequence that decodes."""

MIXED_LEAST: Final = 48
MIXED_PACE: Final = 3
"""The same where prompts are computed in the runs of decodes, which read the weights anyway: shorter chunks
cost no more, and decodes wait less."""

_order = attrgetter("order")


@dataclass(slots=True)
class Plan:
    """One step: ``chunks[i]`` is of ``sequences[i]``; ``started`` are requests that never ran before.

    ``prefill`` says that some chunk is of a prompt.
    """

    sequences: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    started: list[Request] = field(default_factory=list)
    prefill: bool = False

    def passes(self, together: Together) -> Iterator[Plan]:
        """Yield what takes one run after another (``groups``).

        Sequences that have lost their slot by then are left out: their request ended or made room for others.
        """
        divided = groups(self.chunks, together)
        if len(divided) == 1:
            yield self
            return
        for group in divided:
            sequences, chunks = [self.sequences[at] for at in group], [self.chunks[at] for at in group]
            longest = max(len(chunk.tokens) for chunk in chunks)
            part = Plan(sequences, chunks, prefill=self.prefill and longest > 1).left()
            if part.sequences:
                yield part

    def left(self) -> Plan:
        """Return the plan without sequences that have lost their slot since; it has no ``started``."""
        left = [
            pair for pair in zip(self.sequences, self.chunks, strict=True) if pair[0].slot == pair[1].slot
        ]
        return Plan([sequence for sequence, _ in left], [chunk for _, chunk in left], prefill=self.prefill)


class Scheduler:
    """Keeps the waiting and the running sequences, their slots and their blocks."""

    def __init__(
        self,
        spec: GenerationSpec,
        blocks: BlockManager,
        release: Callable[[int], None],
        together: Together = "alike",
    ) -> None:
        """Share out ``blocks`` and the slots of a decoder; ``release`` is told of every slot given back.

        ``together`` is the decoder's.
        """
        self.blocks = blocks
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefixes = Prefixes(blocks, spec.block_tokens)
        self._spec = spec
        self._size = spec.block_tokens
        self._release = release
        self._least, self._pace = (MIXED_LEAST, MIXED_PACE) if together == "mixed" else (LEAST, PACE)
        self._slots = list(range(spec.max_sequences))
        heapify(self._slots)
        # what was not admitted, and the blocks free then: no need to look again before some are given back
        self._refused: tuple[Sequence, int] | None = None

    @property
    def free_slots(self) -> int:
        """Sequences that could run beside those that do."""
        return len(self._slots)

    @property
    def admits(self) -> bool:
        """Whether the first that waits may get what it needs, as far as is known without looking for it."""
        if not self.waiting or len(self._slots) < self.waiting[0].request.slots:
            return False
        return self._refused is None or self._refused[0] is not self.waiting[0]

    def add(self, sequence: Sequence) -> None:
        """Have a sequence wait for its turn."""
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running, and free what it holds."""
        if sequence.slot == NO_SLOT:
            _take(self.waiting, sequence)
            return
        _take(self.running, sequence)
        self._vacate(sequence)

    def plan(self) -> Plan:
        """Choose the chunks of the next step."""
        plan = Plan()
        prefills = self._plan_decodes(plan)
        decoding = len(plan.sequences)
        budget = self._prefill_budget(decoding, prefills)
        # a chunk costs a pass over the model's weights, however short: one below a block is not begun
        for sequence in prefills:
            left = len(sequence.tokens) - sequence.computed
            if budget < min(self._size, left) and plan.sequences:
                break
            budget -= self._append(plan, sequence, budget)
        least = self._size if plan.sequences else 1
        while budget >= least and (admitted := self._admit()) is not None:
            least = self._size
            if not admitted.request.started:
                admitted.request.started = True
                plan.started.append(admitted.request)
            budget -= self._append(plan, admitted, budget)
        plan.prefill = len(plan.sequences) > decoding
        if self._spec.draft_tokens and not plan.prefill and decoding <= DRAFTING_SEQUENCES:
            self._plan_drafts(plan, self._spec.step_tokens - decoding)
        return plan

    def _prefill_budget(self, decoding: int, prefills: list[Sequence]) -> int:
        """Return how many tokens of prompts a step computes beside ``decoding`` sequences.

        Decodes take nothing from it. In a burst every request that waits
        brings a chunk: the batch is full sooner, and a full batch makes more of a step. Otherwise those who
        decode shall not wait much longer for their next token than without prompts.
        """
        spec = self._spec
        waiting = len(self.waiting)
        if not decoding:
            return spec.prefill_tokens
        if waiting * BURST >= decoding or (waiting and self._left(prefills) >= spec.prefill_tokens):
            return max(min(spec.prefill_tokens, spec.step_tokens * waiting), self._size)
        return max(min(spec.step_tokens, max(self._least, self._pace * decoding)), self._size)

    def _left(self, prefills: list[Sequence]) -> int:
        """Count the tokens that prompts still have to compute, up to about ``prefill_tokens``."""
        left, enough = 0, self._spec.prefill_tokens
        for sequence in chain(prefills, self.waiting):
            left += len(sequence.tokens) - sequence.computed
            if left >= enough:
                break
        return left

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Note that the KV cache holds ``computed`` tokens of a sequence; full blocks can be found now."""
        sequence.computed = computed
        self.prefixes.register(sequence)

    def outranked(self, sequence: Sequence) -> bool:
        """Whether one that waits comes before ``sequence``."""
        return bool(self.waiting) and self.waiting[0].order < sequence.order

    def fork(self, parent: Sequence, child: Sequence) -> bool:
        """Give ``child`` a slot and blocks for what the KV cache holds of ``parent``; full ones are shared.

        The slot is one that their request has to spare, else a free one. False, with nothing changed, when
        slots or blocks are short.
        """
        slots = child.request.spare or self._slots
        full = parent.computed // self._size
        own = -(-parent.computed // self._size) - full
        if self.blocks.free < own or not slots:
            return False
        shared = parent.blocks[:full]
        self.blocks.hold(shared)
        child.blocks = shared + self.blocks.allocate(own)
        child.keys = parent.keys[:full]
        child.registered = min(parent.registered, full)
        child.computed = parent.computed
        child.slot = heappop(slots)
        child.fresh = False
        insort(self.running, child, key=_order)
        return True

    def park(self, sequence: Sequence) -> None:
        """End one beam of a search, which keeps the slot for beams to come."""
        _take(self.running, sequence)
        self._give_back(sequence)
        self._release(sequence.slot)
        heappush(sequence.request.spare, sequence.slot)
        sequence.slot = NO_SLOT

    def make_room(self, sequence: Sequence, count: int) -> bool:
        """Have ``count`` blocks free, by preempting what is behind ``sequence``; False if that fails."""
        while self.blocks.free < count:
            last = self.running[-1]
            if last is sequence or (last.request.search is not None and last.request is sequence.request):
                return False
            self.preempt(last)
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take slot and blocks from a running sequence and have it wait; beams of a search go together."""
        self.preemptions += 1
        request = sequence.request
        if request.search is not None:
            for beam in request.sequences:
                self.remove(beam)
            self.add(request.restart())
            return
        self.remove(sequence)
        sequence.computed = sequence.registered = 0
        sequence.fresh = True
        self.add(sequence)

    def _plan_decodes(self, plan: Plan) -> list[Sequence]:
        """Plan the newest token of every sequence that has only that left; return the others, in order."""
        running = self.running
        index = 0
        # only sequences behind the one that grows are preempted, or itself: the list only gets shorter
        while index < len(running):
            sequence = running[index]
            if len(sequence.tokens) > len(sequence.blocks) * self._size and not self._grow(sequence):
                continue
            index += 1
        prefills = []
        sequences, chunks = plan.sequences, plan.chunks
        for sequence in running:
            start = sequence.computed
            if len(sequence.tokens) - start != 1:
                prefills.append(sequence)
            elif sequence.state is None:
                self._append(plan, sequence, 1)
            else:
                sequences.append(sequence)
                tokens = sequence.tokens[-1:]
                chunks.append(Chunk(sequence.slot, tokens, start, sequence.blocks, 1, sequence.fresh))
                sequence.fresh = False
        return prefills

    def _grow(self, sequence: Sequence) -> bool:
        """Add a block for the newest token; False when the sequence itself was preempted."""
        if not self.make_room(sequence, 1):
            self.preempt(sequence)
            return False
        sequence.blocks += self.blocks.allocate(1)
        return True

    def _append(self, plan: Plan, sequence: Sequence, most: int) -> int:
        """Plan up to ``most`` tokens of a sequence and return how many."""
        start = sequence.computed
        total = len(sequence.tokens)
        request = sequence.request
        count = total - start
        if count > most + most // STRETCH:
            count = most
        if request.unscored:
            count = min(count, SCORED_TOKENS)
            # after a preemption the first chunks are scored already
            logits = max(start + count - max(start, len(request.scored or ()) - 1), 0)
        else:
            logits = 1 if start + count == total and request.last > len(request.prompt) else 0
        end = start + count
        tokens = sequence.tokens[start:end]
        plan.sequences.append(sequence)
        plan.chunks.append(Chunk(sequence.slot, tokens, start, sequence.blocks, logits, sequence.fresh))
        sequence.fresh = False
        return count

    def _admit(self) -> Sequence | None:
        """Give the first waiting sequence slots and blocks for all of its tokens, if there are enough."""
        if not self.waiting:
            return None
        sequence = self.waiting[0]
        request = sequence.request
        if len(self._slots) < request.slots:
            return None
        blocks = self.blocks
        if self.running and self._refused == (sequence, blocks.free):
            return None
        found = self.prefixes.find(sequence)
        if found is None:
            return None
        wanted = -(-len(sequence.tokens) // self._size) - len(found)
        # those that run will each want a block soon, each beam one of its own at once
        reserve = len(self.running) + request.slots - 1
        if self.running and blocks.free - blocks.idle(found) < wanted + reserve:
            self._refused = (sequence, blocks.free)
            return None
        self._refused = None
        del self.waiting[0]
        blocks.hold(found)
        sequence.blocks = found + blocks.allocate(wanted)
        sequence.registered = len(found)
        sequence.computed = sequence.cached = len(found) * self._size
        sequence.slot = heappop(self._slots)
        request.spare = [heappop(self._slots) for _ in range(request.slots - 1)]
        insort(self.running, sequence, key=_order)
        self.prefixes.promise(sequence)
        return sequence

    def _plan_drafts(self, plan: Plan, budget: int) -> None:
        """Add guesses to sequences that decode, as far as budget and free blocks go."""
        for sequence, chunk in zip(plan.sequences, plan.chunks, strict=True):
            request = sequence.request
            if request.search is not None or not sequence.generated or chunk.logits != 1:
                continue
            # the step itself yields one token more than was guessed
            room = min(budget, request.last - len(sequence.tokens) - 1)
            if room <= 0:
                continue
            draft = sequence.lookup_draft(self._spec.draft_tokens, room)
            held = len(sequence.blocks)
            wanted = -(-(len(sequence.tokens) + len(draft)) // self._size) - held
            if wanted > self.blocks.free:
                wanted = self.blocks.free
                del draft[(held + wanted) * self._size - len(sequence.tokens) :]
            if not draft:
                continue
            sequence.blocks += self.blocks.allocate(max(wanted, 0))
            sequence.draft = draft
            chunk.tokens = [*chunk.tokens, *draft]
            chunk.logits += len(draft)
            budget -= len(draft)

    def _give_back(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        self._refused = None

    def _vacate(self, sequence: Sequence) -> None:
        self.prefixes.withdraw(sequence)
        self._give_back(sequence)
        # of a search all beams go, so what it has to spare goes with the first of them
        for slot in (sequence.slot, *sequence.request.spare):
            self._release(slot)
            heappush(self._slots, slot)
        sequence.slot = NO_SLOT
        sequence.request.spare = []
        sequence.draft = []


def _take(sequences: list[Sequence], sequence: Sequence) -> None:
    """Remove a sequence from a list in order, if it is there."""
    place = bisect_left(sequences, sequence.order, key=_order)
    if place < len(sequences) and sequences[place] is sequence:
        del sequences[place]
