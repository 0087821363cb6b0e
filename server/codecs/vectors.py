"""Vectors to bytes, without touching single values in Python."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.vector_formats import VectorFormat

_BLOCK_BYTES: Final = 64 * 1024
"""Float32 bytes that are encoded at a time, some 0.2 ms: in a thread, others get the interpreter between."""


def json_vectors(vectors: NDArray[np.float32]) -> bytes:
    """Encode [n, dim] as a JSON array of n arrays, each number in the shortest text that reads back equal."""
    return b"[" + b",".join(encode(block)[1:-1] for block in _blocks(vectors)) + b"]"


def json_token_vectors(rows: Sequence[NDArray[np.float32]]) -> bytes:
    """Encode the [tokens, dim] of each input as a JSON array of such arrays."""
    return b"[" + b",".join(map(json_vectors, rows)) + b"]"


def json_embeddings(
    rows: Iterable[NDArray[np.float32]],
    form: VectorFormat,
    *,
    kind: str = "embedding",
    field: str = "embedding",
) -> bytes:
    """Encode an array of objects with one vector, or one matrix of token vectors, each.

    Args:
        rows: float32 [dim], or [tokens, dim], of each input.
        form: ``float`` gives arrays of numbers, anything else base64 of the packed ones.
        kind: ``object`` of each entry.
        field: what holds the vector.
    """
    pieces: list[bytes] = []
    for index, row in enumerate(rows):
        value = row if form.encoding == "float" else b64encode(form.pack(row)).decode("ascii")
        pieces.append(encode({"object": kind, "index": index, field: value}))
    return b"[" + b",".join(pieces) + b"]"


def _blocks(vectors: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rows = max(1, _BLOCK_BYTES // max(1, vectors.shape[1] * 4))
    for start in range(0, len(vectors), rows):
        yield vectors[start : start + rows]


def packed_vectors(vectors: NDArray[np.float32]) -> bytes:
    """Serialize [n, dim] as n fields of number 1, each a message whose field 1 holds the packed floats.

    That is a message with ``repeated Embedding embeddings = 1`` and ``repeated float values = 1`` in it, to
    be parsed in one go: building it from Python floats takes some thirty times as long.
    """
    size = vectors.shape[1] * 4
    values = _field_1(size) if size else b""
    head = _field_1(len(values) + size) + values
    if len(vectors) == 1:  # as most are: the rest takes longer for one
        return head + np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    header = np.frombuffer(head, dtype=np.uint8)
    message = np.empty((len(vectors), len(header) + size), dtype=np.uint8)
    message[:, : len(header)] = header
    message[:, len(header) :] = np.ascontiguousarray(vectors, dtype="<f4").view(np.uint8)
    return message.tobytes()


def packed_floats(vector: NDArray[np.float32]) -> bytes:
    """Serialize one vector as a message with ``repeated float values = 1``."""
    return _field_1(vector.size * 4) + np.ascontiguousarray(vector, dtype="<f4").tobytes()


def _field_1(length: int) -> bytes:
    """Return the tag of field 1, wire type 2 (length-delimited), and the length as a varint."""
    encoded = bytearray(b"\x0a")
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
