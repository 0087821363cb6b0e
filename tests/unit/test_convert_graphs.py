"""Pieces of the converters that compute something: labels, padding, batches, the classifier's head."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from headrace.runtimes.convert import sentence_encoder as encoder
from headrace.runtimes.convert import sentiment_data
from headrace.runtimes.convert.efficientnet_model import same_padding
from headrace.runtimes.convert.sentiment import with_head


@pytest.mark.parametrize(
    ("rating", "label"), [(-4, 0), (-0.61, 0), (-0.6, 1), (0, 1), (0.6, 1), (0.61, 2), (4, 2)]
)
def test_a_rating_has_a_label(rating: float, label: int) -> None:
    assert sentiment_data.label(rating) == label


def gzipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_a_seeded_sample_of_every_file(tmp_path: Path) -> None:
    rows = {
        f"h/{name}_GroundTruth.txt": "".join(f"{i}\t{i - 1}\t{name} {i}\n" for i in range(3)).encode()
        + b"broken\n"
        for name in sentiment_data.FILES
    }
    source = tmp_path / "source.tar.gz"
    source.write_bytes(gzipped({"v/additional_resources/hutto_ICWSM_2014.tar.gz": gzipped(rows)}))
    texts, labels = sentiment_data.load(source, 2)
    assert len(texts) == len(labels) == 2 * len(sentiment_data.FILES)
    assert all(int(text.split()[1]) == label for text, label in zip(texts, labels, strict=True))
    assert {text.split()[0] for text in texts} == set(sentiment_data.FILES)
    assert (texts, labels) == sentiment_data.load(source, 2)
    assert len(sentiment_data.load(source, 9)[0]) == 3 * len(sentiment_data.FILES)


@pytest.mark.parametrize("size", [7, 14, 112, 224])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_keeps_the_size_and_puts_the_odd_pixel_last(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)
    assert 0 <= after - before <= 1


WORDS = ("zero", "one", "two", "three", "four")


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="zero"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_batches_are_sorted_padded_and_complete(tokenizer: Tokenizer) -> None:
    texts = ["one two three four", "one", "two three", "four four four four four"]
    found = list(encoder.batches(tokenizer, texts, max_tokens=4, size=2))
    assert [chosen for chosen, _ in found] == [[1, 2], [0, 3]]
    ids, mask, types = (found[0][1][name].tolist() for name in encoder.INPUTS)
    assert (ids, mask, types) == ([[1, 0], [2, 3]], [[1, 0], [1, 1]], [[0, 0], [0, 0]])
    assert found[1][1]["input_ids"].tolist() == [[1, 2, 3, 4], [4, 4, 4, 4]]


def test_the_head_pools_normalises_and_classifies(tokenizer: Tokenizer) -> None:
    table = np.random.default_rng(0).standard_normal((len(WORDS), encoder.WIDTH)).astype(np.float32)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in encoder.INPUTS]
    output = helper.make_tensor_value_info(encoder.OUTPUT, TensorProto.FLOAT, ["b", "s", encoder.WIDTH])
    lookup = helper.make_node("Gather", ["table", "input_ids"], [encoder.OUTPUT])
    graph = helper.make_graph([lookup], "g", inputs, [output], [numpy_helper.from_array(table, "table")])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    hidden = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
    weights = np.random.default_rng(1).standard_normal((encoder.WIDTH, 3)).astype(np.float32)
    bias = np.array([0.5, -1, 2], np.float32)
    model = with_head(plain, weights, bias)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    texts = ["one two", "three", "four one one two"]
    vectors = encoder.embed(hidden, tokenizer, texts, size=3)
    ((chosen, batch),) = encoder.batches(tokenizer, texts, max_tokens=8, size=3)
    np.testing.assert_allclose(session.run(["logits"], batch)[0], vectors[chosen] @ weights + bias, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[1], table[3] / np.linalg.norm(table[3]), atol=1e-6)
