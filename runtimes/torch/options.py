"""Options of a torch model (``config.pbtxt`` parameters)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, get_args

import msgspec
import torch

from headrace.runtimes.base import InstanceSpec, ModelError, TensorSpec
from headrace.runtimes.generation.base import DeviceSampling
from headrace.runtimes.torch.tensors import DTYPES

_FLOATS: Final = MappingProxyType(
    {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
)
_SAMPLING: Final[Mapping[str, DeviceSampling]] = MappingProxyType(
    {name: name for name in get_args(DeviceSampling)}
)
_BOOLEANS: Final = MappingProxyType({"true": True, "false": False, "1": True, "0": False})

PACKED: Final = ("auto", "on", "off")


class Declared(msgspec.Struct, frozen=True):
    """One entry of the ``inputs`` and ``outputs`` options: a tensor as ``config.pbtxt`` declares it."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def dtype(options: Mapping[str, str]) -> torch.dtype | None:
    """Return the ``dtype`` option: what floating-point weights are converted to, or None to leave them.

    Raises:
        ModelError: it is not ``float32``, ``float16`` or ``bfloat16``.
    """
    text = options.get("dtype", "")
    if text and text not in _FLOATS:
        msg = f"option 'dtype' must be one of {', '.join(_FLOATS)}, not '{text}'"
        raise ModelError(msg)
    return _FLOATS.get(text)


def sampling(options: Mapping[str, str]) -> DeviceSampling:
    """Return the ``sampling`` option: who chooses tokens on a GPU; ``ahead`` when it is left out.

    Raises:
        ModelError: it is none of the three.
    """
    text = options.get("sampling", "ahead")
    if text not in _SAMPLING:
        msg = f"option 'sampling' must be one of {', '.join(_SAMPLING)}, not '{text}'"
        raise ModelError(msg)
    return _SAMPLING[text]


def switch(options: Mapping[str, str], name: str) -> bool:
    """Return a true-or-false option; false when it is left out.

    Raises:
        ModelError: it is neither.
    """
    text = options.get(name, "false").strip().lower()
    if text not in _BOOLEANS:
        msg = f"option '{name}' must be true or false, not '{options[name]}'"
        raise ModelError(msg)
    return _BOOLEANS[text]


def packed(options: Mapping[str, str]) -> str:
    """Return the ``packed`` option; ``auto`` when it is left out.

    Raises:
        ModelError: it is none of ``auto``, ``on`` and ``off``.
    """
    text = options.get("packed", "auto").strip().lower()
    if text not in PACKED:
        msg = f"option 'packed' must be one of {', '.join(PACKED)}, not '{options['packed']}'"
        raise ModelError(msg)
    return text


def declared(options: Mapping[str, str], name: str) -> tuple[TensorSpec, ...] | None:
    """Return the tensors of option ``inputs`` or ``outputs``, or None when it is left out.

    The option is a JSON list of ``{"name", "datatype", "shape"}`` with KServe datatypes and full shapes: the
    batch dimension included, -1 for one that varies.

    Raises:
        ModelError: it is something else, or has a datatype that torch does not.
    """
    if name not in options:
        return None
    try:
        entries = msgspec.json.decode(options[name], type=list[Declared])
    except msgspec.MsgspecError as error:
        msg = f"option '{name}' must be a JSON list of {{name, datatype, shape}}: {error}"
        raise ModelError(msg) from error
    for entry in entries:
        if entry.datatype not in DTYPES:
            msg = f"{name[:-1]} '{entry.name}' is {entry.datatype}, which torch does not have"
            raise ModelError(msg)
    return tuple(TensorSpec(entry.name, entry.datatype, entry.shape) for entry in entries)


def device(instance: InstanceSpec) -> torch.device:
    """Return the torch device of an instance.

    Raises:
        ModelError: this build of torch or this machine has no such device.
    """
    chosen = torch.device(instance.device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        msg = (
            f"device {instance.device} is not available; torch sees {torch.cuda.device_count()} CUDA devices"
        )
        raise ModelError(msg)
    return chosen


def positions(names: Sequence[str], arguments: Sequence[str]) -> list[int]:
    """Say which argument (or result) each declared name means.

    As Triton has it: by its own name, else by the number after a double underscore (``INPUT__0``), else
    by the order of declaration.

    Raises:
        ModelError: two names mean the same argument, or one means none.
    """
    if set(names) <= set(arguments):
        return [arguments.index(name) for name in names]
    numbers = [name.rpartition("__")[2] for name in names]
    if all("__" in name for name in names) and all(number.isdecimal() for number in numbers):
        places = [int(number) for number in numbers]
    else:
        places = list(range(len(names)))
    if len(set(places)) < len(places) or max(places, default=-1) >= len(arguments):
        msg = f"declared are {', '.join(names)}, but the model has {', '.join(arguments) or 'none'}"
        raise ModelError(msg)
    return places
