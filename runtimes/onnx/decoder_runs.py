"""Runs of a decoder graph on the rows of a KV cache, without a copy in or out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.onnx.decoder_graph import IDS, LENGTHS, LOGITS, POSITIONS, TOTAL, WANTED, DecoderGraph
from headrace.runtimes.onnx.errors import run_error

_FATAL_ONLY: Final = 4


class Runs:
    """Binds rows, runs, and collects the logits of one step after another."""

    def __init__(self, session: ort.InferenceSession, graph: DecoderGraph, rows: NDArray[Any]) -> None:
        """Run ``session`` on ``rows``, [planes, slots, heads, row tokens, size], one plane for each cache."""
        self._session = session
        self._graph = graph
        self._rows = rows
        # A binding names the memory of all planes of some rows; making one takes as long as a small layer.
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._logits = np.empty((0, graph.vocabulary_size), np.float32)
        self._count = 0
        self._options = ort.RunOptions()
        # What goes wrong is in the exception; the log would only say it twice.
        self._options.log_severity_level = _FATAL_ONLY

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits since :meth:`begin`, in the order of the runs: [count, vocabulary]."""
        return self._logits[: self._count]

    def begin(self, count: int) -> None:
        """Begin a step that gives ``count`` rows of logits."""
        if count > len(self._logits):
            self._logits = np.empty((count, self._graph.vocabulary_size), np.float32)
        self._count = 0

    def decode(self, tokens: Sequence[int], starts: Sequence[int], wanted: Sequence[int]) -> None:
        """Compute one token for each of the first rows, after the ``starts`` tokens that the row has.

        ``wanted`` are the rows whose logits are kept, in the order that they are kept in.

        Raises:
            ModelError: ONNX Runtime failed.
        """
        self._run(
            0,
            np.array(tokens, np.int64)[:, None],
            np.array(starts, np.int32),
            max(starts) + 1,
            np.array(wanted, np.int64),
        )

    def prefill(self, row: int, tokens: Sequence[Sequence[int]], start: int, logits: Sequence[int]) -> None:
        """Compute ``tokens`` of neighbouring rows, from ``row`` on, after the ``start`` that each has.

        The operator for attention takes many tokens behind a past for one row only: of several rows,
        ``start`` is 0. They are padded to the longest; what is written behind the end of a shorter one is
        written over later. Of each row the last ``logits`` logits are kept.

        Raises:
            ModelError: ONNX Runtime failed.
        """
        lengths = [len(each) for each in tokens]
        width = max(lengths)
        ids = np.zeros((len(tokens), width), np.int64)
        wanted: list[int] = []
        for index, (each, length, count) in enumerate(zip(tokens, lengths, logits, strict=True)):
            ids[index, :length] = each
            end = index * width + length
            wanted += range(end - count, end)
        ends = np.array(lengths, np.int32) + np.int32(start - 1)
        self._run(row, ids, ends, start + width, np.array(wanted, np.int64))

    def _run(
        self,
        row: int,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int32],
        total: int,
        wanted: NDArray[np.int64],
    ) -> None:
        batch, sequence = ids.shape
        feed: dict[str, NDArray[Any]] = {
            IDS: ids,
            LENGTHS: lengths,
            TOTAL: np.array([total], np.int32),
            WANTED: wanted,
        }
        if self._graph.has_positions:
            # rows that begin are padded behind, all others have no padding
            starts = np.maximum(lengths - (sequence - 1), 0)
            feed[POSITIONS] = (starts[:, None] + np.arange(sequence)).astype(np.int64)
        binding = self._binding(row, batch)
        # The arrays of ``feed`` live until the run is over; the next run of this binding replaces them.
        for name, array in feed.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        logits = self._logits[self._count : self._count + len(wanted)]
        binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._count += len(wanted)
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:
            raise run_error(error) from error

    def _binding(self, row: int, batch: int) -> ort.IOBinding:
        """The binding of ``batch`` rows from ``row`` on, their KV bound in and out in place."""
        binding = self._bindings.get((row, batch))
        if binding is None:
            binding = self._bindings[row, batch] = self._session.io_binding()
            kind = self._graph.dtype.type
            for (past, present), plane in zip(self._graph.caches, self._rows, strict=True):
                view = plane[row : row + batch]
                binding.bind_input(past, "cpu", 0, kind, view.shape, view.ctypes.data)
                binding.bind_output(present, "cpu", 0, kind, view.shape, view.ctypes.data)
        return binding
