# ruff: noqa: E501 - one case a line
"""Hugging Face folders whose files are wrong or not there: the file, the field, and what was expected."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.server.errors import LoadFailedError
from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.model import Task
from headrace.server.repository.preparation import prepare

CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}
PROMPTS = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
POOLED = {"modules.json": [POOLING, DENSE], "1_Pooling/config.json": {"pooling_mode": "mean"}}


def read(models_of: Any) -> ModelDefinition:
    (definition,) = prepare(open_model("m", [models_of.root]), Machine(1))
    return definition


def failure(models_of: Any) -> str:
    with pytest.raises(LoadFailedError) as caught:
        read(models_of)
    return caught.value.message


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }} '


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({PROMPTS: {"prompts": ["a"]}}, f"m/{PROMPTS}: prompts: expected an object of name → text, got ['a']"),
        ({PROMPTS: {"prompts": "query: "}}, f"m/{PROMPTS}: prompts: expected an object of name → text, got 'query: '"),
        ({PROMPTS: {"prompts": {"query": 5}}}, f"m/{PROMPTS}: prompts: expected an object of name → text, got {{'query': 5}}"),
        ({PROMPTS: {"default_prompt_name": 5}}, f"m/{PROMPTS}: default_prompt_name: expected text, got 5"),
        ({"modules.json": [1, 2]}, "m/modules.json: [0]: expected an object with path and type, got 1"),
        ({"modules.json": [POOLING, {"path": 3}]}, "m/modules.json: [1].path: expected text, got 3"),
        ({"modules.json": [{"type": ["Pooling"]}]}, "m/modules.json: [0].type: expected text, got ['Pooling']"),
        ({**POOLED, "2_Dense/config.json": {"module_input_name": ["a"]}}, "m/2_Dense/config.json: module_input_name: expected text, got ['a']"),
        ({"config.json": {"architectures": 5}}, "m/config.json: architectures: expected a list of class names, got 5"),
        ({"config.json": {"architectures": "BertModel"}}, "m/config.json: architectures: expected a list of class names, got 'BertModel'"),
        ({"config.json": {"architectures": [None]}}, "m/config.json: architectures: expected a list of class names, got [None]"),
        ({"config.json": {"model_type": ["bert"]}}, "m/config.json: model_type: expected text, got ['bert']"),
        ({"config.json": {"model_type": "roberta", "pad_token_id": "1"}}, "m/config.json: pad_token_id: expected a whole number, got '1'"),
        ({"config.json": {"model_type": "roberta", "pad_token_id": [1]}}, "m/config.json: pad_token_id: expected a whole number, got [1]"),
        ({"config.json": {"model_type": "roberta", "pad_token_id": True}}, "m/config.json: pad_token_id: expected a whole number, got True"),
        ({"config.json": {**CLASSIFIER, "id2label": 3}}, "m/config.json: id2label: expected an object of index → name, got 3"),
        ({"config.json": {**CLASSIFIER, "id2label": ["a", "b"]}}, "m/config.json: id2label: expected an object of index → name, got ['a', 'b']"),
        ({"config.json": {**CLASSIFIER, "num_labels": "1"}}, "m/config.json: num_labels: expected a whole number, got '1'"),
        ({"config.json": {"max_position_embeddings": "512"}}, "m/config.json: max_position_embeddings: expected a number, got '512'"),
        ({SENTENCE: {"max_seq_length": "abc"}}, f"m/{SENTENCE}: max_seq_length: expected a number, got 'abc'"),
        ({SENTENCE: {"max_seq_length": True}}, f"m/{SENTENCE}: max_seq_length: expected a number, got True"),
        ({"tokenizer_config.json": {"model_max_length": [9]}}, "m/tokenizer_config.json: model_max_length: expected a number, got [9]"),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(models_of: Any, files: dict[str, Any], message: str) -> None:
    models_of.text("m", files)
    assert failure(models_of) == message


def test_labels_of_another_type_with_a_task(models_of: Any) -> None:
    models_of.text("m", {"config.json": {"id2label": 3}}, config=parameter("task", "classify"))
    assert failure(models_of) == (
        'm/config.json: id2label: expected an object of index → name, such as {"0": "negative"}'
    )


def test_the_file_of_a_version_is_named(models_of: Any) -> None:
    models_of.text("m", {"config.json": {"architectures": 5}}, version="3")
    assert failure(models_of) == "m/3/config.json: architectures: expected a list of class names, got 5"


def test_null_is_as_good_as_absent(models_of: Any) -> None:
    config = {"architectures": None, "model_type": "roberta", "pad_token_id": None, "id2label": None,
              "max_position_embeddings": None, "n_positions": 33, "num_labels": None}  # fmt: skip
    files = {
        "config.json": config,
        PROMPTS: {"prompts": None, "default_prompt_name": None},
        SENTENCE: {"max_seq_length": None},
    }
    models_of.text("m", files)
    settings = read(models_of).text
    assert settings is not None
    assert (settings.max_tokens, dict(settings.prompts), settings.default_prompt) == (32, {}, "")
    models_of.text("m", {"config.json": {**config, **CLASSIFIER}}, head="logits", width=2)
    settings = read(models_of).text
    assert settings is not None
    assert settings.labels == ()


def test_a_pooling_module_without_its_file_is_not_the_mean(models_of: Any) -> None:
    models_of.text("m", {"modules.json": [POOLING]})
    assert failure(models_of) == (
        "m/modules.json names pooling '1_Pooling', but there is no 1_Pooling/config.json: download it, or set "
        "parameter 'pooling' to what the model was trained with (cls, max, mean, mean_sqrt, weighted_mean, "
        "last, splade, splade_sum, splade_log1p, splade_sum_log1p)"
    )
    models_of.config("m", parameter("pooling", "cls"))
    text = read(models_of).specs[0].text
    assert text is not None
    assert text.pooling == "cls"


def test_modules_in_the_models_own_folder(models_of: Any) -> None:
    files = {"modules.json": [{**POOLING, "path": ""}], "config.json": {"pooling_mode": "lasttoken"}}
    models_of.text("m", files)
    text = read(models_of).specs[0].text
    assert text is not None
    assert text.pooling == "last"


def test_an_embedder_without_a_tokenizer_is_no_model_of_tensors(models_of: Any) -> None:
    folder = models_of.text(
        "m", {"modules.json": [POOLING], "1_Pooling/config.json": {"pooling_mode": "mean"}}
    )
    (folder / "tokenizer.json").unlink()
    assert failure(models_of) == (
        "m: the model of modules.json needs tokenizer.json beside it; write it with "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder), or set parameter 'task' to 'tensors' "
        "to serve it without texts"
    )
    for config in (
        parameter("task", "tensors"),
        'input { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }',
    ):
        models_of.config("m", config)
        definition = read(models_of)
        assert (definition.task, definition.text) == (Task.TENSORS, None)
    (folder / "config.pbtxt").unlink()
    (folder / "modules.json").unlink()
    assert read(models_of).task is Task.TENSORS


def test_a_tokeniser_that_was_not_fetched(models_of: Any) -> None:
    models_of.text("m", {})
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    next(models_of.root.rglob("tokenizer.json")).write_text(pointer)
    assert failure(models_of) == (
        "m/tokenizer.json: 'tokenizer.json' is a Git LFS pointer, not the file itself: run `git lfs pull`"
    )
