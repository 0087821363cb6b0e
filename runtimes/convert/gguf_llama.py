"""Reads a GGUF file of the ``llama`` architecture as the parts of a Hugging Face model folder.

The format stores what Hugging Face has in other names, quantised, and with the rows of the query and key
projections in another order (pairs of rotated features side by side instead of in two halves).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize

from headrace.runtimes.convert.job import ConversionError

_LAYER: Final = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_WHOLE: Final = MappingProxyType(
    {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
)
_IN_LAYER: Final = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_CONTROL: Final = 3
"""Type of a token that no text is ever split into."""


class GgufLlama:
    """An opened file."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            ConversionError: its architecture is not ``llama``.
        """
        self._reader = GGUFReader(path)
        if (kind := self._field("general.architecture")) != "llama":
            msg = f"{path.name} holds a model of architecture '{kind}'; only 'llama' is read"
            raise ConversionError(msg)

    def config(self) -> dict[str, Any]:
        """What belongs into config.json of a ``LlamaForCausalLM``."""
        heads, width = self._llama("attention.head_count"), self._llama("embedding_length")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
            "hidden_size": width,
            "head_dim": width // heads,
            "num_attention_heads": heads,
            "num_key_value_heads": self._llama("attention.head_count_kv"),
            "num_hidden_layers": self._llama("block_count"),
            "intermediate_size": self._llama("feed_forward_length"),
            "max_position_embeddings": self._llama("context_length"),
            # Stored in 32 bits: 1e-05 reads as 9.999999747e-06.
            "rms_norm_eps": float(f"{self._llama('attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_theta": self._llama("rope.freq_base"),
            "rope_scaling": None,
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self._reader.tensors),
            "vocab_size": self._llama("vocab_size"),
            "bos_token_id": self._field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._field("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self._field("tokenizer.ggml.padding_token_id"),
        }

    def weights(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Every parameter's Hugging Face name and its values, dequantised.

        Raises:
            ConversionError: a tensor that a Llama model does not have.
        """
        heads, kv_heads = self._llama("attention.head_count"), self._llama("attention.head_count_kv")
        for tensor in self._reader.tensors:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
            if tensor.name in _WHOLE:
                yield _WHOLE[tensor.name], values
                continue
            match = _LAYER.fullmatch(tensor.name)
            if match is None or match[2] not in _IN_LAYER:
                msg = f"tensor {tensor.name} is none of a Llama model"
                raise ConversionError(msg)
            if match[2] in ("attn_q", "attn_k"):
                values = _halves(values, heads if match[2] == "attn_q" else kv_heads)
            yield f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.weight", values

    def tokens(self) -> list[str]:
        """The vocabulary, by id."""
        return list(self._field("tokenizer.ggml.tokens"))

    def control_tokens(self) -> list[int]:
        """Ids of the tokens that steer the model."""
        types = self._field("tokenizer.ggml.token_type")
        return [index for index, kind in enumerate(types) if kind == _CONTROL]

    def merges(self) -> list[list[str]]:
        """The pairs of tokens that are joined, first ones first."""
        return [pair.split(" ") for pair in self._field("tokenizer.ggml.merges")]

    def chat_template(self) -> str:
        """The Jinja text."""
        return str(self._field("tokenizer.chat_template"))

    def token(self, role: str) -> str:
        """The token that the file names as ``bos``, ``eos``, ``unknown`` or ``padding``."""
        return self.tokens()[int(self._field(f"tokenizer.ggml.{role}_token_id"))]

    def _llama(self, name: str) -> Any:
        return self._field(f"llama.{name}")

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        if field is None:
            msg = f"the GGUF file does not say {name}"
            raise ConversionError(msg)
        return field.contents()


def _halves(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows of a projection in Hugging Face's order: of each head the first half, then the second."""
    rows, columns = values.shape
    paired = values.reshape(heads, rows // heads // 2, 2, columns)
    return paired.swapaxes(1, 2).reshape(rows, columns)
