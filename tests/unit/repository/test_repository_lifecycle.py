"""How models of a repository are loaded, replaced, withdrawn and listed."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from headrace.server.errors import (
    InvalidArgumentError,
    LoadFailedError,
    ModelControlDisabledError,
    ModelNotFoundError,
    ModelNotReadyError,
    ServerDrainingError,
)


def lines(repository: Any, *, ready: bool = False) -> list[tuple[str, str, str, str]]:
    return [tuple(entry) for entry in repository.index(ready=ready)]


async def test_start_loads_everything_and_notes_what_fails(models_of: Any, open_repository: Any) -> None:
    models_of.add("good")
    models_of.add("bad").write_bytes(b"no model")
    models_of.add("worse", config="max_batch_sise: 1")
    repository = await open_repository(models_of.root)
    assert [model.name for model in repository.ready_models()] == ["good"]
    bad, good, worse = lines(repository)
    assert good == ("good", "1", "READY", "")
    assert bad[:3] == ("bad", "1", "UNAVAILABLE")
    assert bad[3].startswith("Internal: ONNX Runtime cannot load 'model.onnx'")
    assert worse[:3] == ("worse", "", "UNAVAILABLE")
    assert "worse/config.pbtxt:1: unknown field 'max_batch_sise'" in worse[3]
    assert lines(repository, ready=True) == [good]
    assert repository.states() == {"bad": False, "good": True, "worse": False}
    assert not repository.all_ready()


async def test_texts_for_models_that_do_not_answer(models_of: Any, open_repository: Any) -> None:
    models_of.add("good")
    models_of.add("bad").write_bytes(b"no model")
    repository = await open_repository(models_of.root)
    for name, version, error, text in (
        ("nope", "", ModelNotFoundError, "Request for unknown model: 'nope' is not found"),
        ("", "", ModelNotFoundError, "Request for unknown model: '' is not found"),
        ("good", "2", ModelNotFoundError, "Request for unknown model: 'good' version 2 is not found"),
        ("good", "0", ModelNotFoundError, "Request for unknown model: 'good' version 0 is not found"),
        ("bad", "", ModelNotFoundError, "Request for unknown model: 'bad' has no available versions"),
        ("bad", "1", ModelNotReadyError, "Request for unknown model: 'bad' version 1 is not at ready state"),
    ):
        with pytest.raises(error) as caught:
            repository.get(name, version)
        assert caught.value.message == text
        assert repository.is_ready(name, version) is False
    with pytest.raises(InvalidArgumentError):
        repository.get("good", "abc")
    with pytest.raises(InvalidArgumentError):
        repository.is_ready("nope", "-1")
    assert repository.is_ready("good", "")
    assert repository.is_ready("good", "1")


async def test_models_are_on_their_way_while_they_load(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    models_of.add("m")
    factory.gate = asyncio.Event()
    repository = await open_repository(models_of.root, start=False)
    assert not repository.all_ready()
    starting = asyncio.create_task(repository.start())
    await until(lambda: factory.waiting)
    assert lines(repository) == [("m", "1", "LOADING", "")]
    with pytest.raises(
        ModelNotReadyError, match="Request for unknown model: 'm' version 1 is not at ready state"
    ):
        repository.get("m")
    with pytest.raises(ModelNotReadyError, match="models are loading"):
        repository.resolve("")
    assert not repository.all_ready()
    factory.gate.set()
    await starting
    assert repository.all_ready()


async def test_four_models_are_started_at_once(models_of: Any, factory: Any, open_repository: Any) -> None:
    for name in "abcdef":
        models_of.add(name)
    factory.gate = asyncio.Event()
    repository = await open_repository(models_of.root, start=False)
    starting = asyncio.create_task(repository.start())
    await until(lambda: factory.waiting == 4)
    await asyncio.sleep(0.05)
    assert factory.waiting == 4
    factory.gate.set()
    await starting
    assert len(repository.ready_models()) == 6


async def test_only_named_models_are_loaded(models_of: Any, open_repository: Any) -> None:
    for name in "abc":
        models_of.add(name)
    repository = await open_repository(models_of.root, load_models=["b", "nope", "../x"])
    assert [model.name for model in repository.ready_models()] == ["b"]
    index = {line[0]: line[1:] for line in lines(repository)}
    assert index["a"] == ("", "", "")
    assert index["nope"][1] == "UNAVAILABLE"
    assert "path traversal" in index["../x"][2]
    assert not repository.all_ready()


async def test_load_and_unload(models_of: Any, factory: Any, open_repository: Any) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root, load_models=[])
    assert lines(repository) == [("m", "", "", "")]
    with pytest.raises(ModelNotFoundError, match=r"^Request for unknown model: 'm' is not found$"):
        repository.get("m")
    await repository.load("m")
    assert lines(repository) == [("m", "1", "READY", "")]
    await repository.unload("m")
    assert not repository.is_ready("m", "")
    await until(lambda: lines(repository) == [("m", "1", "UNAVAILABLE", "unloaded")])
    assert factory.disposed == factory.built
    with pytest.raises(
        ModelNotFoundError, match=r"^Request for unknown model: 'm' has no available versions$"
    ):
        repository.get("m")
    assert repository.all_ready()  # what was unloaded on purpose is no failure
    await repository.unload("m")
    await repository.unload("never-heard-of")
    await repository.load("m")
    assert repository.is_ready("m", "1")


async def test_new_folders_are_listed_and_can_be_loaded(models_of: Any, open_repository: Any) -> None:
    repository = await open_repository(models_of.root)
    models_of.add("late")
    assert lines(repository) == [("late", "", "", "")]
    await repository.load("late")
    assert repository.get("late").name == "late"


async def test_reasons_of_failed_loads(models_of: Any, open_repository: Any) -> None:
    models_of.add("bad").write_bytes(b"no model")
    repository = await open_repository(models_of.root, load_models=[])
    with pytest.raises(ModelNotFoundError) as missing:
        await repository.load("nope")
    assert missing.value.message.startswith("failed to load 'nope', failed to poll from model repository")
    assert lines(repository) == [("bad", "", "", "")]
    assert repository.all_ready()
    with pytest.raises(LoadFailedError) as caught:
        await repository.load("bad")
    assert caught.value.message.startswith(
        "load failed for model 'bad': version 1 is at UNAVAILABLE state: Internal: ONNX Runtime cannot load"
    )
    assert caught.value.message.endswith(";\n")
    assert not repository.all_ready()
    for name, text in (("", "Model name cannot be empty"), ("../bad", "must not contain path traversal")):
        with pytest.raises(InvalidArgumentError, match=text):
            await repository.load(name)
    models_of.add("bad")
    await repository.load("bad")
    assert repository.all_ready()


async def test_unloading_a_failed_model_restores_readiness(models_of: Any, open_repository: Any) -> None:
    models_of.add("bad").write_bytes(b"no model")
    repository = await open_repository(models_of.root)
    assert not repository.all_ready()
    await repository.unload("bad")
    assert repository.all_ready()
    assert lines(repository) == [("bad", "1", "UNAVAILABLE", "unloaded")]


async def test_loading_unchanged_files_does_nothing(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    path = models_of.add("m")
    repository = await open_repository(models_of.root)
    model = repository.get("m")
    await repository.load("m")
    assert repository.get("m") is model
    os.utime(path, ns=(1, 1))
    await repository.load("m")
    assert repository.get("m") is not model
    assert len(factory.built) == 2


async def test_reload_swaps_only_when_the_new_one_is_ready(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    models_of.add("m", config="max_batch_size: 2")
    repository = await open_repository(models_of.root)
    old = repository.get("m")
    models_of.config("m", "max_batch_size: 16")
    factory.gate = asyncio.Event()
    loading = asyncio.create_task(repository.load("m"))
    await until(lambda: factory.waiting)
    assert repository.get("m") is old
    assert lines(repository) == [("m", "1", "READY", "")]
    assert repository.all_ready()
    factory.gate.set()
    await loading
    assert (old.max_batch_size, repository.get("m").max_batch_size) == (2, 16)
    # A request that got the old model before the swap still has it: it is not ended under its feet.
    await asyncio.sleep(0.1)
    assert factory.disposed == []
    del old
    await until(lambda: len(factory.disposed) == 1)
    assert factory.disposed[0].max_batch_size == 2


async def test_failed_requests_do_not_hold_a_model(
    models_of: Any, factory: Any, open_repository: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.server.repository.loading.RELEASE_SECONDS", 3600)
    monkeypatch.setattr("headrace.server.repository.lifecycle.IDLE_SECONDS", 0.05)
    models_of.add("m")
    repository = await open_repository(models_of.root)

    def fail() -> None:
        model = repository.get("m")
        try:
            int(model.name)
        except ValueError as error:
            kept = error  # exception, traceback, this frame, exception: a cycle that has the model
            assert kept.__traceback__ is not None

    gc.disable()
    try:
        fail()
        await repository.unload("m")
        await until(lambda: factory.disposed)
    finally:
        gc.enable()


async def test_a_request_that_never_ends_does_not_hold_a_model(
    models_of: Any, factory: Any, open_repository: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.server.repository.loading.RELEASE_SECONDS", 0.05)
    models_of.add("m")
    repository = await open_repository(models_of.root)
    held = repository.get("m")
    await repository.unload("m")
    await until(lambda: factory.disposed)
    assert held.name == "m"


async def test_a_failed_reload_keeps_the_old_model(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root)
    model = repository.get("m")
    for config, text in (
        ("max_batch_sise: 3", "unknown field"),
        ('input { name: "WRONG" data_type: TYPE_FP32 dims: [ 4 ] }', "the model has no such input"),
    ):
        models_of.config("m", config)
        with pytest.raises(LoadFailedError, match=text):
            await repository.load("m")
        assert repository.get("m") is model
        assert lines(repository) == [("m", "1", "READY", "")]
    assert repository.all_ready()
    assert factory.disposed == []


async def test_all_versions_or_none(models_of: Any, factory: Any, open_repository: Any) -> None:
    models_of.add("m", config="version_policy { all { } }")
    models_of.add("m", version=2).write_bytes(b"no model")
    repository = await open_repository(models_of.root)
    first, second = lines(repository)
    assert first == ("m", "1", "UNAVAILABLE", "not served because another version failed to load")
    assert second[:3] == ("m", "2", "UNAVAILABLE")
    assert len(factory.disposed) == len(factory.built) == 1
    models_of.add("m", version=2)
    await repository.load("m")
    assert repository.versions("m") == [1, 2]
    assert repository.get("m").version == 2
    assert repository.get("m", "1").version == 1


async def test_operations_on_one_name_follow_one_another(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root, load_models=[])
    await asyncio.gather(*(repository.load("m") for _ in range(5)))
    assert len(factory.built) == 1  # the others found nothing changed
    await asyncio.gather(
        *(operation("m") for operation in (repository.unload, repository.load) for _ in range(3))
    )
    serving = repository.is_ready("m", "")
    await until(lambda: len(factory.built) - len(factory.disposed) == serving)


async def test_a_cancelled_caller_does_not_stop_the_load(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root, load_models=[])
    factory.gate = asyncio.Event()
    loading = asyncio.create_task(repository.load("m"))
    await until(lambda: factory.waiting)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    factory.gate.set()
    await until(lambda: repository.is_ready("m", ""))


async def test_stop_gives_up_what_is_loading(models_of: Any, factory: Any, open_repository: Any) -> None:
    models_of.add("a")
    models_of.add("b")
    repository = await open_repository(models_of.root, load_models=["a"])
    factory.gate = asyncio.Event()
    loading = asyncio.create_task(repository.load("b"))
    await until(lambda: factory.waiting)
    await repository.stop()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert len(factory.disposed) == 1
    assert not repository.all_ready()
    with pytest.raises(ServerDrainingError):
        await repository.load("a")


async def test_mode_none_refuses_control(models_of: Any, open_repository: Any) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root, control_mode="none")
    text = "^explicit model load / unload is not allowed if polling is enabled$"
    with pytest.raises(ModelControlDisabledError, match=text):
        await repository.load("m")
    with pytest.raises(ModelControlDisabledError, match=text):
        await repository.unload("m")
    assert repository.is_ready("m", "")


async def test_models_whose_workers_died_are_withdrawn(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    models_of.add("m")
    changes: list[None] = []
    repository = await open_repository(models_of.root, on_change=lambda: changes.append(None))
    built = factory.built[0]
    before = len(changes)
    factory.given_up[built](built, "worker died with signal 11 five times")
    assert len(changes) > before
    assert lines(repository) == [("m", "1", "UNAVAILABLE", "Internal: worker died with signal 11 five times")]
    assert not repository.all_ready()
    await until(lambda: factory.disposed == [built])
    await repository.load("m")  # its files have not changed, but it is not serving
    assert repository.all_ready()


async def test_statistics_texts(models_of: Any, open_repository: Any) -> None:
    models_of.add("b", config="version_policy { all { } }")
    models_of.add("b", version=2)
    models_of.add("a")
    models_of.add("c")
    repository = await open_repository(models_of.root, load_models=["b", "a"])
    found = [(model.name, model.version) for model in repository.statistics("", "")]
    assert found == [("a", 1), ("b", 1), ("b", 2)]
    assert [model.version for model in repository.statistics("b", "")] == [1, 2]
    assert [model.version for model in repository.statistics("b", "2")] == [2]
    for name, version, text in (
        ("nope", "", "requested model 'nope' is not available"),
        ("c", "", "requested model 'c' is not available"),
        ("a", "7", "requested model version is not available for model 'a'"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            repository.statistics(name, version)
        assert caught.value.message == text


async def test_a_name_in_two_repositories_is_unavailable(
    models_of: Any, tmp_path: Path, open_repository: Any
) -> None:
    models_of.add("m")
    (tmp_path / "other" / "m" / "1").mkdir(parents=True)
    repository = await open_repository(models_of.root, tmp_path / "other")
    ((name, version, state, reason),) = lines(repository)
    assert (name, version, state) == ("m", "", "UNAVAILABLE")
    assert "more than one repository" in reason
