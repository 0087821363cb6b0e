"""Every family of text encoders, read from its folder as the server reads it, against transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tiny_encoders import FAMILIES, WIDTH, encoder, export, save

from headrace.runtimes.base import InstanceSpec, Run
from headrace.runtimes.registry import loader
from headrace.runtimes.text import TextEncoder
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.model import Task
from headrace.server.repository.preparation import prepare

TOLERANCE = 1e-4
ROWS = ([2, 17, 50, 91, 3], [2, 3], [2, *range(20, 50), 3], [2, 60, 61, 3])
MODULES = [{"path": "", "type": "sentence_transformers.models.Transformer"},
           {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip


def served(folder: Path, task: Task, runtime: str, **options: str) -> TextEncoder:
    """Load a folder with what the repository reads off its files, and with further options."""
    (definition,) = prepare(open_model(folder.name, [folder.parent]), Machine(1))
    assert definition.task is task
    spec = definition.specs[0]
    assert isinstance(spec, InstanceSpec)
    assert spec.runtime == runtime
    assert spec.text is not None
    return TextEncoder(loader(runtime)(replace(spec, options=spec.options | options)), spec.text)


def answered(model: TextEncoder, rows: Sequence[Sequence[int]], output: str) -> NDArray[Any]:
    """Run all rows as one batch."""
    tokens = np.array([token for row in rows for token in row], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    return model.execute({"token_ids": tokens, "lengths": lengths}, (output,), Run())[output]


def alone(model: Any, rows: Sequence[Sequence[int]], output: str) -> list[NDArray[np.float32]]:
    """Run transformers on each row alone, so that no padding is involved."""
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row]))[output][0].numpy() for row in rows]


def pooled(hidden: Sequence[NDArray[np.float32]], pooling: str) -> NDArray[np.float32]:
    """Pool as sentence-transformers defines it."""
    ways: dict[str, Callable[[Any], Any]] = {
        "cls": lambda row: row[0],
        "lasttoken": lambda row: row[-1],
        "max": lambda row: row.max(0),
        "mean": lambda row: row.mean(0),
        "mean_sqrt_len_tokens": lambda row: row.sum(0) / np.sqrt(len(row)),
        "weightedmean": lambda row: np.average(row, axis=0, weights=np.arange(1, len(row) + 1)),
    }
    return np.array([ways[pooling](row) for row in hidden], np.float32)


def pooling_files(*modes: str, more: Sequence[Any] = ()) -> dict[str, Any]:
    mode: Any = modes[0] if len(modes) == 1 else list(modes)
    return {
        "modules.json": [*MODULES, *more],
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, "pooling_mode": mode},
    }


def own_pooling(family: str) -> str:
    return "lasttoken" if family == "qwen3" else "cls" if family == "modernbert" else "mean"


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_embeds(family: str, tmp_path: Path) -> None:
    model = encoder(family)
    folder = save(model, tmp_path / family, pooling_files(own_pooling(family)))
    found = answered(served(folder, Task.EMBED, "torch"), ROWS, "embedding")
    expected = pooled(alone(model, ROWS, "last_hidden_state"), own_pooling(family))
    assert np.abs(expected[0] - expected[3]).max() > 0.01  # texts are told apart
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_gives_the_same_packed(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """MPNet alone computes its attention itself: it is padded, and the log says so."""
    folder = save(encoder(family), tmp_path / family, pooling_files(own_pooling(family)))
    padded = served(folder, Task.EMBED, "torch", packed="off")
    packed = served(folder, Task.EMBED, "torch", packed="on")
    said = "MPNetModel cannot pack them: its layers do not take attention from outside"
    assert capfd.readouterr().err.count(said) == (family == "mpnet")
    for output in ("embedding", "token_embeddings"):
        found, expected = (answered(model, ROWS, output) for model in (packed, padded))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.array_equal(found, expected) == (family == "mpnet")  # sums in another order


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_gives_the_same_vectors(family: str, tmp_path: Path) -> None:
    """The export is found in ``onnx/``, beside the weights, which are not looked at then."""
    model = encoder(family)
    folder = save(model, tmp_path / family, pooling_files(own_pooling(family)))
    (folder / "onnx").mkdir()
    export(model, folder / "onnx" / "model.onnx", "last_hidden_state")
    found = answered(served(folder, Task.EMBED, "onnx"), ROWS, "embedding")
    expected = pooled(alone(model, ROWS, "last_hidden_state"), own_pooling(family))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_onnx_takes_positions_as_the_family_counts_them(family: str, tmp_path: Path) -> None:
    model = encoder(family)
    folder = save(model, tmp_path / family, pooling_files("mean"))
    export(model, folder / "model.onnx", "last_hidden_state", positions=True)
    rows = [*ROWS, [2, 17, 1, 50, 3]]  # RoBERTa does not count a padding id in a text
    found = answered(served(folder, Task.EMBED, "onnx"), rows, "embedding")
    expected = pooled(alone(model, rows, "last_hidden_state"), "mean")
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "nomic-bert"])
@pytest.mark.parametrize("labels", [1, 3])
def test_torch_classifies(family: str, labels: int, tmp_path: Path) -> None:
    """One label is a cross-encoder, which ranks."""
    model = encoder(family, "ForSequenceClassification", num_labels=labels)
    folder = save(model, tmp_path / family)
    found = answered(served(folder, Task.RERANK if labels == 1 else Task.CLASSIFY, "torch"), ROWS, "logits")
    np.testing.assert_allclose(found, alone(model, ROWS, "logits"), atol=TOLERANCE)


@pytest.mark.slow
def test_onnx_cross_encoder(tmp_path: Path) -> None:
    model = encoder("bert", "ForSequenceClassification", num_labels=1)
    folder = save(model, tmp_path / "ranker")
    export(model, folder / "model_quantized.onnx", "logits")
    found = answered(served(folder, Task.RERANK, "onnx"), ROWS, "logits")
    np.testing.assert_allclose(found, alone(model, ROWS, "logits"), atol=TOLERANCE)


@pytest.mark.parametrize(
    "modes",
    [
        ("cls",), ("lasttoken",), ("max",), ("mean",), ("mean_sqrt_len_tokens",), ("weightedmean",),
        ("cls", "mean"), ("max", "mean", "lasttoken"),
    ],
)  # fmt: skip
def test_poolings(modes: tuple[str, ...], tmp_path: Path) -> None:
    """Several poolings stand one after another."""
    model = encoder("bert")
    folder = save(model, tmp_path / "m", pooling_files(*modes))
    encoding = served(folder, Task.EMBED, "torch")
    hidden = alone(model, ROWS, "last_hidden_state")
    expected = np.concatenate([pooled(hidden, mode) for mode in modes], axis=1)
    np.testing.assert_allclose(answered(encoding, ROWS, "embedding"), expected, atol=TOLERANCE)
    assert encoding.outputs[0].shape == (-1, WIDTH * len(modes))


ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": torch.nn.Identity(),
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh(),
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU(),
    "torch.nn.modules.activation.Sigmoid": torch.nn.Sigmoid(),
    "torch.nn.modules.activation.GELU": torch.nn.GELU(),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("bias", "dtype"), [(True, torch.float32), (False, torch.float16), (True, torch.bfloat16)]
)
def test_dense_layers(activation: str, bias: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """Two layers behind the pooling; their files hold any float type."""
    model = encoder("bert")
    torch.manual_seed(3)
    layers = [torch.nn.Linear(WIDTH, 12, bias=bias).to(dtype), torch.nn.Linear(12, 20, bias=bias).to(dtype)]
    more = [
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"path": "3_Dense", "type": "sentence_transformers.models.Dense"},
        {"path": "4_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    folder = save(model, tmp_path / "m", pooling_files("mean", more=more))
    for module, layer, function in zip(more, layers, (activation, next(iter(ACTIVATIONS))), strict=False):
        place = folder / module["path"]
        save_to = place / "model.safetensors"
        place.mkdir()
        save_file({f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}, save_to)
        (place / "config.json").write_text(f'{{"in_features": 1, "activation_function": "{function}"}}')
    encoding = served(folder, Task.EMBED, "torch")
    with torch.inference_mode():
        vectors = torch.from_numpy(pooled(alone(model, ROWS, "last_hidden_state"), "mean"))
        expected = layers[1].float()(ACTIVATIONS[activation](layers[0].float()(vectors))).numpy()
    np.testing.assert_allclose(answered(encoding, ROWS, "embedding"), expected, atol=TOLERANCE)
    assert [spec.shape for spec in encoding.outputs] == [(-1, 20), (-1, WIDTH)]


def test_prompts_of_a_qwen_embedder_are_read(tmp_path: Path) -> None:
    """Its architecture is that of a generator; its modules make it an embedder."""
    model = encoder("qwen3", "ForCausalLM")
    prompts = {"prompts": {"query": "w7 w8 ", "document": ""}, "default_prompt_name": None}
    files = {**pooling_files("lasttoken"), "config_sentence_transformers.json": prompts}
    folder = save(model, tmp_path / "qwen", files)
    (definition,) = prepare(open_model("qwen", [tmp_path]), Machine(1))
    assert definition.text is not None
    assert definition.text.prompts == {"query": "w7 w8 ", "document": ""}
    found = answered(served(folder, Task.EMBED, "torch"), ROWS, "embedding")
    expected = pooled(alone(model.model, ROWS, "last_hidden_state"), "lasttoken")
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.slow
def test_half_precision_and_quantised_graphs_are_found_and_close(tmp_path: Path) -> None:
    """fp16 and int8 exports serve where no exact graph is; the exact one wins where it is."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = encoder("bert")
    folder = save(model, tmp_path / "m", pooling_files("mean"))
    (folder / "onnx").mkdir()
    exact = folder / "onnx" / "model.onnx"
    export(model, exact, "last_hidden_state")
    expected = pooled(alone(model, ROWS, "last_hidden_state"), "mean")
    quantize_dynamic(onnx.load(exact), folder / "onnx" / "model_int8.onnx")
    export(encoder("bert").half(), folder / "onnx" / "model_fp16.onnx", "last_hidden_state")
    np.testing.assert_allclose(
        answered(served(folder, Task.EMBED, "onnx"), ROWS, "embedding"), expected, atol=TOLERANCE
    )
    exact.unlink()
    for tolerance in (0.02, 0.2):  # the fp16 graph first, then the int8 one
        encoding = served(folder, Task.EMBED, "onnx")
        found = answered(encoding, ROWS, "embedding")
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=tolerance)
        (folder / "onnx" / "model_fp16.onnx").unlink(missing_ok=True)


def test_attention_is_fused_where_the_family_has_it(tmp_path: Path) -> None:
    """MPNet has no fused attention in transformers; the others must not lose it for that."""
    from transformers import AutoModel

    chosen = {}
    for family in FAMILIES:
        folder = save(encoder(family), tmp_path / family)
        chosen[family] = AutoModel.from_pretrained(folder).config._attn_implementation
    assert {family for family, name in chosen.items() if name != "sdpa"} == {"mpnet"}
