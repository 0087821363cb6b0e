"""Token ids in, sentence vectors or logits out: the head of a text encoder around its tensor model.

Rows arrive unpadded, one after another. The encoder pads them on the right to the longest row of the batch,
feeds the inputs that the graph really has, and pools the hidden states over each row's own tokens. Which rows
share a batch is the caller's business; ``TextEncoder.padding`` says what is computed for padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.runtimes import dense
from headrace.runtimes.base import (
    InvalidInputError,
    ModelError,
    Padding,
    Run,
    TensorModel,
    TensorSpec,
    TextSpec,
    padding_of,
)
from headrace.runtimes.datatypes import NUMPY_TYPES
from headrace.runtimes.dense import Dense
from headrace.runtimes.pooling import SPLADES, Rows, parts, pool

TOKEN_IDS: Final = "token_ids"
LENGTHS: Final = "lengths"
TYPE_IDS: Final = "type_ids"
EMBEDDING: Final = "embedding"
TOKEN_EMBEDDINGS: Final = "token_embeddings"
LOGITS: Final = "logits"

_GRAPH_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_FLOATS: Final = ("FP32", "FP16", "BF16", "FP64")


class TextEncoder:
    """A :class:`~headrace.runtimes.base.TensorModel` addressed by token ids.

    Inputs: ``token_ids`` INT32 [total] (the ids of all rows, one row after another), ``lengths`` INT32
    [rows] (tokens of each row, each at least 1) and, where the graph has token types, ``type_ids`` INT32
    [total] (UINT8 is accepted too; optional, 0 when left out).

    Outputs of the ``embed`` head: ``embedding`` FP32 [rows, dim], pooled and not normalised, and, when the
    graph gives hidden states, ``token_embeddings`` FP32 [total, dim], rows in order without padding.
    With pooling ``splade`` the graph's logits [rows, width, vocabulary] become one weight for each token of
    the vocabulary, ``embedding`` FP32 [rows, vocabulary], most of them 0.
    Output of the ``classify`` head: ``logits`` FP32 [rows, labels].
    """

    def __init__(self, model: TensorModel, text: TextSpec) -> None:
        """Wrap ``model``.

        Raises:
            ModelError: the graph's inputs or outputs are not those of a text encoder.
        """
        self._model = model
        self._text = text
        self._graph_inputs = _checked_inputs(model.inputs)
        self._rank3 = False
        self._poolings: tuple[str, ...] = ()
        self._dense: tuple[Dense, ...] = ()
        if text.head == "classify":
            self._source = _logits_output(model.outputs)
        elif text.head == "embed":
            self._poolings = parts(text.pooling)
            splade = text.pooling in SPLADES
            self._source, self._rank3 = (
                (_token_logits(model.outputs), True) if splade else _hidden_output(model.outputs)
            )
            if self._rank3:  # a graph that pools has everything behind the pooling as well
                self._dense = dense.load(text.dense, self._pooled_width)
        else:
            msg = f"unknown head '{text.head}'; expected embed or classify"
            raise ModelError(msg)
        self._fixed_length = max(self._graph_inputs["input_ids"].shape[-1], 0)
        self._output_names = (
            (LOGITS,)
            if text.head == "classify"
            else (EMBEDDING, TOKEN_EMBEDDINGS)
            if self._rank3 and text.pooling not in SPLADES
            else (EMBEDDING,)
        )

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """``token_ids``, ``lengths`` and, where the graph has token types, ``type_ids``."""
        specs = [TensorSpec(TOKEN_IDS, "INT32", (-1,)), TensorSpec(LENGTHS, "INT32", (-1,))]
        if "token_type_ids" in self._graph_inputs:
            specs.append(TensorSpec(TYPE_IDS, "INT32", (-1,)))
        return specs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The outputs of the head."""
        own = self._source.shape[-1]
        width = len(self._dense[-1].weight) if self._dense else self._pooled_width
        return [
            TensorSpec(name, "FP32", (-1, width if name == EMBEDDING else own)) for name in self._output_names
        ]

    @property
    def _pooled_width(self) -> int:
        """Values of a pooled vector; -1 when the graph does not say."""
        own = self._source.shape[-1]
        return own * len(self._poolings) if self._rank3 and own > 0 else own

    @property
    def platform(self) -> str:
        """What executes the graph."""
        return self._model.platform

    @property
    def padding(self) -> Padding:
        """What is computed for the padding of a batch."""
        return padding_of(self._model)

    def execute(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Run
    ) -> dict[str, NDArray[Any]]:
        """Encode one batch of rows; see the class for shapes.

        Raises:
            InvalidInputError: the arrays do not fit together, an id is outside the vocabulary, or a row is
                longer than the model can take.
            RunCancelledError: the run was cancelled.
            ModelError: the model failed, or gave something else than its specification says.
        """
        names = tuple(outputs) or self._output_names
        for name in names:
            if name not in self._output_names:
                msg = f"unknown output '{name}'; expected one of {', '.join(self._output_names)}"
                raise InvalidInputError(msg)
        batch = _Batch.of(inputs, self._fixed_length)
        try:
            result = self._model.execute(self._feed(batch), (self._source.name,), run)
        except InvalidInputError as error:
            msg = (
                f"the model refused rows of up to {batch.width} tokens with ids "
                f"{batch.ids.min()} to {batch.ids.max()}: {error}"
            )
            raise InvalidInputError(msg) from error
        values = result[self._source.name]
        if len(values) != batch.rows:
            msg = f"output '{self._source.name}' has {len(values)} rows for a batch of {batch.rows}"
            raise ModelError(msg)
        if values.dtype != np.float32:
            values = values.astype(np.float32)
        if not self._rank3:
            return dict.fromkeys(names, values)
        made: dict[str, NDArray[Any]] = {}
        for name in names:
            made[name] = self._pool(values, batch) if name == EMBEDDING else batch.unpad(values)
        return made

    def close(self) -> None:
        """Close the wrapped model."""
        self._model.close()

    def _feed(self, batch: _Batch) -> dict[str, NDArray[Any]]:
        """Pad the batch into the inputs that the graph has, in the dtypes it declares."""
        feed: dict[str, NDArray[Any]] = {}
        for name, spec in self._graph_inputs.items():
            dtype = NUMPY_TYPES[spec.datatype]
            if name == "input_ids":
                feed[name] = batch.pad(batch.ids, self._text.pad_id, dtype)
            elif name == "attention_mask":
                feed[name] = batch.mask.astype(dtype)
            elif name == "token_type_ids":
                feed[name] = (
                    np.zeros(batch.shape, dtype) if batch.types is None else batch.pad(batch.types, 0, dtype)
                )
            else:
                padding = self._text.padding_position
                counted = batch.pad(batch.ids, self._text.pad_id, dtype) != padding
                feed[name] = (np.cumsum(counted, axis=1) * counted + padding).astype(dtype)
        return feed

    def _pool(self, hidden: NDArray[Any], batch: _Batch) -> NDArray[Any]:
        """Reduce hidden states [rows, width, dim] to one vector a row."""
        vectors = pool(hidden, Rows(batch.lengths, batch.mask), self._poolings)
        for layer in self._dense:
            vectors = layer(vectors)
        return vectors


