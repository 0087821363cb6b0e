"""SPLADE: a masked language model's logits become weights of the vocabulary, the same as computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.runtimes.base import InstanceSpec, ModelError, Run, TextSpec
from headrace.runtimes.pooling import SPLADES
from headrace.runtimes.text import EMBEDDING, TextEncoder
from headrace.runtimes.worker import load

VOCABULARY = 60
ROWS = ([2, 7, 8, 3], [2, 9, 3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("splade")
    BertForMaskedLM(config).save_pretrained(path)
    return path


def expected(folder: Path, row: list[int], pooling: str) -> Any:
    """What sentence-transformers' SpladePooling computes."""
    import torch
    from transformers import BertForMaskedLM

    with torch.no_grad():
        logits = BertForMaskedLM.from_pretrained(folder)(torch.tensor([row])).logits
        weights = torch.log1p(torch.relu(logits))
        if pooling.endswith("log1p"):
            weights = torch.log1p(weights)
        return (weights.sum(dim=1) if "sum" in pooling else weights.amax(dim=1))[0].numpy()


@pytest.mark.parametrize("pooling", SPLADES)
def test_weights_are_those_of_the_formula(folder: Path, pooling: str) -> None:
    spec = InstanceSpec("splade", "torch", str(folder), text=TextSpec("embed", pooling))
    model = load(spec)
    ids = np.array([token for row in ROWS for token in row], np.int32)
    lengths = np.array([len(row) for row in ROWS], np.int32)
    result = model.execute({"token_ids": ids, "lengths": lengths}, (), Run())
    assert list(result) == [EMBEDDING]
    weights = result[EMBEDDING]
    assert weights.shape == (2, VOCABULARY)
    assert (weights == 0).any()
    for row, found in zip(ROWS, weights, strict=True):
        np.testing.assert_allclose(found, expected(folder, row, pooling), atol=1e-5)


def test_a_model_without_token_logits_is_refused(folder: Path) -> None:
    plain = load(InstanceSpec("splade", "torch", str(folder)))
    with pytest.raises(ModelError, match="pooling splade needs"):
        TextEncoder(plain, TextSpec("embed", "splade"))
