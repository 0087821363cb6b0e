"""Which worker processes a model gets: one per instance, with its device and threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from headrace.kserve.v2.model_config_pb2 import ModelConfig, ModelInstanceGroup
from headrace.server.errors import LoadFailedError
from headrace.server.repository.parameters import ModelParameters

MOST_DEFAULT_INSTANCES: Final = 4
"""Instances on the CPU where the configuration says nothing: some runtimes hold the model once for each."""

_DEFAULT_INSTANCES: Final = (MOST_DEFAULT_INSTANCES, 3)
"""How many a machine with more cores has: whatever uses most of them, the first where both do."""

CPU: Final = "cpu"


@dataclass(frozen=True, slots=True)
class Machine:
    """What models may be planned for.

    Attributes:
        cores: processor cores, at least 1.
        gpus: CUDA devices.
        graph_cache: folder that workers may keep fused graphs in; empty for none.
        weight_cache: folder that workers may keep shared weights in; empty for none.
    """

    cores: int
    gpus: int = 0
    graph_cache: str = ""
    weight_cache: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """One worker: device ``cpu`` or ``cuda:N``, intra-op threads, and threads of a batch that runs alone."""

    device: str
    threads: int
    lone_threads: int = 0


def fill_instance_group(config: ModelConfig, machine: Machine, *, single: bool = False) -> None:
    """Make ``instance_group`` say what will run: names, kinds, counts and devices.

    Without one, a machine with CUDA devices runs one instance on each, another as many on the CPU as
    :func:`default_instances` says. ``single`` has it run one: an engine fills the cores with the sequences of
    one step.

    Raises:
        LoadFailedError: a group asks for devices that are not there.
    """
    if not config.instance_group:
        count = 1 if machine.gpus or single else default_instances(machine.cores)
        config.instance_group.add(count=count)
    for index, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{index}"
        group.count = group.count or 1
        if group.kind in (ModelInstanceGroup.KIND_AUTO, ModelInstanceGroup.KIND_MODEL):
            on_gpu = machine.gpus > 0 or bool(group.gpus)
            group.kind = ModelInstanceGroup.KIND_GPU if on_gpu else ModelInstanceGroup.KIND_CPU
        if group.kind == ModelInstanceGroup.KIND_GPU:
            _fill_gpus(config, group, machine)


def default_instances(cores: int) -> int:
    """Return how many instances share ``cores`` where nobody says.

    A busy CPU does most with as many one-thread instances as it has cores. With more cores than 4, each of 4
    has several threads, or each of 3 where fewer cores are left over so.
    """
    if cores <= MOST_DEFAULT_INSTANCES:
        return cores
    return max(_DEFAULT_INSTANCES, key=lambda count: cores // count * count)


def plan_instances(
    config: ModelConfig, parameters: ModelParameters, machine: Machine, *, given: bool
) -> list[Instance]:
    """List the instances of a configuration whose groups are filled.

    Args:
        config: with ``instance_group`` filled.
        parameters: ``intra_op_thread_count`` and ``lone_threads`` decide where they are set.
        machine: what there is.
        given: the instance groups are the user's own, not the default.
    """
    devices = [device for group in config.instance_group for device in _devices(group)]
    on_cpu = max(1, devices.count(CPU))
    threads = parameters.intra_op_thread_count or max(1, machine.cores // on_cpu)
    lone = parameters.lone_threads
    if lone is None:
        # A single caller is served fastest by all cores together; lone batches go to the first instance.
        lone = 0 if given or parameters.intra_op_thread_count else machine.cores
    instances: list[Instance] = []
    for device in devices:
        if device != CPU:
            instances.append(Instance(device, parameters.intra_op_thread_count or 1))
        else:
            first = not any(instance.device == CPU for instance in instances)
            instances.append(Instance(CPU, threads, lone if first and lone != threads else 0))
    return instances


def _devices(group: ModelInstanceGroup) -> list[str]:
    names = [f"cuda:{gpu}" for gpu in group.gpus] if group.kind == ModelInstanceGroup.KIND_GPU else [CPU]
    return [name for name in names for _ in range(group.count)]


def _fill_gpus(config: ModelConfig, group: ModelInstanceGroup, machine: Machine) -> None:
    if not machine.gpus:
        raise LoadFailedError(
            f"instance_group '{group.name}' of model '{config.name}' has kind KIND_GPU, but this server has "
            "no GPUs; use kind: KIND_CPU",
            model=config.name,
        )
    if not group.gpus:
        group.gpus.extend(range(machine.gpus))
    missing = [gpu for gpu in group.gpus if gpu >= machine.gpus]
    if missing:
        raise LoadFailedError(
            f"instance_group '{group.name}' of model '{config.name}' asks for GPU {missing[0]}, but this "
            f"server has GPUs 0 to {machine.gpus - 1}",
            model=config.name,
        )
