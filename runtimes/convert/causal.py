"""Makes a model folder for the repository from a Hugging Face folder of a causal language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from headrace.runtimes.convert.child import Order, build_in_child
from headrace.runtimes.convert.job import Checks, ConversionError

PRECISIONS: Final = ("fp32", "int8", "int4")
SCRATCH: Final = ".converting"
_NEEDED: Final = ("config.json", "tokenizer.json")
_WEIGHTS: Final = ("*.safetensors", "pytorch_model*.bin")


def convert(
    source: Path, target: Path, *, precision: str, force: bool, progress: Callable[[str], None]
) -> Checks:
    """Write ``target``, a model that the ONNX runtime generates with, from the folder ``source``.

    ``precision`` is one of :data:`PRECISIONS`: the type of the weights, activations are float32. A quantised
    model is compared to the float32 one on a sample of text; where it differs too much it is only written
    when ``force`` is set. What was measured lies in the version folder, in quality.json.

    Returns:
        The measured numbers.

    Raises:
        ConversionError: ``source`` is no such folder, its architecture cannot be exported, ``target`` exists,
            or the quantised model differs too much; the message has the numbers.
    """
    source, target = source.resolve(), target.resolve()
    _check(source, target, precision)
    scratch = target.parent / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    folder = scratch / target.name
    folder.mkdir(parents=True)
    options = {"source": str(source), "precision": precision, "force": str(int(force))}
    try:
        order = Order(target.name, {}, str(target.parent), str(folder), "causal_build:build", options)
        checks = build_in_child(order, progress)
        folder.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return checks


def _check(source: Path, target: Path, precision: str) -> None:
    if precision not in PRECISIONS:
        msg = f"there is no precision '{precision}'; expected one of {', '.join(PRECISIONS)}"
        raise ConversionError(msg)
    if target.exists():
        msg = f"'{target}' exists already; remove it or name another folder"
        raise ConversionError(msg)
    missing = [name for name in _NEEDED if not (source / name).is_file()]
    if missing:
        msg = f"'{source}' is no Hugging Face model folder: it has no {', '.join(missing)}"
        raise ConversionError(msg)
    if not any(list(source.glob(pattern)) for pattern in _WEIGHTS):
        msg = f"'{source}' has no weights ({', '.join(_WEIGHTS)})"
        raise ConversionError(msg)
    try:
        named = json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (ValueError, AttributeError) as error:
        msg = f"config.json of '{source}' is no JSON object: {error}"
        raise ConversionError(msg) from error
    kind = ", ".join(named or ["(none named)"])
    if not kind.endswith(("ForCausalLM", "LMHeadModel")):
        msg = f"architecture {kind} of '{source.name}' is no causal language model"
        raise ConversionError(msg)
