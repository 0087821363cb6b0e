"""A text encoder over both runtimes against what transformers itself computes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headrace.runtimes.base import InstanceSpec, InvalidInputError, Run, TensorSpec, TextSpec
from headrace.runtimes.registry import loader
from headrace.runtimes.text import TextEncoder

LENGTHS = (5, 1, 12, 7)
VOCABULARY = 100
POSITIONS = 64
DIM = 32
LABELS = 3
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random two-layer BERT, saved as a Hugging Face folder in ``name_or_path``."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    torch.manual_seed(7)
    config = transformers.BertConfig(  # type: ignore[call-arg]
        vocab_size=VOCABULARY,
        hidden_size=DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        num_labels=LABELS,
    )
    model: Any = transformers.BertForSequenceClassification(config)
    model.eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    model.name_or_path = str(folder)
    return model


@pytest.fixture(scope="module")
def onnx_folder(bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same BERT's encoder as an ONNX graph."""
    folder = tmp_path_factory.mktemp("bert-onnx")

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = bert.bert

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> torch.Tensor:
            hidden: torch.Tensor = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state
            return hidden

    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = torch.ones(2, 5, dtype=torch.int64)
    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Encoder().eval(),
            (example, example.clone(), example.clone()),
            folder / "model.onnx",
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_shapes=dict.fromkeys(names, shapes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return folder


def instance(runtime: str, path: str, text: TextSpec, **options: str) -> InstanceSpec:
    return InstanceSpec("bert", runtime, path, options=options, text=text)


def encoder(spec: InstanceSpec) -> TextEncoder:
    assert spec.text is not None
    return TextEncoder(loader(spec.runtime)(spec), spec.text)


@pytest.fixture(params=["onnx", "torch"])
def path(request: pytest.FixtureRequest, bert: Any) -> tuple[str, str]:
    if request.param == "torch":
        return "torch", bert.name_or_path
    return "onnx", str(request.getfixturevalue("onnx_folder"))


def token_ids(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = np.random.default_rng(3)
    return [generator.integers(1, VOCABULARY, length).tolist() for length in lengths]


def flat(rows: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
    return {
        "token_ids": np.array([token for row in rows for token in row], np.int32),
        "lengths": np.array([len(row) for row in rows], np.int32),
    }


def hidden_states(bert: Any, rows: Sequence[Sequence[int]], kind: int = 0) -> list[NDArray[Any]]:
    """Run transformers on each row alone, so that no padding is involved."""
    with torch.inference_mode():
        return [
            bert.bert(
                input_ids=torch.tensor([row]), token_type_ids=torch.full((1, len(row)), kind)
            ).last_hidden_state[0].numpy()
            for row in rows
        ]  # fmt: skip


def test_mean_pooling_equals_transformers(bert: Any, path: tuple[str, str]) -> None:
    rows = token_ids()
    result = encoder(instance(*path, TextSpec("embed"))).execute(flat(rows), (), Run())
    expected = hidden_states(bert, rows)
    assert list(result) == ["embedding", "token_embeddings"]
    np.testing.assert_allclose(result["embedding"], [row.mean(axis=0) for row in expected], atol=TOLERANCE)
    np.testing.assert_allclose(result["token_embeddings"], np.concatenate(expected), atol=TOLERANCE)


@pytest.mark.parametrize(("pooling", "position"), [("cls", 0), ("last", -1)])
def test_other_poolings(bert: Any, path: tuple[str, str], pooling: str, position: int) -> None:
    rows = token_ids()
    result = encoder(instance(*path, TextSpec("embed", pooling))).execute(flat(rows), ["embedding"], Run())
    expected = [row[position] for row in hidden_states(bert, rows)]
    assert list(result) == ["embedding"]
    np.testing.assert_allclose(result["embedding"], expected, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_type_ids_reach_the_model(bert: Any, path: tuple[str, str], dtype: type[np.generic]) -> None:
    rows = token_ids((4, 9))
    inputs = {**flat(rows), "type_ids": np.ones(13, dtype)}
    result = encoder(instance(*path, TextSpec("embed"))).execute(inputs, ["embedding"], Run())
    expected = [row.mean(axis=0) for row in hidden_states(bert, rows, kind=1)]
    np.testing.assert_allclose(result["embedding"], expected, atol=TOLERANCE)


def test_classification_head(bert: Any) -> None:
    rows = token_ids()
    model = encoder(instance("torch", bert.name_or_path, TextSpec("classify")))
    assert list(model.outputs) == [TensorSpec("logits", "FP32", (-1, LABELS))]
    result = model.execute(flat(rows), (), Run())
    with torch.inference_mode():
        expected = [bert(input_ids=torch.tensor([row])).logits[0].numpy() for row in rows]
    np.testing.assert_allclose(result["logits"], expected, atol=TOLERANCE)


def test_specifications(path: tuple[str, str]) -> None:
    model = encoder(instance(*path, TextSpec("embed")))
    assert [spec.name for spec in model.inputs] == ["token_ids", "lengths", "type_ids"]
    assert list(model.outputs) == [
        TensorSpec("embedding", "FP32", (-1, DIM)),
        TensorSpec("token_embeddings", "FP32", (-1, DIM)),
    ]


@pytest.mark.parametrize("rows", [[[1, VOCABULARY]], [[1] * (POSITIONS + 1)]], ids=["id", "length"])
def test_what_the_model_cannot_take_is_the_callers_fault(
    path: tuple[str, str], rows: list[list[int]]
) -> None:
    model = encoder(instance(*path, TextSpec("embed")))
    with pytest.raises(InvalidInputError, match=rf"rows of up to {len(rows[0])} tokens with ids 1 to"):
        model.execute(flat(rows), (), Run())
    assert model.execute(flat([[1, 2]]), (), Run())["embedding"].shape == (1, DIM)


def test_half_precision_weights_still_give_fp32(bert: Any) -> None:
    rows = token_ids()
    model = encoder(instance("torch", bert.name_or_path, TextSpec("embed"), dtype="bfloat16"))
    result = model.execute(flat(rows), ["embedding"], Run())
    assert result["embedding"].dtype == np.float32
    expected = [row.mean(axis=0) for row in hidden_states(bert, rows)]
    np.testing.assert_allclose(result["embedding"], expected, atol=0.1)
    assert np.abs(result["embedding"] - expected).max() > TOLERANCE
