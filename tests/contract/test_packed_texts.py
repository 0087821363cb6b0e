"""Texts without padding: how they are laid out, attended, positioned, and when a model is left padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_encoders import LAYERS, VOCABULARY, WIDTH, encoder, save

from headrace.runtimes.base import InstanceSpec, ModelError, Run, TextSpec
from headrace.runtimes.torch.generation.visible import Visible
from headrace.runtimes.torch.loading import load
from headrace.runtimes.torch.packed_attention import by_length, varlen, varlen_window
from headrace.runtimes.torch.packed_encoder import PackedEncoder
from headrace.runtimes.torch.packed_layout import Layout, lay_out

CPU = torch.device("cpu")
LENGTHS = (5, 2, 9, 5, 1)


def layout_of(lengths: Sequence[int], width: int, device: torch.device = CPU) -> Layout:
    return lay_out(np.array(lengths), width, device)


def batch(lengths: Sequence[int], first: int = 5) -> dict[str, torch.Tensor]:
    """Pad random texts with id 0; their own ids are from ``first`` on."""
    generator = torch.Generator().manual_seed(4)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(first, VOCABULARY, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("lengths", [LENGTHS, (4, 4, 4), (7,)])
@pytest.mark.parametrize("more", [0, 3])
def test_batches_are_packed_and_back(lengths: Sequence[int], more: int) -> None:
    width = max(lengths) + more
    layout = layout_of(lengths, width)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    padded = torch.arange(1, mask.numel() + 1).view(mask.shape) * mask
    packed = layout.pack(padded)
    assert packed.shape == (1, sum(lengths))
    assert packed.min() > 0
    assert torch.equal(layout.unpack(packed[..., None])[..., 0], padded)
    starts, ends = layout.bounds[:-1].tolist(), layout.bounds[1:].tolist()
    assert [end - start for start, end in zip(starts, ends, strict=True)] == sorted(lengths)
    assert layout.positions.tolist() == [place for length in sorted(lengths) for place in range(length)]
    assert layout.texts.tolist() == [
        text for text, length in enumerate(sorted(lengths)) for _ in range(length)
    ]
    assert [(g.first, g.rows, g.length) for g in layout.groups] == [
        (sum(other for other in lengths if other < length), lengths.count(length), length)
        for length in sorted(set(lengths))
    ]
    assert layout.longest == max(lengths)


@pytest.mark.parametrize(
    ("visible", "window"),
    [
        (Visible(causal=False), (-1, -1)),
        (Visible(2, causal=False), (2, 2)),
        (Visible(), (-1, 0)),
        (Visible(3), (2, 0)),
        (Visible(9), (8, 0)),
    ],
)
@pytest.mark.parametrize("heads", [4, 2])
def test_texts_attend_to_themselves(visible: Visible, window: tuple[int, int], heads: int) -> None:
    """Against a softmax over all packed tokens; what is seen is told as flash attention is told it."""
    torch.manual_seed(5)
    layout = layout_of(LENGTHS, max(LENGTHS))
    query = torch.randn(1, 4, sum(LENGTHS), 8)
    key, value = torch.randn(2, 1, heads, sum(LENGTHS), 8).unbind()
    found = by_length(query, key, value, layout, visible, 0.3)
    before, behind = (len(layout.texts) if side < 0 else side for side in varlen_window(visible))
    assert varlen_window(visible) == window
    ahead = layout.positions[None] - layout.positions[:, None]
    seen = (layout.texts[None] == layout.texts[:, None]) & (ahead >= -before) & (ahead <= behind)
    keys, values = (states.repeat_interleave(4 // heads, dim=1) for states in (key, value))
    scores = (query @ keys.transpose(2, 3) * 0.3).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("visible", [Visible(causal=False), Visible(64, causal=False), Visible(7)])
def test_flash_attention_accepts_the_arguments(visible: Visible) -> None:
    """On torch's device without memory, where shapes and arguments are checked and nothing is computed."""
    device = torch.device("meta")
    layout = layout_of(LENGTHS, max(LENGTHS), device)
    query = torch.empty(1, 4, sum(LENGTHS), 8, device=device, dtype=torch.float16)
    key = torch.empty(1, 2, sum(LENGTHS), 8, device=device, dtype=torch.float16)
    result = varlen(query, key, key, layout, visible, 0.3)
    assert result.shape == (1, sum(LENGTHS), 4, 8)
    assert result.dtype == torch.float16


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_padding_ids_inside_a_text_keep_their_position(family: str) -> None:
    """These models give them no position of their own, and shift what follows."""
    tensors = batch((12, 7, 20), first=0)
    tensors["input_ids"][0, 3] = tensors["input_ids"][2, 0] = tensors["input_ids"][2, 9] = 1  # their padding
    model = encoder(family)
    with torch.inference_mode():
        expected = model(**tensors)["last_hidden_state"]
        found = PackedEncoder(model, "last_hidden_state", 38)(tensors)
    here = tensors["attention_mask"].bool()
    torch.testing.assert_close(found[here], expected[here], atol=1e-5, rtol=0)
    assert not found[~here].any()


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "qwen3"])
def test_batches_without_padding_stay_as_they_are(family: str) -> None:
    """Windows and causal masks hold there too."""
    tensors = batch((20, 20, 20))
    model = encoder(family)
    with torch.inference_mode():
        expected = model(**tensors)["last_hidden_state"]
        found = PackedEncoder(model, "last_hidden_state", 38)(tensors)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "modernbert", "distilbert"])
