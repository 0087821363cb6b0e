# ruff: noqa: E501 - one message a line
"""Folders of text encoders whose weights or configuration are damaged: what the refusal says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_encoders import WIDTH, encoder

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.torch.loading import load

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PART = "model-00001-of-00001.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12\n"
HINT = (
    "; most likely a value in config.json is unknown or of a wrong type: compare it with the published file"
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT classifier with three labels."""
    path = tmp_path_factory.mktemp("published")
    encoder("bert", "ForSequenceClassification", num_labels=3).save_pretrained(path)
    return path


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(published, tmp_path / "x"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(InstanceSpec("model", "torch", str(folder)))
    return str(caught.value)


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda whole: b"", "header too small", id="empty"),
        pytest.param(lambda whole: b"x" * 1000, "header too large", id="garbage"),
        pytest.param(lambda whole: whole[:-100], "incomplete metadata, file not fully covered", id="cut"),
    ],
)
def test_damaged_weights(folder: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    (folder / WEIGHTS).write_bytes(damage((folder / WEIGHTS).read_bytes()))
    expected = f"damaged or incomplete (Error while deserializing header: {reason}): download it again"
    assert refusal(folder) == f"'{WEIGHTS}' of 'x' is {expected}"
    (folder / WEIGHTS).rename(folder / PART)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": PART}}))
    assert refusal(folder) == f"'{PART}' of 'x' is {expected}"


@pytest.mark.parametrize("name", [WEIGHTS, INDEX])
def test_pointers_of_git_lfs(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(POINTER)
    expected = f"'{name}' is a Git LFS pointer, not the file itself: run `git lfs pull`"
    assert refusal(folder) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "' of 'x' is damaged or incomplete (Input data was truncated): download it again"),
        ("[]", "' of 'x' is damaged or incomplete (Expected `object`, got `array`): download it again"),
        (
            '{"metadata": {}, "weight_map": []}',
            "' of 'x' is damaged or incomplete (Expected `object`, got `array` - at `$.weight_map`): download it again",
        ),
        (
            '{"weight_map": {}}',
            "' of 'x' is damaged or incomplete (Object missing required field `metadata`): download it again",
        ),
        (
            '{"metadata": {}, "weight_map": {}}',
            "' of 'x' is damaged or incomplete (its weight_map is empty): download it again",
        ),
        (
            '{"metadata": {}, "weight_map": {"a": "../y.safetensors"}}',
            "' of 'x' names '../y.safetensors', which is outside the folder",
        ),
    ],
)
def test_a_damaged_index(folder: Path, content: str, said: str) -> None:
    (folder / WEIGHTS).rename(folder / PART)
    (folder / INDEX).write_text(content)
    assert refusal(folder) == f"'{INDEX}{said}"


def test_weights_in_several_files(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / part, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: part for part, keys in parts.items() for key in keys}}
    (folder / INDEX).write_text(json.dumps(index))
    assert load(InstanceSpec("model", "torch", str(folder))).outputs[0].shape == (-1, 3)
    (folder / "b.safetensors").unlink()
    assert refusal(folder) == f"'b.safetensors' is not in 'x', but '{INDEX}' names it: download it"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"hidden_size": "32"}, "config.json: Field 'hidden_size' expected int, got str (value: '32')"),
        ({"hidden_act": "zz"}, f"KeyError: 'zz'{HINT}"),
        ({"id2label": 3}, f"AttributeError: 'int' object has no attribute 'items'{HINT}"),
        ({"architectures": 5}, f"TypeError: 'int' object is not iterable{HINT}"),
        (
            {"num_attention_heads": 5},
            "The hidden size (32) is not a multiple of the number of attention heads (5)",
        ),
    ],
)
def test_wrong_values_of_the_configuration(folder: Path, values: dict[str, Any], reason: str) -> None:
    configure(folder, **values)
    said = refusal(folder)
    assert said.startswith("transformers cannot load 'x': ")
    assert reason in said


def test_weights_of_another_shape(folder: Path) -> None:
    configure(folder, vocab_size=100)
    expected = (
        "weights of 'x' do not fit its config.json: 'bert.embeddings.word_embeddings.weight' has shape "
        "[96, 32], config.json asks for [100, 32]"
    )
    assert refusal(folder) == expected
    configure(folder, vocab_size=96, intermediate_size=50)
    said = refusal(folder)
    layer = "bert.encoder.layer.0"
    assert f"'{layer}.intermediate.dense.bias' has shape [48], config.json asks for [50]; " in said
    assert said.endswith(
        f"'{layer}.output.dense.weight' has shape [32, 48], config.json asks for [32, 50]; and 3 more"
    )


def test_another_number_of_labels(folder: Path) -> None:
    configure(folder, id2label={"0": "no", "1": "yes"})
    assert refusal(folder) == (
        "weights of 'x' do not fit its config.json: 'classifier.bias' has shape [3], config.json asks for "
        f"[2]; 'classifier.weight' has shape [3, {WIDTH}], config.json asks for [2, {WIDTH}]: config.json "
        "has 2 labels (id2label), the weights have 3"
    )


def test_a_pooler_that_classifies_is_never_random(folder: Path) -> None:
    weights = {key: tensor for key, tensor in load_file(folder / WEIGHTS).items() if "pooler" not in key}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert refusal(folder) == (
        "weights are missing from 'x' and would be random: bert.pooler.dense.bias, bert.pooler.dense.weight"
    )
    configure(folder, architectures=["BertModel"])
    assert load(InstanceSpec("model", "torch", str(folder))).outputs[0].name == "last_hidden_state"
