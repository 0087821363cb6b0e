"""The Llama family, fused: one product for queries, keys and values, one for gate and up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from headrace.runtimes.torch.generation.architecture import Architecture
from headrace.runtimes.torch.generation.linear import Linear
from headrace.runtimes.torch.generation.network import Attention, Form, KvShape
from headrace.runtimes.torch.generation.rope import rotate, tables
from headrace.runtimes.torch.generation.weights import Checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Weights of one layer."""

    attention_norm: torch.Tensor
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    form: Form


class Llama:
    """A :class:`~headrace.runtimes.torch.generation.network.Network` of the Llama family."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        sizes: Architecture,
        length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Read the weights; ``length`` is the longest sequence that will be computed.

        Raises:
            ModelError: a weight is missing or has another shape than ``sizes`` says.
        """
        self._sizes = sizes
        self._dtype = dtype
        load = _Loader(checkpoint, sizes, dtype, device)
        self._embedding = load.tensor("model.embed_tokens.weight", sizes.vocabulary, sizes.hidden)
        self._layers = [load.layer(number) for number in range(sizes.layers)]
        self._norm = load.tensor("model.norm.weight", sizes.hidden)
        self._head = (
            Linear(self._embedding)
            if sizes.tied
            else Linear(load.tensor("lm_head.weight", sizes.vocabulary, sizes.hidden))
        )
        cosines, sines = tables(sizes.rope, sizes.head_width, sizes.longest, length, dtype)
        self._cosines, self._sines = cosines.to(device), sines.to(device)

    @property
    def shapes(self) -> Sequence[KvShape]:
        """The same for each layer."""
        width = self._sizes.head_width
        return (KvShape(self._sizes.kv_heads, width, width),) * self._sizes.layers

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding."""
        return self._sizes.vocabulary

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, states, keys and values."""
        return self._dtype

    @property
    def capturable(self) -> bool:
        """Always: no kernel depends on values."""
        return True

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        """Compute packed tokens; see ``Network``."""
        sizes = self._sizes
        width, heads, kv_heads = sizes.head_width, sizes.heads, sizes.kv_heads
        cosines = self._cosines[positions].unsqueeze(1)
        sines = self._sines[positions].unsqueeze(1)
        states = functional.embedding(tokens, self._embedding)
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(self._normed(states, layer.attention_norm)).view(-1, heads + 2 * kv_heads, width)
            value = qkv[:, heads + kv_heads :]
            if layer.query_norm is None or layer.key_norm is None:
                turned = rotate(qkv[:, : heads + kv_heads], cosines, sines)
                query, key = turned[:, :heads], turned[:, heads:]
            else:
                query = rotate(self._normed(qkv[:, :heads], layer.query_norm), cosines, sines)
                key = rotate(self._normed(qkv[:, heads : heads + kv_heads], layer.key_norm), cosines, sines)
            states = states + layer.out(attention(number, query, key, value, layer.form))
            gate_up = layer.gate_up(self._normed(states, layer.mlp_norm))
            gate, up = gate_up[:, : sizes.inner], gate_up[:, sizes.inner :]
            states = states + layer.down(functional.silu(gate) * up)
        return self._head(self._normed(states[rows], self._norm))

    def _normed(self, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(states, (states.shape[-1],), weight, self._sizes.epsilon)


class _Loader:
    """Puts together what the family computes together."""

    def __init__(
        self, checkpoint: Checkpoint, sizes: Architecture, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._checkpoint = checkpoint
        self._sizes = sizes
        self._dtype = dtype
        self._device = device

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        return self._checkpoint.take(name, shape, self._dtype).to(self._device)

    def layer(self, number: int) -> Layer:
        sizes = self._sizes
        prefix = f"model.layers.{number}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        queries, keys = sizes.heads * sizes.head_width, sizes.kv_heads * sizes.head_width
        widths = (("q", queries), ("k", keys), ("v", keys))
        parts = [(f"{attention}{part}_proj", width) for part, width in widths]
        gates = [(f"{mlp}{part}_proj", sizes.inner) for part in ("gate", "up")]
        norms = (
            [self.tensor(f"{attention}{part}_norm.weight", sizes.head_width) for part in "qk"]
            if sizes.head_norms
            else [None, None]
        )
        return Layer(
            attention_norm=self.tensor(f"{prefix}input_layernorm.weight", sizes.hidden),
            qkv=self._linear(parts, sizes.hidden, bias=sizes.qkv_bias),
            query_norm=norms[0],
            key_norm=norms[1],
            out=self._linear([(f"{attention}o_proj", sizes.hidden)], queries, bias=sizes.out_bias),
            mlp_norm=self.tensor(f"{prefix}post_attention_layernorm.weight", sizes.hidden),
            gate_up=self._linear(gates, sizes.hidden, bias=sizes.mlp_bias),
            down=self._linear([(f"{mlp}down_proj", sizes.hidden)], sizes.inner, bias=sizes.mlp_bias),
            form=Form(scale=sizes.head_width**-0.5, window=sizes.windows[number]),
        )

    def _linear(self, parts: Sequence[tuple[str, int]], inputs: int, *, bias: bool) -> Linear:
        """Stack the rows of ``parts`` (name and number of outputs) into one product."""
        weight = torch.cat([self.tensor(f"{name}.weight", size, inputs) for name, size in parts])
        if not bias:
            return Linear(weight)
        return Linear(weight, torch.cat([self.tensor(f"{name}.bias", size) for name, size in parts]))
