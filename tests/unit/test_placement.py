"""Which cores a worker binds its thread to, and when."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.placement import Placement

TWO = InstanceSpec("m", "onnx", "", instances=2)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """What the thread is bound to, one after another, on a machine where it may use cores 3 and 5."""
    calls: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: calls.append(set(cores)))
    return calls


def settled(spec: InstanceSpec, *beside: bool) -> None:
    placement = Placement(spec)
    for others in beside:
        placement.settle(beside=others)


@pytest.mark.parametrize(("number", "core"), [(0, 3), (1, 5), (2, 3)])
def test_each_instance_has_a_core_while_others_run(bound: list[set[int]], number: int, core: int) -> None:
    settled(replace(TWO, number=number, instances=3), False, True, True, False, False, True)
    assert bound == [{core}, {3, 5}, {core}]


@pytest.mark.parametrize(
    "change",
    [{"instances": 1}, {"threads": 2}, {"device": "cuda:0"}],
    ids=["more cores than instances", "several threads", "on a GPU"],
)
def test_nothing_else_is_bound(bound: list[set[int]], change: dict[str, Any]) -> None:
    settled(replace(TWO, **change), True, False, True)
    assert bound == []


def test_a_single_core_needs_no_binding(bound: list[set[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    settled(TWO, True)
    assert bound == []


def test_cores_that_are_gone_stop_nothing(bound: list[set[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, cores: set[int]) -> None:
        raise OSError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    settled(TWO, True, False)


def test_systems_without_affinity_bind_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    settled(TWO, True)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot be left")
def test_the_thread_moves() -> None:
    cores = os.sched_getaffinity(0)
    placement = Placement(replace(TWO, number=1, instances=len(cores)))
    try:
        placement.settle(beside=True)
        assert os.sched_getaffinity(0) == {sorted(cores)[1]}
        placement.settle(beside=False)
        assert os.sched_getaffinity(0) == cores
    finally:
        os.sched_setaffinity(0, cores)
