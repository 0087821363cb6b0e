from __future__ import annotations

import pytest

from headrace.server.errors import LoadFailedError
from headrace.server.repository.config import parse_text
from headrace.server.repository.instances import Instance, Machine, fill_instance_group, plan_instances
from headrace.server.repository.parameters import ModelParameters


def plan(text: str, machine: Machine, **parameters: int) -> list[Instance]:
    config = parse_text(f'name: "m" {text}', "F")
    given = bool(config.instance_group)
    fill_instance_group(config, machine)
    return plan_instances(config, ModelParameters(**parameters), machine, given=given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cores", "count", "threads"),
    [
        (1, 1, 1), (2, 2, 1), (4, 4, 1), (5, 4, 1), (6, 3, 2), (7, 3, 2), (8, 4, 2), (9, 3, 3), (16, 4, 4),
        (64, 4, 16),
    ],
)  # fmt: skip
def test_without_a_group_narrow_instances_share_the_cores(cores: int, count: int, threads: int) -> None:
    planned = plan("", Machine(cores))
    assert [instance.threads for instance in planned] == [threads] * count
    # All cores for a batch that runs alone, on the first instance only.
    assert [instance.lone_threads for instance in planned] == [cores if cores > 1 else 0] + [0] * (count - 1)


@pytest.mark.parametrize(("count", "threads"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_cores_are_shared_out_among_a_given_count(count: int, threads: int) -> None:
    planned = plan(f"instance_group {{ kind: KIND_CPU count: {count} }}", Machine(8))
    assert planned == [Instance("cpu", threads)] * count


def test_a_group_without_a_count_has_one_instance() -> None:
    assert plan("instance_group { kind: KIND_CPU }", Machine(8)) == [Instance("cpu", 8)]


def test_thread_parameters_decide() -> None:
    assert plan("", Machine(2), intra_op_thread_count=3) == [Instance("cpu", 3)] * 2
    assert plan("", Machine(2), lone_threads=0) == [Instance("cpu", 1)] * 2
    assert plan("", Machine(16), intra_op_thread_count=1) == [Instance("cpu", 1)] * 4
    group = "instance_group { count: 2 }"
    assert plan(group, Machine(8), lone_threads=8) == [Instance("cpu", 4, 8), Instance("cpu", 4)]
    assert plan(group, Machine(8), lone_threads=4) == [Instance("cpu", 4)] * 2


def test_at_most_two_cores_are_left_over() -> None:
    for cores in range(1, 130):
        planned = plan("", Machine(cores))
        assert 0 <= cores - sum(instance.threads for instance in planned) <= 2, cores


def test_gpus() -> None:
    machine = Machine(8, gpus=2)
    assert [instance.device for instance in plan("", machine)] == ["cuda:0", "cuda:1"]
    group = "instance_group { kind: KIND_GPU count: 2 gpus: [ 1 ] }"
    assert [instance.device for instance in plan(group, machine)] == ["cuda:1", "cuda:1"]
    both = "instance_group [ { kind: KIND_GPU }, { kind: KIND_CPU count: 2 } ]"
    assert [(i.device, i.threads) for i in plan(both, machine)] == [
        ("cuda:0", 1), ("cuda:1", 1), ("cpu", 4), ("cpu", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "text", "message"),
    [
        (Machine(2), "instance_group { kind: KIND_GPU }", "this server has no GPUs; use kind: KIND_CPU"),
        (Machine(2), "instance_group { gpus: [ 0 ] }", "this server has no GPUs"),
        (
            Machine(2, 1),
            "instance_group { gpus: [ 0, 3 ] }",
            "asks for GPU 3, but this server has GPUs 0 to 0",
        ),
    ],
)
def test_gpus_that_are_not_there(machine: Machine, text: str, message: str) -> None:
    with pytest.raises(LoadFailedError, match=message):
        plan(text, machine)


def test_the_configuration_says_what_runs() -> None:
    config = parse_text('name: "m"', "F")
    fill_instance_group(config, Machine(3))
    (group,) = config.instance_group
    assert (group.name, group.count, group.kind) == ("m_0", 3, group.KIND_CPU)
