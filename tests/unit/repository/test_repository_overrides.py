"""Loading with a configuration or with files that the request brings along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from headrace.server.errors import (
    InvalidArgumentError,
    LoadFailedError,
)
from headrace.server.repository.instances import Machine


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_configuration_overrides(models_of: Any, open_repository: Any) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root)
    await repository.load("m", config=json.dumps({"maxBatchSize": "16"}))
    model = repository.get("m")
    assert model.max_batch_size == 16
    await repository.load("m", config=json.dumps({"maxBatchSize": "16"}))
    assert repository.get("m") is model
    for config, error, text in (
        ("{", InvalidArgumentError, "^Invalid config override: "),
        ('{"nope": 1}', InvalidArgumentError, "^Invalid config override: unknown field 'nope'"),
        (
            '{"max_batch_size": -1}',
            LoadFailedError,
            "m: config override: max_batch_size: 'max_batch_size' must be",
        ),
        ('{"name": "other"}', LoadFailedError, "unexpected directory name 'm' for model 'other'"),
    ):
        with pytest.raises(error, match=text):
            await repository.load("m", config=config)
        assert repository.get("m") is model
    await repository.load("m")  # without the override, the folder counts again
    assert repository.get("m").max_batch_size == 4


async def test_file_overrides(models_of: Any, factory: Any, open_repository: Any, tmp_path: Path) -> None:
    content = models_of.add("m").read_bytes()
    repository = await open_repository(models_of.root)
    await repository.load("new", config="{}", files={"file:7/model.onnx": content})
    assert repository.versions("new") == [7]
    scratch = Path(factory.definitions[-1].specs[0].path).parents[2]
    assert scratch.stat().st_mode & 0o777 == 0o700
    assert ("new", "7", "READY", "") in map(tuple, repository.index(ready=False))
    await repository.unload("new")
    await until(lambda: not scratch.exists())
    await repository.load("m", config="{}", files={"2/model.onnx": content})  # in place of the whole folder
    assert repository.versions("m") == [2]


async def test_graphs_are_not_kept_for_files_of_a_request(
    models_of: Any, factory: Any, open_repository: Any
) -> None:
    content = models_of.add("m").read_bytes()
    repository = await open_repository(models_of.root, machine=Machine(2, graph_cache="graphs"))
    await repository.load("m")
    assert factory.definitions[-1].specs[0].graph_cache == "graphs"
    await repository.load("m", config='{"parameters": {"fuse_attention": {"string_value": "0"}}}')
    assert factory.definitions[-1].specs[0].graph_cache == ""
    await repository.load("new", config="{}", files={"file:7/model.onnx": content})
    assert factory.definitions[-1].specs[0].graph_cache == ""


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "1/../../evil", "", "file:"])
async def test_file_overrides_stay_in_their_folder(models_of: Any, open_repository: Any, path: str) -> None:
    repository = await open_repository(models_of.root)
    with pytest.raises(InvalidArgumentError, match="must not contain path traversal characters"):
        await repository.load("m", config="{}", files={path: b"x"})
    assert repository.index(ready=False) == []


async def test_file_overrides_need_a_configuration(models_of: Any, open_repository: Any) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root)
    with pytest.raises(InvalidArgumentError, match="file overrides need the load parameter 'config'"):
        await repository.load("m", files={"1/model.onnx": b"x"})
    assert repository.is_ready("m", "")


async def test_failed_file_overrides_leave_nothing_behind(
    models_of: Any, open_repository: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    repository = await open_repository(models_of.root)
    for files in ({"1/model.onnx": b"no model"}, {"1/readme": b""}, {"1": b"", "1/model.onnx": b""}):
        with pytest.raises((LoadFailedError, InvalidArgumentError)):
            await repository.load("m", config="{}", files=files)
    assert names_in(tmp_path) == ["models"]
