from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from headrace.server.errors import LoadFailedError, ModelNotFoundError
from headrace.server.repository.layout import holds_model, model_names, open_model


def test_versions_are_integers_without_leading_zeros(models_of: Any) -> None:
    for folder in ("1", "10", "2", "03", "0", "v4", "latest"):
        (models_of.folder("m") / folder).mkdir()
    (models_of.folder("m") / "7").write_text("a file, no version")
    assert list(open_model("m", [models_of.root]).versions) == [1, 2, 10]


def test_a_folder_with_model_files_is_version_1(models_of: Any) -> None:
    (models_of.folder("hf") / "config.json").write_text("{}")
    folder = open_model("hf", [models_of.root])
    assert dict(folder.versions) == {1: models_of.root / "hf"}


def test_version_folders_win_over_files_beside_them(models_of: Any) -> None:
    (models_of.folder("m") / "config.json").write_text("{}")
    (models_of.folder("m") / "2").mkdir()
    assert list(open_model("m", [models_of.root]).versions) == [2]


def test_a_folder_with_nothing_says_what_it_has(models_of: Any) -> None:
    (models_of.folder("m") / "readme.txt").write_text("")
    with pytest.raises(LoadFailedError) as caught:
        open_model("m", [models_of.root])
    assert "m: the model has no version folder" in caught.value.message
    assert "'readme.txt'" in caught.value.message


def test_unknown_model_begins_with_tritons_text(models_of: Any) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        open_model("nope", [models_of.root])
    assert caught.value.message.startswith("failed to load 'nope', failed to poll from model repository")


def test_names_keep_the_order_of_the_repositories(tmp_path: Path) -> None:
    for path in ("one/b", "one/a", "two/c", "two/a", "one/.git"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "one/file").write_text("")
    assert model_names([tmp_path / "one", tmp_path / "two", tmp_path / "absent"]) == ["a", "b", "c"]


def test_a_name_in_two_repositories_is_refused(tmp_path: Path) -> None:
    for path in ("one/a/1", "two/a/1"):
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(LoadFailedError, match=r"more than one repository: 'one/a', 'two/a'"):
        open_model("a", [tmp_path / "one", tmp_path / "two"])


def test_links_out_of_the_repositories_are_refused(models_of: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "1").mkdir(parents=True)
    (models_of.root / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LoadFailedError, match="leads out of the model repositories"):
        open_model("linked", [models_of.root])
    models_of.folder("m")
    (models_of.root / "m" / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LoadFailedError, match="leads out of the repositories"):
        open_model("m", [models_of.root])


def test_links_between_repositories_are_followed(tmp_path: Path) -> None:
    (tmp_path / "store" / "data" / "1").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").symlink_to(tmp_path / "store" / "data")
    assert list(open_model("m", [tmp_path / "models", tmp_path / "store"]).versions) == [1]


async def test_files_of_linked_folders_are_files_of_the_model(
    models_of: Any, open_repository: Any, tmp_path: Path
) -> None:
    path = models_of.add("m", version=2)
    models_of.folder("m").joinpath("1").symlink_to("2")
    models_of.folder("m").joinpath("loop").symlink_to(".")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    models_of.folder("m").joinpath("notes").symlink_to(elsewhere)
    models_of.add("linked")
    shutil.rmtree(models_of.root / "linked" / "1")
    (models_of.root / "linked" / "1").symlink_to(path.parent)
    repository = await open_repository(models_of.root)
    for name in ("m", "linked"):
        await repository.load(name)
        model = repository.get(name)
        (elsewhere / "file").write_text(name)  # no model may use it
        await repository.load(name)
        assert repository.get(name) is model
        os.utime(path, ns=(1, len(name)))
        await repository.load(name)
        assert repository.get(name) is not model
    model = repository.get("m")
    models_of.folder("m").joinpath("3").symlink_to("2")
    await repository.load("m")
    assert repository.get("m").version == 3


def test_files_are_looked_for_in_the_folder_only(models_of: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (models_of.folder("m") / "1").mkdir()
    (models_of.root / "m" / "labels.txt").symlink_to(tmp_path / "secret")
    folder = open_model("m", [models_of.root])
    for name, text in (
        ("../../secret", "leads out"),
        ("/etc/passwd", "leads out"),
        ("labels.txt", "is a link"),
    ):
        with pytest.raises(LoadFailedError, match=text):
            folder.file(folder.path, name, "label_filename")
    with pytest.raises(LoadFailedError, match=r"label_filename: there is no file 'm/absent'; the folder has"):
        folder.file(folder.path, "absent", "label_filename")


def test_a_repository_is_told_from_a_model(models_of: Any) -> None:
    models_of.add("m")
    assert holds_model(models_of.root / "m")
    assert not holds_model(models_of.root)
