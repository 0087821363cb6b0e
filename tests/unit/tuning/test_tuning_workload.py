from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.datatypes import ITEM_SIZES
from headrace.server.repository.definition import CompletedModel
from headrace.server.repository.model import ModelTensor
from headrace.server.tuning.workload import (
    VARYING,
    NotTunableError,
    tensor_samples,
    text_lengths,
    text_samples,
)

Define = Any


def completed(*tensors: ModelTensor, rows: int = 8) -> CompletedModel:
    return CompletedModel(ModelConfig(), tensors, (), rows, "onnxruntime_onnx", 0, False, "all")


def test_texts_are_a_mix_of_queries_and_passages_in_every_sixteen() -> None:
    counts = text_lengths(512)
    for start in range(0, len(counts), 16):
        group = counts[start : start + 16]
        assert sum(5 <= count <= 15 for count in group) == 11
        assert sum(60 <= count <= 250 for count in group) == 5
    assert counts == text_lengths(512)
    assert max(text_lengths(40)) == 40


def test_texts_have_ids_of_the_vocabulary_and_weights_that_average_to_one(define: Define) -> None:
    text = define(texts=True).text_model
    samples = text_samples(text)
    assert sum(sample.weight for sample in samples) / len(samples) == pytest.approx(1.0)
    for sample in samples:
        ids, lengths = sample.inputs
        values = np.frombuffer(ids.data, "<i4")
        assert ids.shape == (sample.tokens,) == (len(values),)
        assert np.frombuffer(lengths.data, "<i4").tolist() == [sample.tokens]
        assert 0 <= values.min() <= values.max() < 3
        assert sample.outputs == ("embedding",)
    assert [sample.inputs for sample in text_samples(text)] == [sample.inputs for sample in samples]


def test_a_sample_makes_a_new_part_each_time(define: Define) -> None:
    sample = text_samples(define(texts=True).text_model)[0]
    assert sample.part() is not sample.part()
    assert sample.part().tokens == sample.tokens


@pytest.mark.parametrize("datatype", [name for name in ITEM_SIZES if name != "BYTES"])
def test_tensors_of_every_datatype_have_their_size(datatype: str) -> None:
    for sample in tensor_samples(completed(ModelTensor("X", datatype, (3, -1)))):
        (tensor,) = sample.inputs
        assert tensor.shape == (1, 3, VARYING)
        assert len(tensor.data) == 3 * VARYING * ITEM_SIZES[datatype]


def test_integers_are_indices_into_anything() -> None:
    (tensor,) = tensor_samples(completed(ModelTensor("X", "INT64", (100,))))[0].inputs
    assert set(np.frombuffer(tensor.data, "<i8").tolist()) == {0, 1}


def test_the_models_own_shape_is_sent() -> None:
    reshaped = ModelTensor("X", "FP32", (1,), reshape=())
    assert tensor_samples(completed(reshaped))[0].inputs[0].shape == (1,)
    assert tensor_samples(completed(ModelTensor("X", "FP32", (2, 4)), rows=0))[0].inputs[0].shape == (2, 4)


def test_bytes_cannot_be_made_up() -> None:
    with pytest.raises(NotTunableError, match="'NAME' is BYTES"):
        tensor_samples(completed(ModelTensor("NAME", "BYTES", (1,))))
