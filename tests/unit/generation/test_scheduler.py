"""What each step computes: the scheduler without a decoder."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from generation_engines import Bench, make_spec

from headrace.runtimes.generation import scheduler as scheduler_module
from headrace.runtimes.generation.base import GenerationSpec, Together
from headrace.runtimes.generation.blocks import BlockManager
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.scheduler import DRAFTING_SEQUENCES, Plan, Scheduler
from headrace.runtimes.generation.sequence import NO_SLOT, Request, Sequence


class Desk:
    """A scheduler whose steps all succeed and sample token 1."""

    def __init__(self, spec: GenerationSpec, together: Together = "alike") -> None:
        self.spec = spec
        self.released: list[int] = []
        self.blocks = BlockManager(spec.kv_tokens // spec.block_tokens)
        self.scheduler = Scheduler(spec, self.blocks, self.released.append, together)
        self.arrivals = 0

    def add(self, length: int, *, priority: int = 0, slots: int = 1) -> Sequence:
        beam = slots > 1
        request = Request(
            self.arrivals,
            [self.arrivals] * length,
            Sampling(max_tokens=50, priority=priority, best_of=slots, beam=beam),
            arrival=self.arrivals,
            last=self.spec.max_tokens,
            caching=self.spec.prefix_cache,
        )
        self.arrivals += 1
        self.scheduler.add(request.sequences[0])
        return request.sequences[0]

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        for sequence, chunk in zip(plan.sequences, plan.chunks, strict=True):
            self.scheduler.advance(sequence, chunk.start + len(chunk.tokens) - len(sequence.draft))
            sequence.draft = []
            if sequence.computed == len(sequence.tokens):
                sequence.tokens.append(1)
        return plan

    def sizes(self) -> list[tuple[int, int]]:
        """``(request, tokens)`` of each chunk of the next step."""
        plan = self.step()
        return [
            (sequence.request.identifier, len(chunk.tokens))
            for sequence, chunk in zip(plan.sequences, plan.chunks, strict=True)
        ]


def test_prompts_fill_the_budget_first_come_first_served() -> None:
    desk = Desk(make_spec(prefill_tokens=16, step_tokens=6))
    for length in (10, 10, 3):
        desk.add(length)
    assert desk.sizes() == [(0, 10), (1, 6)]
    assert desk.sizes() == [(0, 1), (1, 4)]  # one token is left, too few to begin with
    assert desk.sizes() == [(0, 1), (1, 1), (2, 3)]
    assert desk.sizes() == [(0, 1), (1, 1), (2, 1)]


def test_the_end_of_a_prompt_is_not_left_for_a_step_of_its_own() -> None:
    desk = Desk(make_spec(prefill_tokens=16, step_tokens=8))
    desk.add(20)
    assert desk.sizes() == [(0, 20)]
    desk.add(21)
    assert [desk.sizes()[1] for _ in range(3)] == [(1, 8), (1, 8), (1, 5)]
    desk.add(10)
    assert desk.sizes()[2] == (2, 10)


def test_each_request_that_waits_brings_a_chunk() -> None:
    desk = Desk(make_spec(prefill_tokens=24, step_tokens=8, max_sequences=8))
    desk.add(8)
    desk.sizes()
    for _ in range(6):
        desk.add(8)
    assert [size for _, size in desk.sizes()] == [1, 8, 8, 8]
    assert [size for _, size in desk.sizes()] == [1, 1, 1, 1, 8, 8, 8]


def prompt_chunks(desk: Desk, steps: int) -> list[list[int]]:
    """Sizes of the chunks of prompts in each of the next ``steps``."""
    return [[size for _, size in desk.sizes() if size > 1] for _ in range(steps)]


def paced(decoding: int, together: Together = "alike") -> Desk:
    """A desk where so many sequences decode."""
    spec = make_spec(max_sequences=48, step_tokens=128, prefill_tokens=1024, kv_tokens=1 << 14)
    desk = Desk(spec, together)
    for _ in range(decoding):
        desk.add(2)
    desk.step()
    return desk


@pytest.mark.parametrize(
    ("decoding", "chunks"),
    [
        (6, [96, 104]),
        (20, [120, 80]),
        (40, [128, 72]),
    ],
    ids=["few: what is worth a pass", "as many for each that decodes", "never more than step_tokens"],
)
def test_prompts_are_computed_at_a_pace_that_decodes_keep_up_with(decoding: int, chunks: list[int]) -> None:
    desk = paced(decoding)
    desk.add(200)
    assert prompt_chunks(desk, len(chunks) + 1) == [*([size] for size in chunks), []]


@pytest.mark.parametrize(("decoding", "chunks"), [(6, [48, 48, 48, 56]), (20, [60, 60, 80]), (44, [128, 72])])
def test_prompts_in_the_runs_of_decodes_are_cut_shorter(decoding: int, chunks: list[int]) -> None:
    desk = paced(decoding, "mixed")
    desk.add(200)
    assert prompt_chunks(desk, len(chunks) + 1) == [*([size] for size in chunks), []]


@pytest.mark.parametrize(
    ("decoding", "waiting", "length"),
    [(16, 8, 40), (30, 8, 128)],
    ids=["one for two that decode", "as much as a step without decodes computes"],
)
def test_many_that_wait_bring_a_chunk_each(decoding: int, waiting: int, length: int) -> None:
    desk = paced(decoding)
    for _ in range(waiting):
        desk.add(length)
    assert prompt_chunks(desk, 2) == [[length] * waiting, []]


def test_what_is_left_of_prompts_is_counted_no_further_than_it_matters() -> None:
    desk = paced(40)
    for _ in range(12):
        desk.add(900)
    assert desk.scheduler._left([]) == 1800


def test_only_the_last_token_of_a_prompt_gets_logits() -> None:
    desk = Desk(make_spec(prefill_tokens=4))
    desk.add(11)
    assert [(c.start, c.logits, c.fresh) for _ in range(4) for c in desk.step().chunks] == [
        (0, 0, True),
        (4, 0, False),
        (8, 1, False),
        (11, 1, False),
    ]


def test_a_later_request_never_overtakes_one_that_does_not_fit() -> None:
    desk = Desk(make_spec(kv_tokens=64))
    desk.add(30)
    large, small = desk.add(40), desk.add(2)
    desk.step()
    assert (large.slot, small.slot) == (NO_SLOT, NO_SLOT)


def test_a_search_waits_for_all_of_its_slots() -> None:
    desk = Desk(make_spec(max_sequences=3))
    lone = desk.add(4)
    search, after = desk.add(4, slots=3), desk.add(4)
    desk.step()
    assert (search.slot, after.slot) == (NO_SLOT, NO_SLOT)
    desk.scheduler.remove(lone)
    desk.step()
    assert sorted([search.slot, *search.request.spare]) == [0, 1, 2]
    assert after.slot == NO_SLOT
    desk.scheduler.remove(search)
    assert sorted(desk.released) == [0, 0, 1, 2]
    desk.step()
    assert after.slot == 0


def test_running_sequences_have_a_block_each_in_reserve() -> None:
    desk = Desk(make_spec(kv_tokens=32, block_tokens=4))
    desk.add(8)
    desk.step()
    second = desk.add(24)  # all 6 blocks that are left
    desk.step()
    assert second.slot == NO_SLOT
    desk.scheduler.remove(second)
    third = desk.add(15)
    desk.step()
    assert third.slot != NO_SLOT


def test_the_last_in_order_gives_way() -> None:
    desk = Desk(make_spec(kv_tokens=28, block_tokens=4, prefix_cache=False))
    important, ordinary = desk.add(7, priority=-1), desk.add(7)
    desk.step()
    late = desk.add(3)
    desk.step()  # of seven blocks they have two, two and one
    assert late.slot != NO_SLOT
    while late.slot != NO_SLOT:
        desk.step()
    assert late.blocks == []
    assert late.computed == 0
    assert desk.released == [2]
    assert NO_SLOT not in {important.slot, ordinary.slot}
    while ordinary.slot != NO_SLOT:
        desk.step()
    assert desk.scheduler.preemptions == 2
    assert desk.scheduler.waiting == [ordinary, late]
    for _ in range(10):
        desk.step()
    assert len(important.tokens) > 16
    desk.scheduler.remove(important)
    start = len(ordinary.tokens)
    plan = desk.step()
    # everything is computed again, and one token is new
    assert plan.chunks[0].fresh
    assert (plan.chunks[0].start, len(plan.chunks[0].tokens)) == (0, start)
    assert not plan.started


def test_a_fork_shares_full_blocks_and_copies_the_last() -> None:
    desk = Desk(make_spec())
    parent = desk.add(10)
    desk.step()
    child = Sequence(parent.request, 1, parent.request.prompt)
    assert desk.scheduler.fork(parent, child)
    assert child.blocks[:2] == parent.blocks[:2]
    assert len(child.blocks) == 3
    assert child.blocks[2] not in parent.blocks
    assert (child.computed, child.fresh, child.slot) == (10, False, 1)
    desk.scheduler.remove(parent)
    assert desk.blocks.free == desk.blocks.total - 3
    desk.scheduler.remove(child)
    assert desk.blocks.free == desk.blocks.total


def test_a_fork_without_slot_or_block_changes_nothing() -> None:
    for spec in (make_spec(max_sequences=1), make_spec(kv_tokens=12)):
        desk = Desk(spec)
        parent = desk.add(10)
        desk.step()
        free = desk.blocks.free
        child = Sequence(parent.request, 1, parent.request.prompt)
        assert not desk.scheduler.fork(parent, child)
        assert (desk.blocks.free, desk.scheduler.running, child.slot) == (free, [parent], NO_SLOT)


@pytest.mark.parametrize(
    ("sequences", "budget", "drafted"),
    [(1, 16, 4), (2, 16, 8), (DRAFTING_SEQUENCES, 4, 2), (DRAFTING_SEQUENCES + 1, 64, 0), (1, 1, 0)],
)
def test_guesses_stay_within_the_budget_and_among_few(sequences: int, budget: int, drafted: int) -> None:
    desk = Desk(make_spec(max_sequences=8, step_tokens=budget, prefill_tokens=200, draft_tokens=4))
    for _ in range(sequences):
        desk.add(12)
    desk.step()
    for sequence in desk.scheduler.running:
        # the new token repeats what the prompt was made of
        sequence.tokens[-1] = sequence.tokens[0]
    plan = desk.scheduler.plan()
    assert sum(len(sequence.draft) for sequence in plan.sequences) == drafted
    for sequence, chunk in zip(plan.sequences, plan.chunks, strict=True):
        assert chunk.logits == len(chunk.tokens) == 1 + len(sequence.draft)
        assert len(chunk.blocks) * 4 >= chunk.start + len(chunk.tokens)


def test_guesses_take_free_blocks_only() -> None:
    desk = Desk(make_spec(kv_tokens=16, draft_tokens=4))
    sequence = desk.add(12)
    desk.step()
    sequence.tokens[-1] = 0
    assert len(desk.scheduler.plan().sequences[0].draft) == 3
    assert desk.blocks.free == 0


def test_a_step_costs_the_same_at_any_length() -> None:
    spec = make_spec(max_tokens=6000, kv_tokens=40000, prefill_tokens=30000, draft_tokens=2, block_tokens=16)

    def lines_of_a_step(length: int) -> int:
        bench = Bench(spec)
        for seed in range(3):
            bench.add([2 + seed] * length, Sampling(max_tokens=50, temperature=0, ignore_eos=True))
        for _ in range(3):
            bench.step()
        lines = 0

        def count(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal lines
            lines += event == "line" and "hash_decoder" not in frame.f_code.co_filename
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            bench.step()
        finally:
            sys.settrace(before)
        return lines

    short, long = lines_of_a_step(100), lines_of_a_step(5002)
    assert abs(long - short) < 40, (short, long)


def test_scheduling_needs_no_framework() -> None:
    folder = Path(scheduler_module.__file__).parent
    for name in ("scheduler", "sequence", "blocks", "prefixes", "drafts"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        modules = {
            name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            )
        }
        assert not {module.split(".")[0] for module in modules} & {"numpy", "torch", "onnxruntime"}
