"""Models that transformers computes, with this engine's attention and KV cache."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.generation.base import Decoder, GenerationSpec
from headrace.runtimes.torch.generation import agreement, interface
from headrace.runtimes.torch.generation.dtypes import chosen_dtype
from headrace.runtimes.torch.generation.linear import pack_modules
from headrace.runtimes.torch.generation.network import Attention, Form, KvShape, Network
from headrace.runtimes.torch.module import last_line

_STRETCHED: Final = frozenset({"dynamic", "longrope"})
"""Rotary scalings that change with the longest sequence of a step, so one sequence would change others."""


def load(
    folder: Path,
    instance: InstanceSpec,
    generation: GenerationSpec,
    device: torch.device,
    decoder: Callable[[Network, GenerationSpec], Decoder],
) -> AutoNetwork:
    """Load the causal language model of ``folder`` and check that it computes what transformers does.

    ``decoder`` makes the decoder that it is checked with.

    Raises:
        ModelError: it cannot be loaded, or not served; the text says which of its features is in the way.
    """
    # transformers reads it while it is imported, and would otherwise look for newer files.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    interface.register(interface.NAME, interface.attend)
    try:
        config: Any = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        text = config.get_text_config(decoder=True)
        _check_lengths(text, generation)
        stored = getattr(config, "dtype", None) or torch.float32
        factory: Any = transformers.AutoModelForCausalLM
        module, report = factory.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=chosen_dtype(instance, device, stored),
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        msg = f"transformers cannot load '{folder.name}': {last_line(error)}".replace(
            f"{folder}", folder.name
        )
        raise ModelError(msg) from error
    missing = sorted(report["missing_keys"])
    if missing:
        msg = f"weights are missing from '{folder.name}' and would be random: {', '.join(missing[:5])}"
        raise ModelError(msg)
    module = module.eval().to(device)
    try:
        with torch.inference_mode():
            samples = agreement.samples(text.vocab_size, device)
            expected = agreement.expected(module, samples)
            network = AutoNetwork(module, device)
            checked = decoder(network, agreement.SPEC)
            agreement.check(checked, network.dtype, samples, expected)
    except (ModelError, RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{error}" if isinstance(error, ModelError) else last_line(error)
        msg = f"{type(module).__name__} cannot be served by the generation engine: {reason}"
        raise ModelError(msg) from error
    return network


def _check_lengths(text: Any, generation: GenerationSpec) -> None:
    """Refuse lengths that the model has no positions for, or that change the positions of others."""
    longest: int | None = getattr(text, "max_position_embeddings", None)
    if longest is not None and generation.max_tokens > longest:
        msg = f"sequences of {generation.max_tokens} tokens are longer than the model's {longest}"
        raise ModelError(msg)
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in (ropes, *(rope for rope in ropes.values() if isinstance(rope, Mapping))):
        if rope.get("rope_type") in _STRETCHED:
            trained = rope.get("original_max_position_embeddings") or longest or 0
            if generation.max_tokens > trained:
                msg = (
                    f"with rope_type {rope['rope_type']} sequences may have at most {trained} tokens, "
                    f"not {generation.max_tokens}"
                )
                raise ModelError(msg)


class AutoNetwork:
    """A :class:`~headrace.runtimes.torch.generation.network.Network` around transformers' module."""

    def __init__(self, module: Any, device: torch.device) -> None:
        """Give ``module`` this engine's attention, and find out what its layers keep.

        Raises:
            ModelError: it does not take attention from outside, or a feature of it is not supported.
        """
        self._module = module
        self._keeps_logits = "logits_to_keep" in inspect.signature(module.forward).parameters
        interface.replace_attention(module, interface.NAME)
        if device.type == "cpu":
            pack_modules(module)
        probe = _Probe()
        zero = torch.zeros(1, dtype=torch.int64, device=device)
        self._numbers: dict[int, int] = {}
        self._vocabulary_size = self._logits(zero, zero, zero, probe).shape[1]
        self._numbers = {layer: number for number, layer in enumerate(probe.shapes)}
        self._shapes = tuple(probe.shapes.values())
        if not self._shapes:
            msg = "it has no attention"
            raise ModelError(msg)

    @property
    def shapes(self) -> Sequence[KvShape]:
        """Of the layers that have attention."""
        return self._shapes

    @property
    def vocabulary_size(self) -> int:
        """Width of the module's logits."""
        return self._vocabulary_size

    @property
    def dtype(self) -> torch.dtype:
        """Of the module's parameters."""
        dtype: torch.dtype = self._module.dtype
        return dtype

    @property
    def capturable(self) -> bool:
        """Never: experts are chosen by values, and nobody knows what else is."""
        return False

    def __call__(
        self, tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        """Compute packed tokens; see ``Network``."""
        numbers = self._numbers

        def numbered(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
        ) -> torch.Tensor:
            return attention(numbers[layer], query, key, value, form)

        return self._logits(tokens, positions, rows, numbered)

    def _logits(
        self, tokens: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor, attention: Attention
    ) -> torch.Tensor:
        kept = {"logits_to_keep": rows} if self._keeps_logits else {}
        # Without a mask transformers would look for packed sequences in the positions.
        output = self._module(
            input_ids=tokens[None],
            attention_mask=torch.ones_like(tokens)[None],
            position_ids=positions[None],
            use_cache=False,
            headrace=attention,
            **kept,
        )
        logits: torch.Tensor = output.logits[0]
        return logits if self._keeps_logits else logits[rows]


class _Probe:
    """An attention that only notes what each layer would keep."""

    def __init__(self) -> None:
        self.shapes: dict[int, KvShape] = {}

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
    ) -> torch.Tensor:
        del form
        if layer in self.shapes:
            msg = f"layer {layer} attends more than once"
            raise ModelError(msg)
        self.shapes[layer] = KvShape(key.shape[1], key.shape[2], value.shape[2])
        return query.new_zeros(query.shape[0], query.shape[1] * value.shape[2])
