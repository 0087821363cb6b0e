"""Measuring layouts: real worker processes under a real batcher, without gRPC and tokenising around them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

from headrace.server.errors import ExecutionFailedError, HeadraceError
from headrace.server.repository.policies import batching_policy, text_limits
from headrace.server.scheduling.batcher import Batcher
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.tuning.application import apply
from headrace.server.tuning.candidates import Candidate, Layout, limits
from headrace.server.tuning.choice import Measurement
from headrace.server.tuning.disturbance import disturbance, usage
from headrace.server.tuning.load import lone_seconds, settle, throughput
from headrace.server.tuning.workload import NotTunableError, tensor_samples, text_samples
from headrace.server.workers.group import WorkerGroup
from headrace.server.workers.instance import Instance
from headrace.server.workers.supervised import RestartPolicy

if TYPE_CHECKING:
    from headrace.runtimes.base import InstanceSpec
    from headrace.server.repository.definition import ModelDefinition
    from headrace.server.repository.instances import Machine
    from headrace.server.scheduling.policy import BatchingPolicy

LEAST_CLIENTS: Final = 4
MOST_CLIENTS: Final = 32
_WARM_UP: Final = 4  # samples: short and long ones
_QUEUE: Final = 1 << 16
_NO_RESTARTS: Final = RestartPolicy(attempts=0)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much work goes into one measurement.

    Attributes:
        seconds: of each measurement.
        thorough: all limits of a batch, not only the nearest ones.
        clients: requests under way when throughput is measured; 0 finds out how many are worth it. All
            candidates of a model have to get the same.
    """

    seconds: float
    thorough: bool = False
    clients: int = 0


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What the layouts of one group reached.

    Attributes:
        measured: each layout with each limit.
        clients: requests that were under way.
        seconds: it took, starting and ending the processes included.
        disturbance: share of the processors that other programs used meanwhile, from 0 to 1.
    """

    measured: tuple[Measurement, ...]
    clients: int
    seconds: float
    disturbance: float = 0.0


def model_memory(pids: Sequence[int]) -> int:
    """Return the bytes that processes have for themselves alone; one that has ended has none."""
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_full_info().uss
    return total


async def load_once(definition: ModelDefinition) -> None:
    """Start one process of a model and end it: files are in memory then, and graphs that are kept were made.

    Raises:
        NotTunableError: the model cannot be started.
    """
    workers = WorkerGroup(definition.specs[:1], lambda spec, _: _unsupervised(spec, _note), _note)
    try:
        await workers.start()
    except HeadraceError as error:
        raise NotTunableError(error.message) from error
    await workers.stop()


async def measure_group(
    definition: ModelDefinition, group: Sequence[Layout], machine: Machine, effort: Effort
) -> GroupResult:
    """Start the processes that the layouts of ``group`` share, measure, and end them.

    Args:
        definition: the model.
        group: layouts that only differ in ``lone_threads``.
        machine: what instances are planned for.
        effort: how much to measure.

    Raises:
        LoadFailedError: the model cannot be started.
        NotTunableError: nobody can make up requests for it.
        HeadraceError: it does not take those that were made up.
    """
    started = time.monotonic()
    widest = max(group, key=lambda layout: layout.lone_threads)
    shaped = apply(definition, Candidate(widest), machine)
    current: list[Batcher] = []

    def ended(reason: str) -> None:
        for made in current:
            made.abort(ExecutionFailedError(f"a process ended while it was measured: {reason}"))

    workers = WorkerGroup(shaped.specs, lambda spec, _: _unsupervised(spec, ended), ended)
    loaded = await workers.start()
    try:
        completed = shaped.complete(loaded)
        text = definition.text_model
        samples = text_samples(text) if text is not None else tensor_samples(completed)
        policy = batching_policy(completed.config, _QUEUE, text_limits(shaped, completed.padding))

        def batcher(policy: BatchingPolicy) -> Batcher:
            made = Batcher(policy, ModelStatistics())
            current[:] = [made]
            for worker in workers.instances:
                worker.attach(made)
            return made

        await lone_seconds(batcher(dataclasses.replace(policy, lone=False)), samples[:_WARM_UP], 0.0)
        narrow = model_memory(workers.pids)
        await lone_seconds(batcher(policy), samples[:_WARM_UP], 0.0)  # has the all-threads form loaded
        await settle(workers.pids)
        wide = max(0, model_memory(workers.pids) - narrow)
        request = await lone_seconds(batcher(policy), samples[:_WARM_UP], effort.seconds / 4)
        clients = effort.clients or _clients(effort.seconds * widest.instances / request / 2, machine.cores)
        before = usage(workers.pids)
        lone = {
            layout: 1e3 * await lone_seconds(batcher(_form(policy, layout)), samples, effort.seconds)
            for layout in group
        }
        measured: list[Measurement] = []
        for limit in limits(definition, policy, thorough=effort.thorough):
            limited = batcher(_limited(policy, limit))
            reached = await throughput(limited, samples, clients, effort.seconds)
            memory = model_memory(workers.pids)
            measured += [
                Measurement(
                    Candidate(layout, limit),
                    reached,
                    lone[layout],
                    memory if layout.lone_threads else memory - wide,
                )
                for layout in group
            ]
        others = disturbance(before, usage(workers.pids))
    finally:
        await workers.stop()
    return GroupResult(tuple(measured), clients, time.monotonic() - started, others)


def _note(_: str) -> None:
    """Leave a process that ends early to those that measure: it ends there too."""


def _unsupervised(spec: InstanceSpec, ended: Callable[[str], None]) -> Instance:
    """Return an instance that is not started again when its process ends."""
    return Instance(spec, _NO_RESTARTS, on_restart=lambda: None, on_failed=ended)


def _form(policy: BatchingPolicy, layout: Layout) -> BatchingPolicy:
    """Let lone batches use the all-threads form if the layout has one."""
    return dataclasses.replace(policy, lone=layout.lone_threads > 0)


def _limited(policy: BatchingPolicy, limit: int) -> BatchingPolicy:
    """Set the limit of a batch: tokens of texts, rows of tensors."""
    if not limit:
        return policy
    if policy.max_tokens:
        return dataclasses.replace(policy, max_tokens=limit)
    return dataclasses.replace(policy, max_rows=limit)


def _clients(wanted: float, cores: int) -> int:
    """Bound the requests under way: enough for good batches, few enough that the span sees them answered."""
    return max(LEAST_CLIENTS, 2 * cores, min(MOST_CLIENTS, int(wanted)))
