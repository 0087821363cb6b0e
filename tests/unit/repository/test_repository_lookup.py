from __future__ import annotations

from typing import Any

import pytest

from headrace.server.errors import ModelNotFoundError, TaskNotSupportedError
from headrace.server.repository.model import Task

DEFAULT = 'parameters { key: "default" value: { string_value: "true" } } '
CLASSIFIER = {
    "config.json": {"architectures": ["XForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
}


def task(name: str) -> str:
    return f'parameters {{ key: "task" value: {{ string_value: "{name}" }} }} '


@pytest.mark.parametrize("name", ["", "-", "tgi"])
async def test_the_default_is_the_marked_model_of_the_first_task_that_has_one(
    models_of: Any, open_repository: Any, name: str
) -> None:
    models_of.text("embed-a")
    models_of.text("embed-b", config=DEFAULT)
    models_of.text("classify", CLASSIFIER, head="logits", width=2)
    repository = await open_repository(models_of.root)
    assert repository.resolve(name, Task.EMBED).name == "embed-b"
    assert repository.resolve(name, Task.RERANK, Task.EMBED).name == "embed-b"
    assert repository.resolve(name, Task.CLASSIFY, Task.EMBED).name == "classify"
    assert repository.resolve(name).name == "embed-b"
    with pytest.raises(ModelNotFoundError, match="no model for rerank or predict is loaded"):
        repository.resolve(name, Task.RERANK, Task.PREDICT)


async def test_unmarked_models_count_in_the_order_of_the_configuration(
    models_of: Any, open_repository: Any
) -> None:
    for name in "abc":
        models_of.text(name)
    assert (await open_repository(models_of.root)).resolve("", Task.EMBED).name == "a"
    assert (await open_repository(models_of.root, load_models=["c", "*"])).resolve("").name == "c"


async def test_text_classifiers_go_before_others(models_of: Any, open_repository: Any) -> None:
    models_of.add("images", config=task("classify"))
    models_of.text("texts", CLASSIFIER, head="logits", width=2)
    repository = await open_repository(models_of.root)
    assert repository.resolve("", Task.CLASSIFY).name == "texts"
    await repository.unload("texts")
    assert repository.resolve("", Task.CLASSIFY).name == "images"


async def test_names_with_versions(models_of: Any, open_repository: Any) -> None:
    models_of.add("m", config="version_policy { all { } }")
    models_of.add("m", version=2)
    models_of.add("odd@1")
    repository = await open_repository(models_of.root)
    assert repository.resolve("m").version == 2
    assert repository.resolve("m@1").version == 1
    assert repository.resolve("odd@1").name == "odd@1"
    for name, text in (
        ("m@3", "'m' version 3 is not found"),
        ("m@x", "'m@x' is not found"),
        ("m@", "'m@' is not found"),
        ("x@1", "'x@1' is not found"),
    ):
        with pytest.raises(ModelNotFoundError, match=text):
            repository.resolve(name)


async def test_another_task_is_an_error_that_names_both(models_of: Any, open_repository: Any) -> None:
    models_of.add("m")
    repository = await open_repository(models_of.root)
    with pytest.raises(TaskNotSupportedError) as caught:
        repository.resolve("m", Task.EMBED, Task.RERANK)
    assert caught.value.message == "model 'm' is for task tensors, this request needs embed or rerank"
    assert repository.resolve("m", Task.TENSORS).name == "m"