class _Batch:
    """The rows of one batch: flat ids, lengths, and how they lie in a padded matrix."""

    def __init__(
        self, ids: NDArray[Any], lengths: NDArray[Any], types: NDArray[Any] | None, width: int
    ) -> None:
        """Describe rows that were checked to fit together."""
        self.ids = ids
        self.lengths = lengths
        self.types = types
        self.rows = len(lengths)
        self.width = width
        self.shape = (self.rows, width)
        self.full = len(ids) == self.rows * width
        self.mask: NDArray[np.bool_] = np.arange(width) < lengths[:, None]

    @classmethod
    def of(cls, inputs: Mapping[str, NDArray[Any]], fixed_length: int) -> _Batch:
        """Check the arrays of a batch; ``fixed_length`` is the only row length of the graph, or 0."""
        missing = [name for name in (TOKEN_IDS, LENGTHS) if name not in inputs]
        if missing:
            msg = f"missing input '{missing[0]}'"
            raise InvalidInputError(msg)
        ids, lengths, types = inputs[TOKEN_IDS], inputs[LENGTHS], inputs.get(TYPE_IDS)
        for name, array in inputs.items():
            if name not in (TOKEN_IDS, LENGTHS, TYPE_IDS):
                msg = f"unknown input '{name}'; expected {TOKEN_IDS}, {LENGTHS} and optionally {TYPE_IDS}"
                raise InvalidInputError(msg)
            if array.dtype.kind not in "iu" or array.ndim != 1:
                msg = f"input '{name}' must be a vector of integers, not {array.dtype} of rank {array.ndim}"
                raise InvalidInputError(msg)
        if not len(lengths) or lengths.min() < 1:
            msg = "every row needs at least one token, and a batch at least one row"
            raise InvalidInputError(msg)
        if int(lengths.sum()) != len(ids) or (types is not None and len(types) != len(ids)):
            msg = f"lengths add up to {int(lengths.sum())} tokens, but {len(ids)} token ids"
            msg += "" if types is None else f" and {len(types)} type ids"
            raise InvalidInputError(msg + " were given")
        longest = int(lengths.max())
        if fixed_length and longest > fixed_length:
            msg = f"a row of {longest} tokens is longer than the graph's fixed length of {fixed_length}"
            raise InvalidInputError(msg)
        return cls(ids, lengths, types, fixed_length or longest)

    def pad(self, flat: NDArray[Any], fill: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Lay [total] values out as [rows, width]."""
        if self.full:
            return flat.astype(dtype).reshape(self.shape)
        padded = np.full(self.shape, fill, dtype)
        padded[self.mask] = flat
        return padded

    def unpad(self, padded: NDArray[Any]) -> NDArray[Any]:
        """Take [rows, width, dim] values back to [total, dim]."""
        if self.full:
            return padded.reshape(-1, padded.shape[2])
        flat: NDArray[Any] = padded[self.mask]
        return flat


def _checked_inputs(specs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    """Return the graph's inputs by name.

    Raises:
        ModelError: the graph has no ``input_ids``, or wants something that token ids do not give.
    """
    by_name = {spec.name: spec for spec in specs}
    for name, spec in by_name.items():
        if name not in _GRAPH_INPUTS or spec.datatype not in {"INT64", "INT32"} or len(spec.shape) != 2:
            msg = (
                f"graph input '{name}' ({spec.datatype} {list(spec.shape)}) cannot be made from token ids; "
                f"a text encoder has INT64 or INT32 inputs {', '.join(_GRAPH_INPUTS)} of rank 2"
            )
            raise ModelError(msg)
    if "input_ids" not in by_name:
        msg = f"the graph has no input 'input_ids'; it has {', '.join(by_name) or 'no inputs'}"
        raise ModelError(msg)
    return by_name


def _of_rank(specs: Sequence[TensorSpec], rank: int) -> list[TensorSpec]:
    return [spec for spec in specs if len(spec.shape) == rank and spec.datatype in _FLOATS]


def _hidden_output(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, bool]:
    """Choose what ``embed`` reads: the hidden states (True), or vectors that the graph has pooled itself."""
    hidden, pooled = _of_rank(specs, 3), _of_rank(specs, 2)
    for spec in hidden:
        if spec.name == "last_hidden_state":
            return spec, True
    if hidden:
        return hidden[0], True
    # A BERT pooler's output is no sentence embedding, so it only counts when there is nothing else.
    for spec in pooled:
        if "embedding" in spec.name:
            return spec, False
    if pooled:
        return pooled[0], False
    raise ModelError(_no_output("hidden states [batch, sequence, dim] or pooled vectors [batch, dim]", specs))


def _token_logits(specs: Sequence[TensorSpec]) -> TensorSpec:
    """Choose what ``splade`` reads: logits of the vocabulary at each token."""
    for spec in _of_rank(specs, 3):
        if spec.name == LOGITS:
            return spec
    raise ModelError(_no_output("'logits' [batch, sequence, vocabulary], which pooling splade needs", specs))


def _logits_output(specs: Sequence[TensorSpec]) -> TensorSpec:
    """Choose what ``classify`` reads."""
    matrices = _of_rank(specs, 2)
    for spec in matrices:
        if spec.name == LOGITS:
            return spec
    if len(matrices) == 1:
        return matrices[0]
    raise ModelError(_no_output("'logits', or a single output [batch, labels]", specs))


def _no_output(wanted: str, specs: Sequence[TensorSpec]) -> str:
    present = ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)
    return f"the graph has no output of {wanted}; it has {present or 'no outputs'}"
