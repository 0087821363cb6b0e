"""The size of a Llama-family model from its ``config.json``; standard library only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """What the floor needs to know; widths in elements."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    @classmethod
    def read(cls, folder: str) -> Self:
        """Read ``config.json`` of a Hugging Face folder."""
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        heads = config["num_attention_heads"]
        return cls(
            config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"], heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads, config["vocab_size"],
        )  # fmt: skip

    @property
    def body(self) -> int:
        """Weights of the layers and the final norm."""
        attention = self.hidden * self.head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner + 2 * self.hidden) + self.hidden

    @property
    def weight_bytes(self) -> int:
        """Bytes in fp32 that every step reads: body and output head; rows of the embedding hardly count."""
        return (self.body + self.vocabulary * self.hidden) * FLOAT_BYTES

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in fp32."""
        return 2 * self.layers * self.kv_heads * self.head * FLOAT_BYTES

    def operations(self, tokens: int, logits: int, look_back: float) -> float:
        """Floating-point operations of a step.

        Args:
            tokens: that are computed.
            logits: of them that the output head is needed for.
            look_back: earlier tokens that each attends to, on average.
        """
        dense = 2.0 * (tokens * self.body + logits * self.vocabulary * self.hidden)
        return dense + 4.0 * tokens * self.layers * self.heads * self.head * look_back
