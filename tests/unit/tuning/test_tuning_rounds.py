"""What is measured, in which order, and what is left out; the measuring itself is replaced by sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from headrace.server.errors import ExecutionFailedError
from headrace.server.repository.instances import Machine
from headrace.server.tuning import tuner
from headrace.server.tuning.candidates import Candidate, Layout
from headrace.server.tuning.choice import Measurement
from headrace.server.tuning.fingerprint import memory_bytes
from headrace.server.tuning.measuring import Effort, GroupResult
from headrace.server.tuning.tuner import Outcome, Step, tune
from headrace.server.tuning.workload import NotTunableError

Define = Any
MACHINE = Machine(2)
NARROW = ((2, 1), (2, 1))  # with and without the all-threads form, in the same processes
WIDE = ((1, 2),)


@dataclass
class Measuring:
    """Notes what is measured, and says what each group reached and how long it took.

    Attributes:
        seconds: each group really takes.
        reported: seconds that each group but the first ``quick`` ones is said to have taken.
        memory: bytes of each candidate.
        stuck: the group that never ends.
        fails: whether a group raises.
        throughputs: number of instances → what it reaches, round by round.
        load: seconds that the load before the first measurement takes.
        loads: how many there were.
    """

    seconds: float = 0.0
    reported: float = 0.0
    quick: int = 0
    memory: int = 1 << 20
    stuck: tuple[tuple[int, int], ...] = ()
    fails: Callable[[Sequence[Layout]], bool] = lambda group: False
    throughputs: dict[int, list[float]] = field(default_factory=dict)
    disturbances: list[float] = field(default_factory=list)
    load: float = 0.0
    loads: int = 0
    groups: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    efforts: list[Effort] = field(default_factory=list)

    async def __call__(
        self, definition: object, group: Sequence[Layout], machine: Machine, effort: Effort
    ) -> GroupResult:
        self.groups.append(tuple((layout.instances, layout.threads) for layout in group))
        self.efforts.append(effort)
        await asyncio.sleep(1000.0 if self.groups[-1] == self.stuck else self.seconds)
        if self.fails(group):
            raise ExecutionFailedError("a process ended")
        speeds = self.throughputs.get(group[0].instances) or [50.0]
        speed = speeds.pop(0) if len(speeds) > 1 else speeds[0]
        entries = [Measurement(Candidate(layout, 8), speed, 10.0, self.memory) for layout in group]
        took = self.reported if len(self.groups) > self.quick else 0.0
        others = self.disturbances.pop(0) if self.disturbances else 0.0
        return GroupResult(tuple(entries), 17, took, others)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    made = Measuring()

    async def load_once(_: object) -> None:
        await asyncio.sleep(made.load)
        made.loads += 1

    monkeypatch.setattr(tuner, "load_once", load_once)
    monkeypatch.setattr(tuner, "measure_group", made)
    return made


async def run(define: Define, *, seconds: float = 60.0, thorough: bool = False) -> Outcome:
    definition = define("max_batch_size: 8", cores=2)
    return await tune(definition, MACHINE, seconds=seconds, thorough=thorough)


async def test_a_quick_measurement_has_one_round(define: Define, measuring: Measuring) -> None:
    steps: list[Step] = []
    definition = define("max_batch_size: 8", cores=2)
    outcome = await tune(definition, MACHINE, seconds=60.0, thorough=False, progress=steps.append)
    assert measuring.groups == [NARROW, WIDE]
    assert (outcome.rounds, outcome.complete) == (1, True)
    assert outcome.present.candidate.layout == Layout(2, 1, 2)
    assert [step.round for step in steps] == [1, 1]


async def test_the_first_load_is_not_measured(define: Define, measuring: Measuring) -> None:
    """It may make graphs, which takes longer than all the rest; the time begins after it."""
    measuring.load = 1.5
    outcome = await run(define, seconds=0.7)
    assert measuring.loads == 1
    assert (measuring.groups, outcome.complete) == ([NARROW, WIDE], True)


async def test_all_candidates_have_the_same_number_of_clients(define: Define, measuring: Measuring) -> None:
    await run(define)
    assert [effort.clients for effort in measuring.efforts] == [0, 17]


async def test_rounds_alternate_in_order_and_end_when_no_other_fits(
    define: Define, measuring: Measuring
) -> None:
    measuring.quick, measuring.reported = 5, 61.0  # only what the third round takes leaves no time
    measuring.throughputs = {2: [90.0, 10.0, 92.0], 1: [70.0]}
    outcome = await run(define, thorough=True)
    assert measuring.groups == [NARROW, WIDE, WIDE, NARROW, NARROW, WIDE]
    assert outcome.rounds == 3
    assert outcome.present.throughput == 90.0  # the median: one bad round of three does not decide
    assert outcome.chosen.candidate.layout.instances == 2


async def test_the_disturbance_is_the_median_over_all_that_was_measured(
    define: Define, measuring: Measuring
) -> None:
    measuring.quick, measuring.reported = 3, 61.0
    measuring.disturbances = [0.0, 0.5, 0.1, 0.2]
    assert (await run(define, thorough=True)).disturbance == pytest.approx(0.15)


async def test_a_round_that_does_not_fit_is_not_begun(define: Define, measuring: Measuring) -> None:
    measuring.reported = 6.0
    outcome = await run(define, seconds=10.0, thorough=True)
    assert (measuring.groups, outcome.rounds) == ([NARROW, WIDE], 1)


async def test_layouts_that_do_not_fit_are_left_out_of_a_quick_measurement_only(
    define: Define, measuring: Measuring
) -> None:
    measuring.reported = 61.0
    outcome = await run(define)
    assert (measuring.groups, outcome.complete) == ([NARROW], False)
    assert {entry.candidate.layout for entry in outcome.measured} == {Layout(2, 1, 2), Layout(2, 1)}
    measuring.groups.clear()
    assert (await run(define, thorough=True)).complete
    assert measuring.groups == [NARROW, WIDE]


async def test_layouts_that_need_too_much_memory_are_left_out(define: Define, measuring: Measuring) -> None:
    definition = define("max_batch_size: 8", cores=16)
    # Four one-thread instances, and one with all threads: a fifth of this for each.
    measuring.memory, measuring.reported = int(memory_bytes() * tuner.MEMORY_SHARE), 61.0
    outcome = await tune(definition, Machine(16), seconds=60.0, thorough=True)
    counts = {entry.candidate.layout.instances for entry in outcome.measured}
    assert (counts, outcome.complete) == ({1, 2, 4}, False)


async def test_a_layout_that_fails_is_left_out(define: Define, measuring: Measuring) -> None:
    measuring.fails = lambda group: group[0].instances == 1
    outcome = await run(define)
    assert not outcome.complete
    assert {entry.candidate.layout.instances for entry in outcome.measured} == {2}


async def test_if_the_present_layout_fails_the_model_is_not_tuned(
    define: Define, measuring: Measuring
) -> None:
    measuring.fails = lambda group: True
    with pytest.raises(NotTunableError, match="a process ended"):
        await run(define)


async def test_a_model_that_cannot_be_loaded_is_not_measured(define: Define) -> None:
    with pytest.raises(NotTunableError, match="cannot load"):
        await run(define)


async def test_what_never_ends_is_given_up(define: Define, measuring: Measuring) -> None:
    measuring.seconds = 1000.0
    with pytest.raises(NotTunableError, match=r"could not be measured in 0\.4 seconds"):
        await run(define, seconds=0.2)


@pytest.mark.usefixtures("measuring")
async def test_a_failure_that_takes_long_to_clean_up_is_given_up_too(
    define: Define, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ExecutionFailedError("a process ended")

    async def measure(*_: object) -> GroupResult:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
        except BaseExceptionGroup:
            await asyncio.sleep(1000.0)
        raise AssertionError

    monkeypatch.setattr(tuner, "measure_group", measure)
    with pytest.raises(NotTunableError, match="could not be measured"):
        await run(define, seconds=0.2)


async def test_what_was_measured_before_the_time_was_up_counts(define: Define, measuring: Measuring) -> None:
    measuring.stuck = WIDE
    outcome = await run(define, seconds=0.5)
    assert not outcome.complete
    assert {entry.candidate.layout.instances for entry in outcome.measured} == {2}


async def test_a_configuration_that_says_everything_is_a_reason(define: Define) -> None:
    given = ("intra_op_thread_count", "lone_threads", "max_batch_rows")
    text = "instance_group { count: 1 }" + "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}' for key in given
    )
    with pytest.raises(NotTunableError, match="its configuration says everything"):
        await tune(define(text), MACHINE, seconds=1.0, thorough=False)
