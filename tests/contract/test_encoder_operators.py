"""Our operators in the graphs of text encoders: what they compute, and what they refuse."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exported_encoders import ROWS, expected, hidden_states, instance, outcome, served_file, write_encoder
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from headrace.runtimes.onnx import operators
from headrace.runtimes.onnx.encoder_graph import NotRewrittenError, use_operators
from headrace.runtimes.onnx.fusion import fused_entry
from headrace.runtimes.onnx.options import CPU, THREADS, session_options
from headrace.runtimes.onnx.session import load

NATIVE = Path(operators.__file__).parent / "native"
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96, "vocab_size": 20_000}
"""Heads of 32 columns, and words for a graph that is large enough to be fused."""

pytestmark = pytest.mark.skipif(not operators.available(), reason="the operators are for AVX2 and AVX-512")


@pytest.fixture(params=["best", "avx2"])
def kernels(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the library as it was built, and one with the kernels for AVX2 only."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if request.param == "best":
        return
    if compiler is None:
        pytest.skip("there is no compiler")
    library = tmp_path / "operators.so"
    build = [compiler, "-O2", "-shared", "-fPIC", "-DWITHOUT_AVX512", "-o", str(library)]
    subprocess.run([*build, *map(str, NATIVE.glob("*.c"))], check=True, timeout=120)
    spec = ModuleSpec("operators", None, origin=str(library))
    monkeypatch.setattr(operators, "find_spec", lambda _: spec)


def session_of(
    operator: str,
    inputs: Mapping[str, tuple[int, int]],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    threads: int = 2,
    **attributes: Any,
) -> ort.InferenceSession:
    """Return a session of one operator; inputs are given by element type and rank, "" is left out."""
    constants = constants or {}
    names = [*inputs, *constants]
    node = helper.make_node(operator, names, ["y"], domain=operators.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        operator,
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, (kind, rank) in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items() if name],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(operators.DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = session_options({THREADS: str(threads)})
    assert operators.register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])


def attention(heads: int, scale: float) -> ort.InferenceSession:
    inputs = {"qkv": (TensorProto.FLOAT, 2), "mask": (TensorProto.INT64, 2)}
    return session_of("Attention", inputs, heads=heads, scale=scale)


def attended(qkv: NDArray[np.float64], heads: int, scale: float) -> NDArray[np.float64]:
    """Compute attention of one text, [tokens, 3 * width], as its definition says."""
    queries, keys, values = (
        part.reshape(len(qkv), heads, -1).swapaxes(0, 1) for part in np.split(qkv, 3, axis=1)
    )
    scores = queries @ keys.swapaxes(1, 2) * scale
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    mixed = weights / weights.sum(axis=2, keepdims=True) @ values
    return np.asarray(mixed.swapaxes(0, 1).reshape(len(qkv), -1))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("heads", "size"), [(1, 32), (3, 32), (2, 64), (1, 96)])
@pytest.mark.parametrize("lengths", [[1], [12, 13], [31, 32, 33, 2], [257, 0, 5], [600]], ids=str)
def test_attention_is_that_of_each_text(heads: int, size: int, lengths: list[int]) -> None:
    random = np.random.default_rng(size)
    scale = size**-0.5
    texts = [random.standard_normal((length, 3 * heads * size)) for length in lengths]
    mask = np.zeros((len(lengths), max(lengths) + 3), np.int64)
    for row, length in zip(mask, lengths, strict=True):
        row[random.permutation(len(row))[:length]] = 1  # wherever they are
    session = attention(heads, scale)
    qkv = np.concatenate(texts).astype(np.float32)
    (found,) = session.run(None, {"qkv": qkv, "mask": mask})
    assert found.shape == (len(qkv), heads * size)
    parts = np.split(found, np.cumsum(lengths)[:-1])
    for text, part in zip(texts, parts, strict=True):
        if len(text):
            np.testing.assert_allclose(part, attended(text, heads, scale), atol=1e-5)
            # alone it is the same to the bit
            one = {"qkv": text.astype(np.float32), "mask": np.ones((1, len(text)), np.int64)}
            np.testing.assert_array_equal(session.run(None, one)[0], part)


@pytest.mark.usefixtures("kernels")
def test_scores_that_are_far_apart_stay_finite() -> None:
    qkv = np.zeros((3, 96), np.float32)
    qkv[:, 0] = [300.0, -300.0, 1e-3]
    qkv[:, 32] = [300.0, -300.0, 0.0]
    qkv[:, 64:] = np.arange(3)[:, None]
    (found,) = attention(1, 1.0).run(None, {"qkv": qkv, "mask": np.ones((1, 3), np.int64)})
    np.testing.assert_allclose(found, attended(qkv.astype(np.float64), 1, 1.0), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "mask", "reason"),
    [
        ((3, 96), [[1, 1]], "as many tokens"),
        ((1, 96), [[1, 1]], "as many tokens"),
        ((2, 192), [[1, 1]], None),
        ((2, 100), [[1, 1]], "a multiple of 32"),
        ((0, 96), np.zeros((0, 4), np.int64), None),
        ((0, 96), [[0, 0]], None),
    ],
)
def test_what_attention_refuses(shape: tuple[int, int], mask: Any, reason: str | None) -> None:
    feed = {"qkv": np.zeros(shape, np.float32), "mask": np.asarray(mask, np.int64)}
    session = attention(1, 1.0)
    if reason is None:
        assert session.run(None, feed)[0].shape == (shape[0], shape[1] // 3)
    else:
        with pytest.raises(Exception, match=reason):
            session.run(None, feed)


def test_an_operator_with_wrong_attributes_is_refused() -> None:
    with pytest.raises(Exception, match="at least one head"):
        attention(0, 1.0)
    inputs = {"x": (TensorProto.FLOAT, 2), "w": (TensorProto.FLOAT, 3)}
    with pytest.raises(Exception, match="activations 0"):
        session_of("Linear", inputs, activation=2)
    with pytest.raises(Exception, match="activation"):
        session_of("Linear", inputs)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("activation", [operators.NO_ACTIVATION, operators.GELU])
@pytest.mark.parametrize("rows", [1, 13, 300])
@pytest.mark.parametrize("terms", [32, 700])
def test_a_layer_does_what_follows_it(rows: int, terms: int, activation: int) -> None:
    random = np.random.default_rng(rows)
    x, weights = random.standard_normal((rows, terms)), random.standard_normal((terms, 96)) / terms**0.5
    bias, residual = random.standard_normal(96) * 3, random.standard_normal((rows, 96))
    y = x @ weights + bias
    if activation == operators.GELU:
        y *= (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
    inputs = {"x": (TensorProto.FLOAT, 2)}
    panels = np.ascontiguousarray(operators.panels(weights.astype(np.float32)))
    constants = {"w": panels, "b": bias.astype(np.float32), "r": residual.astype(np.float32)}
    feed = {"x": x.astype(np.float32)}
    (found,) = session_of("Linear", inputs, constants, activation=activation).run(None, feed)
    np.testing.assert_allclose(found, y + residual, atol=5e-6)
    constants = {"w": panels, "": panels, "r": residual.astype(np.float32)}
    (found,) = session_of("Linear", inputs, constants, activation=operators.NO_ACTIVATION).run(None, feed)
    np.testing.assert_allclose(found, x @ weights + residual, atol=5e-6)


@pytest.mark.usefixtures("kernels")
def test_gelu_is_exact_far_from_zero_too() -> None:
    x = np.linspace(-12, 12, 4096, dtype=np.float32).reshape(-1, 32)
    panels = np.eye(32, dtype=np.float32)[None]
    inputs = {"x": (TensorProto.FLOAT, 2)}
    (found,) = session_of("Linear", inputs, {"w": panels}, activation=operators.GELU).run(None, {"x": x})
    wide = x.astype(np.float64)
    exact = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


def test_a_layer_refuses_what_does_not_fit() -> None:
    inputs = {"x": (TensorProto.FLOAT, 2), "w": (TensorProto.FLOAT, 3), "b": (TensorProto.FLOAT, 1)}
    session = session_of("Linear", {**inputs, "r": (TensorProto.FLOAT, 2)}, activation=0)
    sizes = {"x": (2, 8), "w": (1, 8, 32), "b": (32,), "r": (2, 32)}

    def run(**changed: tuple[int, ...]) -> Any:
        return session.run(
            None, {name: np.ones(size, np.float32) for name, size in (sizes | changed).items()}
        )

    assert run()[0][0, 0] == 10.0
    with pytest.raises(Exception, match="takes weights"):
        run(x=(2, 9))
    with pytest.raises(Exception, match="takes a bias"):
        run(b=(31,))
    with pytest.raises(Exception, match="takes a residual"):
        run(r=(1, 32))


def norm(columns: int, epsilon: float) -> ort.InferenceSession:
    random = np.random.default_rng(columns)
    constants = {name: random.standard_normal(columns).astype(np.float32) for name in ("scale", "bias")}
    return session_of("LayerNorm", {"x": (TensorProto.FLOAT, 3)}, constants, epsilon=epsilon)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("columns", [32, 96, 1056])
@pytest.mark.parametrize("rows", [1, 33, 100])
def test_a_norm_is_that_of_each_row(rows: int, columns: int) -> None:
    random = np.random.default_rng(columns)
    scale, bias = (random.standard_normal(columns).astype(np.float32) for _ in range(2))
    x = (random.standard_normal((2, rows, columns)) * 5 + 3).astype(np.float32)
    (found,) = norm(columns, 1e-5).run(None, {"x": x})
    apart = x - x.mean(axis=2, keepdims=True, dtype=np.float64)
    exact = apart / np.sqrt((apart**2).mean(axis=2, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_a_norm_of_what_has_no_variance_or_no_rows() -> None:
    (found,) = norm(32, 1e-12).run(None, {"x": np.full((1, 1, 32), 7, np.float32)})
    np.testing.assert_array_equal(
        found[0, 0], np.random.default_rng(32).standard_normal(64).astype(np.float32)[32:]
    )
    assert norm(32, 1e-12).run(None, {"x": np.zeros((0, 4, 32), np.float32)})[0].shape == (0, 4, 32)


def test_a_norm_refuses_what_does_not_fit() -> None:
    with pytest.raises(Exception, match="multiple of 32"):
        norm(40, 1e-5).run(None, {"x": np.zeros((1, 1, 40), np.float32)})
    with pytest.raises(Exception, match="scale and bias"):
        norm(32, 1e-5).run(None, {"x": np.zeros((1, 1, 64), np.float32)})


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_an_encoder_is_served_with_them(family: str, tmp_path: Path) -> None:
    made = write_encoder(tmp_path / "model", family, **HEADS)
    cache = tmp_path / "graphs"
    entry = fused_entry(made.graph, cache)
    assert entry is not None
    assert "15 operators of our own" in outcome(cache)["text"]
    nodes = Counter((node.domain, node.op_type) for node in onnx.load(str(entry.operators)).graph.node)
    assert nodes["headrace", "Linear"] == 8, outcome(cache)["text"]
    assert nodes["headrace", "Attention"] == 2
    assert nodes["headrace", "LayerNorm"] == 5
    left = {"MultiHeadAttention", "MatMul", "BiasGelu", "LayerNormalization"}
    assert left.isdisjoint(name for _, name in nodes)
    loaded = load(instance(made, cache, lone_threads=2))
    assert served_file(loaded) == entry.operators
    assert loaded.padding == "none"
    assert loaded._load_lone is not None
    assert Path(loaded._load_lone()._model_path) == entry.operators
    together = hidden_states(loaded, made.pad_id)
    for found, exact in zip(together, expected(made.model), strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-5)
    for row, found in zip(ROWS, together, strict=True):
        # what a text gets does not depend on its company
        np.testing.assert_array_equal(hidden_states(loaded, made.pad_id, [row])[0], found)


def test_heads_of_other_sizes_are_left_to_onnx_runtime(tmp_path: Path) -> None:
    made = write_encoder(tmp_path / "model", "bert", vocab_size=40_000)
    entry = fused_entry(made.graph, tmp_path / "graphs")
    assert entry is not None
    assert not entry.operators.exists()
    assert "heads have 8 columns" in outcome(tmp_path / "graphs")["text"]
    packed = onnx.load(str(entry.packed))
    with pytest.raises(NotRewrittenError, match="8 columns"):
        use_operators(packed)


def test_without_the_library_the_packed_graph_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_encoder(tmp_path / "model", "bert", **HEADS)
    cache = tmp_path / "graphs"
    with_them = fused_entry(made.graph, cache)
    monkeypatch.setattr(operators, "find_spec", lambda name: find_spec(name) if name == "onnx" else None)
    loaded = load(instance(made, cache))
    assert loaded.padding == "attention"
    # machines with and without the operators may share the folder
    assert with_them is not None
    assert with_them.operators.is_file()
