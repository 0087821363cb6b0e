"""Prompts in the runs of decodes: what is computed, which graphs can, and what happens when one cannot."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx_decoders import agree, expected, load, table, text, whole
from tiny_llama import LONGEST, VOCABULARY, write_tiny_llama

from headrace.runtimes.base import ModelError
from headrace.runtimes.convert.causal_quantize import quantize
from headrace.runtimes.generation.base import Chunk
from headrace.runtimes.onnx import decoder as loading
from headrace.runtimes.onnx import mixed_check
from headrace.runtimes.onnx.decoder import OnnxDecoder
from headrace.runtimes.onnx.decoder_runs import Runs
from headrace.runtimes.onnx.mixed_graph import NotMixedError, mix
from headrace.runtimes.onnx.options import session_options
from headrace.runtimes.onnx.preparing import GRAPH, NotPreparedError, prepare
from headrace.runtimes.onnx.sharing import shared_graph


def export(folder: Path, kind: str = "Llama", **changes: Any) -> Path:
    """The graph of a tiny model with random weights."""
    from headrace.runtimes.convert.causal_export import export

    write_tiny_llama(folder / "hf", kind, **changes)
    export(folder / "hf", folder / "onnx", say=lambda _: None)
    return folder / "onnx"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(exported: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(exported.parent / "hf", dtype=torch.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


class Count:
    """How often a decoder runs, with and without prompts beside decodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        for name in ("run", "run_beside"):
            monkeypatch.setattr(Runs, name, self._counted(name, getattr(Runs, name)))

    def _counted(self, name: str, original: Any) -> Any:
        def method(runs: Runs, *parts: Any) -> None:
            self.runs.append(name)
            original(runs, *parts)

        return method

    def take(self) -> list[str]:
        runs, self.runs = self.runs, []
        return runs


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    return Count(monkeypatch)


def one(slot: int, tokens: Sequence[int]) -> Chunk:
    """The newest token of a sequence."""
    return Chunk(slot, tokens[-1:], len(tokens) - 1, table(slot), 1, fresh=False)


def test_one_run_decodes_and_computes_a_prompt(
    exported: Path, weights: Path, reference: Any, count: Count
) -> None:
    """All parts of a prompt, in a row between those that decode, which stay what they are."""
    decoder = load(exported, weights)
    texts = [text(length, length) for length in (5, 9, 3, 7)]
    decoder.step([whole(slot, tokens, 0) for slot, tokens in enumerate(texts)])
    decoder.release(1)
    texts[1] = text(23, 99)
    count.take()
    for start, end in ((0, 8), (8, 9), (9, 20), (20, 23)):
        chunks = [Chunk(1, texts[1][start:end], start, table(1), int(end == 23), fresh=start == 0)]
        for slot in (0, 2, 3):
            texts[slot].append(10 + start)
            chunks.append(one(slot, texts[slot]))
        found = decoder.step(chunks)
        computed = texts if end == 23 else [texts[0], *texts[2:]]
        order = [1, 0, 2, 3] if end == 23 else [0, 1, 2]
        agree(found, np.stack([expected(reference, computed[at])[-1] for at in order]))
        # a lone token of a prompt is one like the others
        assert count.take() == ["run" if end - start == 1 else "run_beside"]


def test_logits_are_those_of_runs_apart(exported: Path, weights: Path) -> None:
    """Not one bit depends on what else was in the run: decodes, guesses, prompts alone and in groups."""
    generator = random.Random(7)
    both = [load(exported, weights, mixed_runs=mixed, max_sequences=6) for mixed in (True, False)]
    assert [decoder.together for decoder in both] == ["mixed", "alike"]
    running: dict[int, list[int]] = {}
    for _ in range(80):
        chunks = []
        for slot, tokens in running.items():
            start = len(tokens)
            tokens.extend(generator.choices(range(3, VOCABULARY), k=generator.choice((1, 1, 1, 4))))
            chunks.append(Chunk(slot, tokens[start:], start, table(slot), len(tokens) - start, fresh=False))
        for slot in set(range(6)) - running.keys():
            if generator.random() < 0.4:
                running[slot] = text(generator.randint(1, 20), generator.randrange(1000))
                chunks.append(whole(slot, running[slot]))
        if not chunks:
            continue
        found, wanted = (decoder.step(chunks).copy() for decoder in both)
        np.testing.assert_array_equal(found, wanted)
        for slot in [slot for slot, tokens in running.items() if len(tokens) > 40]:
            for decoder in both:
                decoder.release(slot)
            del running[slot]