def test_logits_of_masked_language_models(family: str) -> None:
    """What SPLADE pooling reads."""
    tensors = batch((12, 7, 20, 7))
    model = encoder(family, "ForMaskedLM")
    with torch.inference_mode():
        expected = model(**tensors)["logits"]
        found = PackedEncoder(model, "logits", 40)(tensors)
    here = tensors["attention_mask"].bool()
    torch.testing.assert_close(found[here], expected[here], atol=1e-5, rtol=0)


def evaluated(kind: Any, config: Any) -> Any:
    torch.manual_seed(6)
    return kind(config).eval()


def convolutions() -> Any:
    config = transformers.Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    return evaluated(transformers.Lfm2Model, config)


def chunked() -> Any:
    config = transformers.Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, intermediate_size_mlp=48,
        num_local_experts=2, attention_chunk_size=8,
    )  # fmt: skip
    return evaluated(transformers.Llama4TextModel, config)


def relative() -> Any:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=4
    )
    return evaluated(transformers.T5EncoderModel, config)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: encoder("mpnet"), "do not take attention from outside"),
        (convolutions, "other values"),
        (chunked, "neither full, causal nor a sliding window"),
        (relative, "takes no positions"),
    ],
    ids=["own attention", "convolutions", "chunks", "no positions"],
)
def test_models_that_cannot_are_as_they_were(made: Callable[[], Any], reason: str) -> None:
    model = made()
    tensors = batch((12, 7))
    with torch.inference_mode():
        before = model(**tensors)["last_hidden_state"]
        with pytest.raises(ModelError, match=reason):
            PackedEncoder(model, "last_hidden_state", 40)
        assert torch.equal(model(**tensors)["last_hidden_state"], before)


def instance(folder: Path, head: str = "embed", **options: str) -> InstanceSpec:
    return InstanceSpec("m", "torch", str(folder), options=options, text=TextSpec(head))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"packed": "perhaps"}, "'packed' must be one of auto, on, off, not 'perhaps'"),
        ({"packed": "on", "compile": "true"}, "packed texts are not compiled"),
    ],
)
def test_refused_options(options: dict[str, str], said: str, tmp_path: Path) -> None:
    save(encoder("bert"), tmp_path)
    with pytest.raises(ModelError, match=said):
        load(instance(tmp_path, **options))


@pytest.mark.parametrize(
    ("mode", "head", "said"),
    [
        ("on", "Model", ""),
        ("auto", "Model", ""),
        ("off", "Model", ""),
        ("on", "ForSequenceClassification", "cannot pack them: its head reads certain tokens"),
        ("auto", "ForSequenceClassification", ""),
    ],
)
def test_what_is_said(
    mode: str, head: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(encoder("bert", head), tmp_path)
    load(instance(tmp_path, "embed" if head == "Model" else "classify", packed=mode))
    found = capfd.readouterr().err
    assert (f"m: texts are padded, Bert{head} {said}" in found) if said else "padded" not in found


def test_a_model_of_tensors_is_padded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its callers may mask what they like, padding on the left too."""
    model = encoder("bert")
    save(model, tmp_path)
    loaded = load(replace(instance(tmp_path, packed="on"), text=None))
    assert "it is served as tensors" in capfd.readouterr().err
    ids = np.array([[0, 0, 7, 8, 9]])
    mask = np.array([[0, 0, 1, 1, 1]])
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found = loaded.execute(feed, (), Run())["last_hidden_state"]
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
