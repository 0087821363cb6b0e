"""Text encoders from Hugging Face folders, with transformers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from numpy.typing import NDArray

from headrace.runtimes.base import InstanceSpec, InvalidInputError, ModelError, Padding, TensorSpec
from headrace.runtimes.pooling import SPLADES
from headrace.runtimes.torch import options
from headrace.runtimes.torch.module import TorchModel, compiled, last_line, prepare
from headrace.runtimes.torch.packed_choice import choose
from headrace.runtimes.torch.packed_encoder import padding_position

_HARMLESS: tuple[str, ...] = ("pooler.", "position_ids")
"""Weights that may be missing from a checkpoint because nothing served is computed from them."""


def load(folder: Path, instance: InstanceSpec) -> TorchModel:
    """Load a text encoder from a folder with ``config.json`` and safetensors.

    With ``text.head`` ``classify``, or without a head when the configuration names a sequence classifier, it
    has output ``logits`` [rows, labels]; with pooling ``splade`` a masked language model's ``logits`` [rows,
    tokens, vocabulary]; else ``last_hidden_state`` [rows, tokens, dim]. Inputs are
    ``input_ids``, ``attention_mask`` and, where the model has token types, ``token_type_ids``, all INT64.

    Options: ``dtype`` (weights and outputs; float32 by default), ``compile``, ``packed`` (see
    :func:`~headrace.runtimes.torch.packed_choice.choose`), and ``allow_pickle`` to read ``pytorch_model.bin``
    too. Nothing is downloaded and no code of the folder is run.

    Raises:
        ModelError: the folder is incomplete, or no text encoder.
    """
    # transformers reads it while it is imported, and would otherwise look for newer files.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = options.device(instance)
    dtype = options.dtype(instance.options) or torch.float32
    try:
        config: Any = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        kind = _kind(config, instance)
        factory: Any = getattr(transformers, kind.factory)
        module, report = factory.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=not options.switch(instance.options, "allow_pickle") or None,
            dtype=dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        msg = f"transformers cannot load '{folder.name}': {last_line(error)}".replace(
            f"{folder}", folder.name
        )
        raise ModelError(msg) from error
    missing = [key for key in sorted(report["missing_keys"]) if not any(part in key for part in _HARMLESS)]
    if missing:
        msg = f"weights are missing from '{folder.name}' and would be random: {', '.join(missing[:5])}"
        raise ModelError(msg)
    accepted = inspect.signature(module.forward).parameters
    if "input_ids" not in accepted or "attention_mask" not in accepted:
        msg = f"{type(module).__name__} takes no input_ids and attention_mask: it is no text encoder"
        raise ModelError(msg)
    return _serve(module.eval().to(device), config, instance, device, kind)


class _Kind(NamedTuple):
    """What a folder is loaded as: the class, the output that is read, the setting that has its width."""

    factory: str
    output: str
    rank: int
    width: str


_ENCODER: Final = _Kind("AutoModel", "last_hidden_state", 3, "hidden_size")
_CLASSIFIER: Final = _Kind("AutoModelForSequenceClassification", "logits", 2, "num_labels")
_MASKED: Final = _Kind("AutoModelForMaskedLM", "logits", 3, "vocab_size")


def _kind(config: Any, instance: InstanceSpec) -> _Kind:
    text = instance.text
    if text is not None:
        if text.head == "classify":
            return _CLASSIFIER
        return _MASKED if text.pooling in SPLADES else _ENCODER
    architectures = getattr(config, "architectures", None) or []
    named = any(name.endswith("ForSequenceClassification") for name in architectures)
    return _CLASSIFIER if named else _ENCODER


def _serve(module: Any, config: Any, instance: InstanceSpec, device: torch.device, kind: _Kind) -> TorchModel:
    has_types = (
        "token_type_ids" in inspect.signature(module.forward).parameters
        and getattr(config, "type_vocab_size", 0) > 1
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_types else [])]
    inputs = [TensorSpec(name, "INT64", (-1, -1)) for name in names]
    datatype = {torch.float32: "FP32", torch.float16: "FP16", torch.bfloat16: "BF16"}[module.dtype]
    output = TensorSpec(kind.output, datatype, (-1,) * (kind.rank - 1) + (getattr(config, kind.width),))
    longest = _longest(module, config)
    packed = choose(module, output, instance, longest)
    called = compiled(module, instance.options)

    def call(tensors: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        if packed is not None:
            return {output.name: packed(tensors)}
        return {output.name: called(**tensors, return_dict=True)[output.name]}

    check = _limits(config.vocab_size, longest)
    padding: Padding = "all" if packed is None else "none"
    made = TorchModel(call, inputs, [output], instance, device, check=check, padding=padding)
    return prepare(made, instance.options)


def _longest(module: Any, config: Any) -> int | None:
    """Return the most tokens that a text may have, or None when nothing says."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    padding = padding_position(module)
    return positions if positions is None or padding is None else positions - padding - 1


def _limits(vocabulary: int, longest: int | None) -> Callable[[Mapping[str, NDArray[Any]]], None]:
    """Make the check of ids and lengths: on a GPU a wrong index would end the process."""

    def check(inputs: Mapping[str, NDArray[Any]]) -> None:
        ids = inputs["input_ids"]
        if longest is not None and ids.shape[1] > longest:
            msg = f"a row has {ids.shape[1]} tokens, the model takes at most {longest}"
            raise InvalidInputError(msg)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            msg = f"token ids must be from 0 to {vocabulary - 1}, not {ids.min()} to {ids.max()}"
            raise InvalidInputError(msg)

    return check