@pytest.mark.parametrize(
    "longest", [LONGEST, LONGEST - 14], ids=["rows as long", "rows longer for their pages"]
)
@pytest.mark.parametrize("spare", [0, 1])
def test_a_prompt_may_fill_its_row(tmp_path: Path, count: Count, longest: int, spare: int) -> None:
    """Where nothing is left behind it for a row in between to write to, it is computed apart."""
    exported = export(tmp_path, max_position_embeddings=longest)
    both = [
        load(exported, tmp_path / "weights", max_tokens=longest, mixed_runs=mixed) for mixed in (True, False)
    ]
    texts = [text(4), text(longest - spare), text(6)]
    found = []
    for decoder in both:
        decoder.step([whole(slot, texts[slot], 0) for slot in (0, 1, 2)])
        decoder.release(1)
        decoder.step([whole(1, texts[1][:-2], 0)])
        count.take()
        last = Chunk(1, texts[1][-2:], len(texts[1]) - 2, table(1), 1, fresh=False)
        found.append(decoder.step([one(0, [*texts[0], 30]), last, one(2, [*texts[2], 30])]).copy())
        apart = decoder.together == "alike" or not spare
        assert count.take() == (["run", "run"] if apart else ["run_beside"])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(
    "settings",
    [{"mixed_runs": False}, {"max_sequences": 1, "kv_tokens": 64}],
    ids=["switched off", "nothing to mix"],
)
def test_it_is_not_loaded_where_it_is_of_no_use(
    exported: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert load(exported, tmp_path, **settings).together == "alike"
    assert not list(tmp_path.iterdir())


def test_without_the_package_that_edits_graphs_there_is_none(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    assert load(exported, tmp_path).together == "alike"
    assert not list(tmp_path.iterdir())


def test_one_that_cannot_be_run_is_done_without(
    exported: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise ModelError("ONNX Runtime failed: no memory")

    monkeypatch.setattr(Runs, "run_beside", fail)
    decoder = load(exported, weights)
    assert decoder.together == "alike"
    assert "apart from decodes: ONNX Runtime failed: no memory" in capfd.readouterr().err
    assert len(decoder.step([whole(0, text(4)), whole(1, text(9))])) == 2


def test_what_was_made_is_kept(exported: Path, tmp_path: Path, count: Count) -> None:
    """The second load finds it; one that cannot be read is made again with the load after that."""
    assert load(exported, tmp_path).together == "mixed"
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    inode = (folder / GRAPH).stat().st_ino
    assert load(exported, tmp_path).together == "mixed"
    assert (folder / GRAPH).stat().st_ino == inode
    size = (folder / GRAPH).stat().st_size
    (folder / GRAPH).write_bytes(b"x" * size)
    broken: OnnxDecoder = load(exported, tmp_path)
    assert broken.together == "alike"
    count.take()
    broken.step([whole(0, text(4)), whole(1, text(9))])
    assert count.take() == ["run", "run"]
    assert load(exported, tmp_path).together == "mixed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Qwen3", {}),
        ("Mistral", {"sliding_window": 6}),
        ("Gemma2", {}),
        ("Granite", {}),
        ("GptOss", {"num_local_experts": 4}),
    ],
    ids=["normalised heads", "a window", "soft caps", "scaled residuals", "sinks and experts"],
)
def test_families(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """What architectures do to attention is done to both parts of it; preparing compares them."""
    exported = export(tmp_path, kind, **changes)
    (tmp_path / "prepared").mkdir()
    assert prepare(exported / "model.onnx", tmp_path / "prepared", {}, mixed=True).endswith(
        "bytes of weights"
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_small_weights(exported: Path, tmp_path: Path, bits: int) -> None:
    model = quantize(onnx.load(str(exported / "model.onnx")), bits, say=lambda _: None)
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert prepare(tmp_path / "model.onnx", tmp_path, {}, mixed=True).endswith("bytes of weights")


def layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "GroupQueryAttention"]


def without_attention(graph: onnx.GraphProto) -> None:
    for node in layers(graph):
        node.op_type = "PagedAttention"


def with_bias(graph: onnx.GraphProto) -> None:
    (first, *_) = layers(graph)
    first.input.extend([""] * (11 - len(first.input)))
    first.input[10] = "attention_bias"


def with_scores(graph: onnx.GraphProto) -> None:
    layers(graph)[0].output.append("scores")


def with_lengths(graph: onnx.GraphProto) -> None:
    graph.node.append(onnx.helper.make_node("Identity", ["seqlens_k"], ["seen"], "look"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_attention, "no GroupQueryAttention"),
        (with_bias, "takes positions or a bias"),
        (with_scores, "outputs that are not known"),
        (with_lengths, r"'look' \(Identity\) takes the rows' lengths"),
    ],
)
def test_graphs_that_cannot_be_mixed(exported: Path, change: Any, reason: str) -> None:
    model = onnx.load(str(exported / "model.onnx"), load_external_data=False)
    change(model.graph)
    with pytest.raises(NotMixedError, match=reason):
        mix(model.graph)


