"""Runs of a decoder graph on the rows of a KV cache, without a copy in or out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.onnx.decoder_graph import IDS, LENGTHS, LOGITS, POSITIONS, TOTAL, WANTED, DecoderGraph
from headrace.runtimes.onnx.errors import run_error
from headrace.runtimes.onnx.mixed_graph import APART, FLAT, PARTS, PROMPTS

_FATAL_ONLY: Final = 4
_INFER: Final = -1


class Part(NamedTuple):
    """Tokens of neighbouring rows.

    Attributes:
        row: the first of them.
        ids: [rows, tokens], a shorter row padded behind; what is written for that is written over later.
        lengths: [rows], tokens that each row holds after the run, padding left out, minus 1.
        total: tokens of the longest, padding included.
        wanted: [count], which of all ``ids`` get logits, in the order that these are kept in.
    """

    row: int
    ids: NDArray[np.int64]
    lengths: NDArray[np.int32]
    total: int
    wanted: NDArray[np.int64]


def decodes(tokens: Sequence[int], starts: Sequence[int], wanted: Sequence[int]) -> Part:
    """One token for each of the first rows, after the ``starts`` tokens that the row has.

    ``wanted`` are the rows whose logits are kept.
    """
    ids = np.array(tokens, np.int64)[:, None]
    return Part(0, ids, np.array(starts, np.int32), max(starts) + 1, np.array(wanted, np.int64))


def prompts(row: int, tokens: Sequence[Sequence[int]], start: int, logits: Sequence[int]) -> Part:
    """``tokens`` of neighbouring rows, from ``row`` on, after the ``start`` that each has.

    The operator for attention takes many tokens behind a past for one row only: of several rows, ``start``
    is 0. Of each row the last ``logits`` logits are kept.
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
    return Part(row, ids, ends, start + width, np.array(wanted, np.int64))


class _Binding:
    """A session's inputs and outputs. What is fed in the shape of the last time goes where that lay."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._fed: dict[str, NDArray[Any]] = {}
        self._logits = (0, 0)

    def bind_rows(self, past: str, present: str, view: NDArray[Any]) -> None:
        """Read and write KV in place."""
        kind, address = view.dtype.type, view.ctypes.data
        self._binding.bind_input(past, "cpu", 0, kind, view.shape, address)
        self._binding.bind_output(present, "cpu", 0, kind, view.shape, address)

    def feed(self, name: str, array: NDArray[Any]) -> None:
        """Read ``array``, which is kept and may be written to by later calls."""
        known = self._fed.get(name)
        if known is not None and known.shape == array.shape:
            known[...] = array
            return
        self._fed[name] = array
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self, logits: NDArray[np.float32], options: ort.RunOptions) -> None:
        """Run, and write ``logits``; raises what ONNX Runtime raises."""
        place = (logits.ctypes.data, len(logits))
        if place != self._logits:
            self._binding.bind_output(LOGITS, "cpu", 0, np.float32, logits.shape, place[0])
            self._logits = place
        self._session.run_with_iobinding(self._binding, options)


class Runs:
    """Binds rows, runs, and collects the logits of one step after another."""

    def __init__(
        self,
        session: ort.InferenceSession,
        graph: DecoderGraph,
        rows: NDArray[Any],
        mixed: ort.InferenceSession | None = None,
    ) -> None:
        """Run ``session`` on ``rows``, [planes, slots, heads, row tokens, size], one plane for each cache.

        ``mixed`` has the form of the graph that :mod:`headrace.runtimes.onnx.mixed_graph` makes.
        """
        self.rows = rows
        self._session = session
        self._graph = graph
        # A binding names the memory of all planes of some rows; making one takes as long as a small layer.
        self._bindings: dict[tuple[int, int], _Binding] = {}
        # There are too many pairs of rows to keep a binding for each: one is changed where it has to be.
        self._mixed = None if mixed is None else _Binding(mixed)
        self._bound: dict[str, tuple[int, int]] = {}
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

    def run(self, part: Part) -> None:
        """Compute ``part``.

        Raises:
            ModelError: ONNX Runtime failed.
        """
        rows = len(part.ids)
        binding = self._bindings.get((part.row, rows))
        if binding is None:
            binding = self._bindings[part.row, rows] = _Binding(self._session)
            self._bind_rows(binding, part.row, rows)
        feed: dict[str, NDArray[Any]] = {IDS: part.ids, **_lengths(part)}
        if self._graph.has_positions:
            feed[POSITIONS] = _positions(part)
        self._run(binding, feed, part.wanted)

    def run_beside(self, first: Part, second: Part) -> None:
        """Compute both in one run of ``mixed``: ``first`` are decodes, the logits of which come first.

        Rows of ``second`` may be among those of ``first``, whose tokens must lie behind its own then.

        Raises:
            ModelError: ONNX Runtime failed.
        """
        assert self._mixed is not None  # noqa: S101 - the caller knows what it has loaded
        binding = self._mixed
        for prefix, part in (("", first), (PROMPTS, second)):
            span = (part.row, len(part.ids))
            if self._bound.get(prefix) != span:
                self._bind_rows(binding, *span, prefix)
                self._bound[prefix] = span
        feed: dict[str, NDArray[Any]] = {
            IDS: _flat(first.ids, second.ids),
            **_lengths(first),
            **{PROMPTS + name: array for name, array in _lengths(second).items()},
            PARTS: np.array([first.ids.size, second.ids.size], np.int64),
            APART: np.array([*second.ids.shape, _INFER], np.int64),
            FLAT: np.array([second.ids.size, 1, _INFER], np.int64),
        }
        if self._graph.has_positions:
            feed[POSITIONS] = _flat(_positions(first), _positions(second))
        wanted = np.concatenate((first.wanted, second.wanted + first.ids.size))
        self._run(binding, feed, wanted)

    def _run(self, binding: _Binding, feed: dict[str, NDArray[Any]], wanted: NDArray[np.int64]) -> None:
        feed[WANTED] = wanted
        for name, array in feed.items():
            binding.feed(name, array)
        logits = self._logits[self._count : self._count + len(wanted)]
        self._count += len(wanted)
        try:
            binding.run(logits, self._options)
        except Exception as error:
            raise run_error(error) from error

    def _bind_rows(self, binding: _Binding, row: int, count: int, prefix: str = "") -> None:
        """Bind the KV of ``count`` rows from ``row`` on, in and out in place."""
        for (past, present), plane in zip(self._graph.caches, self.rows, strict=True):
            binding.bind_rows(prefix + past, prefix + present, plane[row : row + count])


def _lengths(part: Part) -> dict[str, NDArray[Any]]:
    return {LENGTHS: part.lengths, TOTAL: np.array([part.total], np.int32)}


def _positions(part: Part) -> NDArray[np.int64]:
    """Positions of ``part.ids``: rows that begin are padded behind, all others have no padding."""
    sequence = part.ids.shape[1]
    starts = np.maximum(part.lengths - (sequence - 1), 0)
    positions: NDArray[np.int64] = (starts[:, None] + np.arange(sequence)).astype(np.int64)
    return positions


def _flat(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all of both, [tokens, 1]."""
    return np.concatenate((first.ravel(), second.ravel()))[:, None]
