"""Block-wise quantisation of a weight matrix, as ONNX Runtime's ``MatMulNBits`` stores it.

A block is 32 weights of one column with a scale and an integer zero point of their own:
weight = scale * (code - zero point), code in [0, 2^bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

BLOCK: Final = 32

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Blocks:
    """A quantised matrix [rows, columns]; rows are padded with zeros to whole blocks.

    Attributes:
        rows: of the matrix, not padded.
        bits: of a code, 4 or 8.
        codes: uint8 [columns, blocks, BLOCK].
        scales: float32 [columns, blocks].
        zeros: uint8 [columns, blocks].
    """

    rows: int
    bits: int
    codes: npt.NDArray[np.uint8]
    scales: Floats
    zeros: npt.NDArray[np.uint8]

    def values(self) -> Floats:
        """The matrix that the codes stand for, [rows, columns]."""
        codes = self.codes.astype(np.float32) - self.zeros[..., None]
        values: Floats = (codes * self.scales[..., None]).reshape(len(codes), -1)[:, : self.rows].T
        return values

    def packed(self) -> npt.NDArray[np.uint8]:
        """As stored: uint8 [columns, blocks, BLOCK * bits / 8]; the first of two in the low half."""
        return _pack(self.codes, self.bits)

    def packed_zeros(self) -> npt.NDArray[np.uint8]:
        """The zero points as stored, uint8 [columns * bytes]; each column begins at a byte."""
        return _pack(self.zeros, self.bits).reshape(-1)


def nearest(weights: Floats, bits: int) -> Blocks:
    """Round [rows, columns] to the nearest codes; every block's range reaches to zero."""
    blocks = _split(weights)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    top = 2**bits - 1
    scales = np.where(high > low, (high - low) / top, 1).astype(np.float32)
    zeros = np.clip(np.rint(-low / scales), 0, top)
    codes = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, top)
    return Blocks(len(weights), bits, codes.astype(np.uint8), scales, zeros.astype(np.uint8))


def shifted(weights: Floats, bits: int) -> tuple[Blocks, Floats]:
    """The same with a shift for each block: weight = scale * (code - zero point) + shift.

    Weights that were quantised before, to a scale and a minimum, are met exactly: the scale is found again,
    and the shift is what their minimum lacks to a whole multiple of it.

    Returns:
        The blocks, and the shifts [blocks, columns].
    """
    blocks = _split(weights)
    low, high = blocks.min(-1), blocks.max(-1)
    top = 2**bits - 1
    scales = np.where(high > low, (high - low) / top, 1).astype(np.float32)
    codes = np.rint((blocks - low[..., None]) / scales[..., None])
    zeros = np.clip(np.rint(-low / scales), 0, top)
    shifts: Floats = (low + zeros * scales).T.astype(np.float32)
    return Blocks(len(weights), bits, codes.astype(np.uint8), scales, zeros.astype(np.uint8)), shifts


def _split(weights: Floats) -> Floats:
    """[rows, columns] → [columns, blocks, BLOCK]."""
    rows, columns = weights.shape
    padded = np.zeros((columns, -(-rows // BLOCK) * BLOCK), np.float32)
    padded[:, :rows] = weights.T
    return padded.reshape(columns, -1, BLOCK)


def _pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Two 4-bit codes of the last axis in a byte; 8-bit codes as they are."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., ::2] | (codes[..., 1::2] << np.uint8(4))
