"""Text encoders from Hugging Face folders, with transformers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
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
from headrace.runtimes.torch.weight_files import FullIndex, weight_files

CONFIG: Final = "config.json"


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
        ModelError: the folder is incomplete or damaged, its files do not fit each other, or it is no text
            encoder.
    """
    # transformers reads it while it is imported, and would otherwise look for newer files.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = options.device(instance)
    dtype = options.dtype(instance.options) or torch.float32
    allow_pickle = options.switch(instance.options, "allow_pickle")
    weight_files(folder, FullIndex)  # before transformers reads them
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
            use_safetensors=not allow_pickle or None,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # the report has them; transformers would refuse and not say which
            output_loading_info=True,
        )
    except Exception as error:  # values of config.json that it does not check fail in any way
        msg = f"transformers cannot load '{folder.name}': {_reason(error)}".replace(f"{folder}", folder.name)
        raise ModelError(msg) from error
    _refuse_random(report, module, kind, folder)
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
    unused: tuple[str, ...]
    """Parts of the names of weights from which nothing served is computed."""


_ENCODER: Final = _Kind("AutoModel", "last_hidden_state", 3, "hidden_size", ("pooler.", "position_ids"))
# Where a classifier has a pooler, its logits are computed from it.
_CLASSIFIER: Final = _Kind("AutoModelForSequenceClassification", "logits", 2, "num_labels", ("position_ids",))
_MASKED: Final = _Kind("AutoModelForMaskedLM", "logits", 3, "vocab_size", ("pooler.", "position_ids"))


def _kind(config: Any, instance: InstanceSpec) -> _Kind:
    text = instance.text
    if text is not None:
        if text.head == "classify":
            return _CLASSIFIER
        return _MASKED if text.pooling in SPLADES else _ENCODER
    architectures = getattr(config, "architectures", None) or []
    named = any(name.endswith("ForSequenceClassification") for name in architectures)
    return _CLASSIFIER if named else _ENCODER


def _reason(error: Exception) -> str:
    """Return what transformers says, or what Python says where transformers did not look."""
    from huggingface_hub.errors import StrictDataclassError  # offline, once transformers is imported

    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        return f"{CONFIG}: {last_line(error.__cause__)}"
    if isinstance(error, OSError | ValueError | ImportError | RuntimeError):
        return last_line(error)
    return (
        f"{type(error).__name__}: {last_line(error)}; most likely a value in {CONFIG} is unknown or of a "
        "wrong type: compare it with the published file"
    )


def _refuse_random(report: Mapping[str, Any], module: Any, kind: _Kind, folder: Path) -> None:
    """Refuse a model with weights that the files do not give, which transformers leaves random."""

    def used(key: str) -> bool:
        return not any(part in key for part in kind.unused)

    missing = [key for key in sorted(report["missing_keys"]) if used(key)]
    if missing:
        msg = f"weights are missing from '{folder.name}' and would be random: {', '.join(missing[:5])}"
        raise ModelError(msg)
    others = sorted(
        (key, [*there], [*wanted]) for key, there, wanted in report["mismatched_keys"] if used(key)
    )
    if not others:
        return
    told = [f"'{key}' has shape {there}, {CONFIG} asks for {wanted}" for key, there, wanted in others[:3]]
    more = f"; and {len(others) - 3} more" if len(others) > 3 else ""
    head = _head(others, module, kind)
    msg = f"weights of '{folder.name}' do not fit its {CONFIG}: {'; '.join(told)}{more}{head}"
    raise ModelError(msg)


def _head(others: Sequence[tuple[str, list[int], list[int]]], module: Any, kind: _Kind) -> str:
    """Say what is wrong when a classifier's last layer has another number of labels."""
    labels = module.config.num_labels
    for key, there, wanted in others:
        if (
            kind is _CLASSIFIER
            and not key.startswith(f"{module.base_model_prefix}.")
            and there[1:] == wanted[1:]
            and wanted[0] == labels
        ):
            return f": {CONFIG} has {labels} labels (id2label), the weights have {there[0]}"
    return ""


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
