from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from headrace.server.tuning.disturbance import Usage, disturbance, usage

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("machine", "own", "expected"),
    [(0.0, 0.0, 0.0), (8.0, 8.0, 0.0), (8.0, 3.0, 0.5), (20.0, 0.0, 1.0), (1.0, 1.5, 0.0)],
)
def test_what_was_not_ours_was_somebody_elses(machine: float, own: float, expected: float) -> None:
    before = Usage(100.0, 7.0, 2.0)
    after = Usage(100.0 + 10.0 / CORES, 7.0 + machine, 2.0 + own)
    assert disturbance(before, after) == pytest.approx(expected)


def test_no_time_is_no_disturbance() -> None:
    now = Usage(1.0, 1.0, 1.0)
    assert disturbance(now, now) == 0.0


def test_a_process_disturbs_unless_it_is_ours() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        theirs, ours = usage([]), usage([busy.pid])
        while usage([busy.pid]).own - ours.own < 0.5:
            time.sleep(0.05)
        now = usage([]), usage([busy.pid])
        as_theirs, as_ours = disturbance(theirs, now[0]), disturbance(ours, now[1])
    finally:
        busy.kill()
        busy.wait()
    assert as_theirs > as_ours


def test_a_process_that_has_ended_used_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert usage([ended.pid]).own <= usage([]).own
