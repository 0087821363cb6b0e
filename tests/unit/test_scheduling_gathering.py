"""How long the loop takes requests in before a batch is formed, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.server.scheduling.gathering import GATHER_NS, IDLE_TURN_NS, PATIENCE_NS, Gathering

POLL = 5_000
"""Nanoseconds of a turn that does nothing."""
BUSY = IDLE_TURN_NS + 10_000


def gathered(gathering: Gathering, turns: Iterable[tuple[int, int, int]]) -> int:
    """Nanoseconds until a batch is formed; turns are lengths, and what waits and is active after them."""
    now = start = 1_000_000_000
    gathering.begin(now)
    for length, waiting, active in turns:
        now += length
        if not gathering.more(now, waiting, active):
            return now - start
    raise AssertionError("no batch was formed")


def busy_with(active: int) -> Gathering:
    """One that has just seen so many requests at once."""
    gathering = Gathering()
    gathered(gathering, [(POLL, active, active)])
    return gathering


def test_a_lone_request_waits_for_one_empty_turn() -> None:
    assert gathered(Gathering(), [(POLL, 1, 1)]) == POLL
    assert gathered(Gathering(), [(BUSY, 1, 1), (POLL, 1, 1)]) == BUSY + POLL


def test_turns_that_bring_more_are_awaited() -> None:
    turns = [(BUSY, 1, 1), (BUSY, 2, 2), (BUSY, 3, 3), (POLL, 3, 3)]
    assert gathered(Gathering(), turns) == 3 * BUSY + POLL


def test_where_more_were_under_way_empty_turns_are_not_enough() -> None:
    """Some of eight wait, so others may be on their way; after a while of nothing they are not."""
    quiet = [(POLL, 2, 4)] * 100
    assert PATIENCE_NS < gathered(busy_with(8), quiet) <= PATIENCE_NS + POLL
    late = [(POLL, 2, 4)] * 8 + [(BUSY, 3, 5)] + [(POLL, 3, 5)] * 100
    assert PATIENCE_NS + BUSY < gathered(busy_with(8), late) <= PATIENCE_NS + BUSY + 9 * POLL


def test_once_nearly_all_wait_nobody_is_waited_for() -> None:
    assert gathered(busy_with(8), [(POLL, 8, 8)]) == POLL
    assert gathered(busy_with(32), [(POLL, 30, 31)]) == POLL


def test_a_loop_that_is_always_busy_forms_batches_all_the_same() -> None:
    found = gathered(busy_with(32), [(BUSY, 5, 9)] * 1000)
    assert GATHER_NS <= found < GATHER_NS + BUSY


def test_companions_that_have_gone_are_forgotten() -> None:
    gathering = busy_with(8)
    for _ in range(20):
        gathered(gathering, [(POLL, 1, 1)] * 100)
    assert gathered(gathering, [(POLL, 1, 1)]) == POLL


def test_one_request_at_a_time_is_alone_until_there_are_two() -> None:
    gathering = Gathering()
    for _ in range(15):
        gathered(gathering, [(POLL, 1, 1)])
        assert not gathering.alone
    gathered(gathering, [(POLL, 1, 1)])
    assert gathering.alone
    gathered(gathering, [(POLL, 2, 2)])
    assert not gathering.alone