def test_why_there_is_none_is_said(exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(str(exported / "model.onnx"))
    with_bias(model.graph)
    file = tmp_path / "model.onnx"
    onnx.save(model, str(file))
    with pytest.raises(NotPreparedError, match="takes positions or a bias"):
        prepare(file, tmp_path, {}, mixed=True)
    assert shared_graph(tmp_path / "weights", file, file, {}, mixed=True) is None
    said = capfd.readouterr().err
    assert f"{file}: prompts are computed apart from decodes: the attention" in said
    assert "takes positions or a bias" in said


def sessions(plain: Path, changed: Any) -> tuple[Any, Any]:
    """A graph, and its mixed form after ``changed`` was done to it."""
    import onnxruntime as ort

    model = onnx.load(str(plain / "model.onnx"))
    mix(model.graph)
    changed(model.graph)
    options = session_options({})
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    return (
        ort.InferenceSession(str(plain / "model.onnx"), options, providers=providers),
        ort.InferenceSession(model.SerializeToString(), options, providers=providers),
    )


def swap_parts(graph: onnx.GraphProto) -> None:
    (first, *_) = (node for node in graph.node if node.op_type == "Concat")
    first.input[0], first.input[1] = first.input[1], first.input[0]


def narrow_prompts(graph: onnx.GraphProto) -> None:
    for node in layers(graph):
        if node.name.endswith("/prompts"):
            next(item for item in node.attribute if item.name == "local_window_size").i = 2


@pytest.mark.parametrize("change", [swap_parts, narrow_prompts])
def test_a_form_that_computes_something_else_is_found_out(exported: Path, change: Any) -> None:
    assert mixed_check.compare(*sessions(exported, lambda _: None)) == 0
    with pytest.raises(mixed_check.DifferentDecodersError, match="outputs differ by"):
        mixed_check.compare(*sessions(exported, change))


def test_nan_is_a_difference(exported: Path) -> None:
    def spoil(graph: onnx.GraphProto) -> None:
        scale: NDArray[Any]
        norm = next(tensor for tensor in graph.initializer if "final_norm" in tensor.name)
        scale = onnx.numpy_helper.to_array(norm) * np.float32("nan")
        norm.CopyFrom(onnx.numpy_helper.from_array(scale, norm.name))

    with pytest.raises(mixed_check.DifferentDecodersError, match="outputs differ by inf"):
        mixed_check.compare(*sessions(exported, spoil))


def test_a_run_that_fails_is_an_error_of_the_model(exported: Path, weights: Path) -> None:
    """Its rows are lost; the next step runs as before."""
    decoder = load(exported, weights)
    decoder.step([whole(0, text(5))])
    with pytest.raises(ModelError, match="ONNX Runtime failed"):
        decoder.step([Chunk(0, [VOCABULARY + 9], 5, table(0), 1, fresh=False), whole(1, text(6))])
    assert decoder.step([whole(2, text(4)), Chunk(0, [4], 5, table(0), 1, fresh=False)]).shape == (
        2,
        VOCABULARY,
    )
