"""What may be chosen for a model: layouts of worker processes, and limits of a batch.

A *layout* is a number of instances and the threads of each, with or without an all-threads form for a batch
that runs alone. Fields that the configuration sets are not varied: they win over anything measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.server.repository.instances import CPU
from headrace.server.repository.policies import ROWS

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition
    from headrace.server.repository.instances import Machine
    from headrace.server.scheduling.policy import BatchingPolicy

THREADS: Final = "intra_op_thread_count"
LONE_THREADS: Final = "lone_threads"
TOKENS: Final = "max_batch_tokens"

_LEAST_ROWS: Final = 4
_FACTORS: Final = (1.0, 0.5, 2.0, 4.0, 8.0)
"""Limits that are tried, relative to the present one; a quick measurement tries the first three."""
_QUICK: Final = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """Worker processes of a model.

    Attributes:
        instances: processes.
        threads: of each under load, at least 1.
        lone_threads: of a batch that runs alone; 0 when it has no form of its own.
    """

    instances: int
    threads: int
    lone_threads: int = 0

    @property
    def copies(self) -> int:
        """Copies of the model in memory: the all-threads form of ONNX Runtime is one more."""
        return self.instances + (1 if self.lone_threads else 0)

    def __str__(self) -> str:
        alone = f", alone {self.lone_threads}" if self.lone_threads else ""
        return f"{self.instances} x {self.threads}{alone}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout with a limit of a batch: padded tokens for texts, rows for tensors; 0 where there is none."""

    layout: Layout
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Free:
    """Which fields the configuration leaves open."""

    instances: bool
    threads: bool
    lone_threads: bool
    limit: bool

    def __bool__(self) -> bool:
        """Whether there is anything to choose."""
        return self.instances or self.threads or self.lone_threads or self.limit


def present_layout(definition: ModelDefinition) -> Layout:
    """Return the layout that ``definition`` would be started with; its first instance stands for all."""
    specs = definition.specs
    return Layout(len(specs), specs[0].threads, max(spec.lone_threads for spec in specs))


def free_fields(definition: ModelDefinition) -> Free:
    """Return what the configuration does not say, and measuring may therefore choose.

    Models that generate text are excluded: their engine fills the cores with the sequences of one step, and
    its limits (``max_sequences``, ``step_tokens``, …) trade against each other by what callers want. On GPUs
    only the limit of a batch is open: threads do not matter, and each device has one instance.
    """
    if definition.generation_model is not None:
        return Free(instances=False, threads=False, lone_threads=False, limit=False)
    on_cpu = all(spec.device == CPU for spec in definition.specs)
    given = definition.parameters
    dynamic = definition.written.dynamic_batching
    chosen_by_hand = bool(dynamic.preferred_batch_size or dynamic.max_queue_delay_microseconds)
    key = TOKENS if definition.text_model is not None else ROWS
    return Free(
        instances=on_cpu and not definition.written.instance_group,
        threads=on_cpu and given.get(THREADS, "0").strip() in {"", "0"},
        lone_threads=on_cpu and LONE_THREADS not in given,
        limit=key not in given and (definition.text_model is not None or not chosen_by_hand),
    )


def layouts(definition: ModelDefinition, machine: Machine) -> tuple[Layout, ...]:
    """List the layouts to measure, the present one first, then the most promising ones first.

    Many narrow instances, one wide one and the halves between them, all using all cores. Layouts that only
    differ in ``lone_threads`` follow one another, for they are measured with the same processes.
    """
    free, present = free_fields(definition), present_layout(definition)
    found: dict[tuple[int, int], None] = {(present.instances, present.threads): None}
    for instances in _counts(machine.cores) if free.instances else (present.instances,):
        share = max(1, machine.cores // instances)
        wanted = (present.threads,) if not free.threads else (share,) if free.instances else (share, 1)
        for threads in wanted:
            if instances * threads <= max(machine.cores, present.instances * present.threads):
                found[instances, threads] = None
    listed: dict[Layout, None] = {present: None}
    for instances, threads in found:
        alone = (0, machine.cores) if free.lone_threads else (present.lone_threads,)
        for lone in alone:
            listed[Layout(instances, threads, lone if lone > threads else 0)] = None
    return tuple(listed)


def groups(candidates: tuple[Layout, ...]) -> list[tuple[Layout, ...]]:
    """Put the layouts together that the same processes can measure."""
    grouped: dict[tuple[int, int], list[Layout]] = {}
    for layout in candidates:
        grouped.setdefault((layout.instances, layout.threads), []).append(layout)
    return [tuple(group) for group in grouped.values()]


def limits(definition: ModelDefinition, policy: BatchingPolicy, *, thorough: bool) -> tuple[int, ...]:
    """List the limits of a batch to measure, the present one first; 0 when the model's batches have none."""
    texts = policy.max_tokens > 0
    if not policy.join:
        return (0,)
    present = policy.max_tokens if texts else policy.max_rows
    if not free_fields(definition).limit:
        return (present,)
    if texts:
        return tuple(int(present * factor) for factor in _FACTORS[: None if thorough else _QUICK])
    smaller = [size for size in (32, 8, 16, _LEAST_ROWS) if size < present]
    return (present, *(smaller if thorough else smaller[: _QUICK - 1]))


def _counts(cores: int) -> Iterator[int]:
    """Yield numbers of instances, from both ends towards the middle: the extremes win most often."""
    sizes = sorted({cores} | {1 << power for power in range(cores.bit_length()) if 1 << power <= cores})
    while sizes:
        yield sizes.pop()
        if sizes:
            yield sizes.pop(0)
