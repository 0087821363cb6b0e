from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.instances import Machine
from headrace.server.repository.model import Model
from headrace.server.tuning.cache import Record, TuningCache
from headrace.server.tuning.candidates import Candidate, Layout, present_layout
from headrace.server.tuning.choice import Measurement
from headrace.server.tuning.models import TunedModels, Turns, tuning_mode

Define = Any
CHOSEN = Measurement(Candidate(Layout(1, 8), 16), 99.0, 10.0)


@dataclass
class Started:
    """A factory that notes what it is asked to start."""

    definitions: list[ModelDefinition] = field(default_factory=list)
    disposed: list[Model] = field(default_factory=list)

    async def build(self, definition: ModelDefinition, on_failed: Callable[[Model, str], None]) -> Model:
        self.definitions.append(definition)
        return cast("Model", definition)

    async def dispose(self, model: Model) -> None:
        self.disposed.append(model)


def test_auto_measures_where_rules_cannot_know() -> None:
    assert tuning_mode("auto", Machine(4)) == "cached"
    assert tuning_mode("auto", Machine(5)) == "load"
    assert tuning_mode("auto", Machine(16, gpus=1)) == "cached"
    assert tuning_mode("load", Machine(2)) == "load"
    assert tuning_mode("cached", Machine(16)) == "cached"
    assert tuning_mode("off", Machine(16)) is None


def ignore(model: Model, reason: str) -> None:
    raise AssertionError(reason)


async def test_a_kept_measurement_decides(define: Define, tmp_path: Path) -> None:
    cache, started = TuningCache(tmp_path / "cache", {}), Started()
    definition = define("max_batch_size: 64")
    cache.write(definition, Record("m", 1, CHOSEN, (CHOSEN,), complete=True, disturbance=0.0, facts={}))
    models = TunedModels(started, Machine(8), cache, "cached", seconds=1.0, tolerance=1.0)
    model = await models.build(definition, ignore)
    assert present_layout(started.definitions[0]) == CHOSEN.candidate.layout
    assert started.definitions[0].parameters["max_batch_rows"] == "16"
    await models.dispose(model)
    assert started.disposed == [model]


async def test_without_a_measurement_nothing_changes(define: Define, tmp_path: Path) -> None:
    started = Started()
    definition = define("max_batch_size: 64")
    await TunedModels(
        started, Machine(8), TuningCache(tmp_path, {}), "cached", seconds=1.0, tolerance=1.0
    ).build(definition, ignore)
    assert started.definitions == [definition]


@pytest.mark.parametrize(
    "config", ['instance_group { count: 1 } parameters { key: "lone_threads" value { string_value: "0" } }']
)
async def test_a_model_that_cannot_be_measured_is_started_as_it_is(
    define: Define, tmp_path: Path, config: str
) -> None:
    started = Started()
    definition = define(config)  # its file is no model: the worker that would measure it cannot load it
    await TunedModels(
        started, Machine(8), TuningCache(tmp_path / "cache", {}), "load", seconds=1.0, tolerance=1.0
    ).build(definition, ignore)
    assert started.definitions == [definition]
    assert not (tmp_path / "cache").exists()


async def test_exclusive_work_is_alone_and_ordinary_work_is_not() -> None:
    turns, log = Turns(), []

    async def ordinary(name: str, leave: asyncio.Event) -> None:
        async with turns.ordinary():
            log.append(name)
            await leave.wait()

    async def exclusive(leave: asyncio.Event) -> None:
        async with turns.exclusive():
            log.append("exclusive")
            await leave.wait()

    first, second = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for name in ("a", "b"):
            tasks.create_task(ordinary(name, first))
        await asyncio.sleep(0)
        tasks.create_task(exclusive(second))
        for _ in range(5):
            await asyncio.sleep(0)
        assert log == ["a", "b"]
        first.set()
        while "exclusive" not in log:
            await asyncio.sleep(0)
        tasks.create_task(ordinary("c", first))
        tasks.create_task(exclusive(second))
        for _ in range(5):
            await asyncio.sleep(0)
        assert log == ["a", "b", "exclusive"]
        second.set()
    assert sorted(log) == ["a", "b", "c", "exclusive", "exclusive"]


async def test_exclusive_work_that_fails_makes_room() -> None:
    turns = Turns()
    with pytest.raises(RuntimeError):
        async with turns.exclusive():
            raise RuntimeError
    async with turns.ordinary():
        pass
