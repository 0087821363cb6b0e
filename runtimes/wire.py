"""Messages between the server and a worker, and their framing.

A frame is a little-endian uint32 length and that many bytes of msgpack. Requests and replies travel over one
stream socket; :class:`Cancel` has a socket of its own so that it overtakes a running batch. Tensor bytes of a
batch lie one after another in one block: inside the frame when the block is small, else in the shared region
of the batch's slot (see ``regions``).
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from headrace.runtimes.base import InstanceSpec, Padding, TensorSpec

INLINE_LIMIT: Final = 16 * 1024
"""Blocks up to this many bytes travel inside the frame; larger ones through the slot's shared region."""

SLOTS: Final = 2
"""Batches that may be with a worker at once: one running, one waiting in its socket."""

_LENGTH: Final = struct.Struct("<I")
HEADER_SIZE: Final = _LENGTH.size


class Tensor(msgspec.Struct, array_like=True, frozen=True):
    """Where one tensor's bytes lie in the batch's block."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    # End offsets of each row, relative to ``offset``; only for BYTES, whose rows have no fixed size.
    row_ends: tuple[int, ...] | None = None


class Load(msgspec.Struct, array_like=True, frozen=True, tag="load"):
    """Server → worker, once: load this instance."""

    instance: InstanceSpec


class Loaded(msgspec.Struct, array_like=True, frozen=True, tag="loaded"):
    """Worker → server: the instance is loaded and these are its tensors.

    ``padding`` says what a batch of texts pays for its padding.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str
    padding: Padding = "all"


class LoadFailed(msgspec.Struct, array_like=True, frozen=True, tag="load-failed"):
    """Worker → server: the instance cannot be loaded; the worker exits."""

    message: str


class Execute(msgspec.Struct, array_like=True, frozen=True, tag="execute"):
    """Server → worker: run a batch. ``block`` is None when the bytes lie in region ``slot``.

    ``beside`` says that other instances of the model run too.
    """

    batch: int
    slot: int
    lone: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    size: int
    block: bytes | None
    beside: bool = False


class Executed(msgspec.Struct, array_like=True, frozen=True, tag="executed"):
    """Worker → server: a batch's outputs; durations in nanoseconds."""

    batch: int
    outputs: tuple[Tensor, ...]
    size: int
    block: bytes | None
    input_ns: int
    infer_ns: int
    output_ns: int


class Failed(msgspec.Struct, array_like=True, frozen=True, tag="failed"):
    """Worker → server: a batch failed. ``kind`` is ``invalid``, ``cancelled`` or ``execution``."""

    batch: int
    kind: str
    message: str


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag="cancel"):
    """Server → worker, control socket: nobody waits for this batch any more."""

    batch: int


Request = Load | Execute
Reply = Loaded | LoadFailed | Executed | Failed


def frame(message: msgspec.Struct) -> bytes:
    """Encode one message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


def frame_size(header: bytes | bytearray | memoryview) -> int:
    """Return the body length that a frame's first ``HEADER_SIZE`` bytes announce."""
    size: int = _LENGTH.unpack_from(header)[0]
    return size
