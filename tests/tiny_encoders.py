"""Tiny text encoders with random weights, one of each family, saved as Hugging Face folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCABULARY: Final = 96
WIDTH: Final = 32
LAYERS: Final = 2

Options = dict[str, Any]


def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


def _common(**more: Any) -> Options:
    return {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 40,
        "pad_token_id": 1, **more,
    }  # fmt: skip


FAMILIES: Final[dict[str, tuple[str, Options]]] = {
    "bert": ("Bert", _common(pad_token_id=0)),
    "roberta": ("Roberta", _common()),
    "xlm-roberta": ("XLMRoberta", _common(type_vocab_size=1)),
    "distilbert": (
        "DistilBert",
        {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48,
         "max_position_embeddings": 40},
    ),
    "mpnet": ("MPNet", _common()),
    "modernbert": (
        "ModernBert",
        _common(pad_token_id=0, local_attention=8, global_attn_every_n_layers=2, cls_token_id=2,
                sep_token_id=3, bos_token_id=2, eos_token_id=3),
    ),
    "nomic-bert": ("NomicBert", _common(pad_token_id=0)),
    "qwen3": ("Qwen3", _common(num_key_value_heads=2, head_dim=8, pad_token_id=0)),
}  # fmt: skip
"""Name → the prefix of its classes in transformers, and the settings of a tiny one."""


def encoder(family: str, head: str = "Model", **more: Any) -> Any:
    """Return a random model of a family, ready for inference; ``head`` ends the name of its class."""
    library = _transformers()
    prefix, options = FAMILIES[family]
    torch.manual_seed(11)
    config = getattr(library, f"{prefix}Config")(**{**options, **more})
    model = getattr(library, f"{prefix}{head}")(config)
    with torch.no_grad():
        for parameter in model.parameters():  # the usual tiny start would make all texts alike
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def save(model: Any, folder: Path, files: dict[str, Any] | None = None) -> Path:
    """Save a model with a tokenizer and further JSON files."""
    model.save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in (files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def tokenizer() -> Tokenizer:
    """Words w5 to w95, between <s> (2) and </s> (3)."""
    words = {"<a>": 0, "<b>": 1, "<s>": 2, "</s>": 3, "<unk>": 4}
    words |= {f"w{number}": number for number in range(5, VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return made


def export(
    model: Any,
    path: Path,
    output: str,
    *,
    head: Callable[[Any], Any] | None = None,
    positions: bool = False,
) -> None:
    """Write a model as ONNX, of any batch and length.

    Its inputs are input_ids, attention_mask and, with ``positions``, position_ids.
    """
    import warnings

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            position_ids: torch.Tensor | None = None,
        ) -> Any:
            places = {} if position_ids is None else {"position_ids": position_ids}
            result = self.model(input_ids=input_ids, attention_mask=attention_mask, **places)[output]
            return result if head is None else head(result)

    names = ["input_ids", "attention_mask", *(["position_ids"] if positions else [])]
    example = torch.full((2, 6), 7)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", min=2, max=38)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Exported().eval(),
            (example, *(torch.ones_like(example) for _ in names[1:])),
            path,
            input_names=names,
            output_names=[output],
            dynamic_shapes=dict.fromkeys(names, axes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
