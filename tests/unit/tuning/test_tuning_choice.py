from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.tuning.candidates import Candidate, Layout
from headrace.server.tuning.choice import LONE_SLACK, LONE_TIE, TIE, Measurement, choose, medians

WIDE = Layout(1, 2)
NARROW = Layout(2, 1)
BOTH = Layout(2, 1, 2)


def measured(layout: Layout, throughput: float, lone_ms: float, limit: int = 0) -> Measurement:
    return Measurement(Candidate(layout, limit), throughput, lone_ms)


def test_the_highest_throughput_wins() -> None:
    entries = [measured(WIDE, 78, 14), measured(BOTH, 99, 14)]
    assert choose(entries).candidate.layout == BOTH
    assert choose(entries[::-1]).candidate.layout == BOTH


def test_a_candidate_that_is_slow_for_a_lone_request_is_out_however_fast_it_is_under_load() -> None:
    entries = [measured(NARROW, 200, 14 * LONE_SLACK + 0.1), measured(WIDE, 78, 14)]
    assert choose(entries).candidate.layout == WIDE
    entries = [measured(NARROW, 200, 14 * LONE_SLACK - 0.1), measured(WIDE, 78, 14)]
    assert choose(entries).candidate.layout == NARROW


def test_of_equal_throughputs_the_clearly_lower_lone_latency_wins() -> None:
    entries = [measured(NARROW, 100, 10 * LONE_TIE + 0.1), measured(BOTH, 100 * (1 - TIE) + 0.1, 10)]
    assert choose(entries).candidate.layout == BOTH


def test_of_equals_fewer_processes_then_fewer_copies_win() -> None:
    assert choose([measured(BOTH, 100, 10), measured(WIDE, 96, 10.5)]).candidate.layout == WIDE
    assert choose([measured(BOTH, 100, 10), measured(NARROW, 96, 10.5)]).candidate.layout == NARROW


def test_of_equals_the_present_setting_stays() -> None:
    present, other = measured(BOTH, 96, 10.5, 256), measured(BOTH, 100, 10, 512)
    assert choose([present, other]) is present
    clearly_better = measured(BOTH, 110, 10, 512)
    assert choose([present, clearly_better]) is clearly_better


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        choose([])


LAYOUTS = st.builds(Layout, st.integers(1, 8), st.integers(1, 8), st.integers(0, 8))
ENTRIES = st.lists(
    st.builds(
        Measurement,
        st.builds(Candidate, LAYOUTS, st.integers(0, 1024)),
        st.floats(0.1, 1e5),
        st.floats(0.01, 1e4),
        st.integers(0, 1 << 40),
    ),
    min_size=1,
    max_size=20,
)


@given(ENTRIES)
def test_the_choice_keeps_what_it_promises(entries: list[Measurement]) -> None:
    chosen = choose(entries)
    fastest = min(entry.lone_ms for entry in entries)
    assert chosen in entries
    assert chosen.lone_ms <= fastest * LONE_SLACK
    allowed = [entry for entry in entries if entry.lone_ms <= fastest * LONE_SLACK]
    assert chosen.throughput >= max(entry.throughput for entry in allowed) * (1 - TIE)
    assert choose(entries) is chosen
    assert choose([chosen]) is chosen


def test_rounds_become_medians_in_order_of_appearance() -> None:
    rounds = [
        measured(BOTH, 90, 10), measured(WIDE, 70, 12),
        measured(WIDE, 72, 30), measured(BOTH, 20, 11),
        measured(BOTH, 92, 9), measured(WIDE, 75, 13),
    ]  # fmt: skip
    assert medians(rounds) == [measured(BOTH, 90, 10), measured(WIDE, 72, 13)]


def test_the_documentation_has_the_rule() -> None:
    text = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text()
    for value in (f"{LONE_SLACK:g} times", f"{LONE_TIE:g} times", f"{TIE * 100:g} %"):
        assert value in text
