"""Requests to measure a model with: seeded, of the model's own kind, the same for every candidate."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np

from headrace.runtimes.datatypes import BYTES, NUMPY_TYPES
from headrace.server.scheduling.work import Part, PartInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headrace.server.repository.definition import CompletedModel
    from headrace.server.repository.model import ModelTensor
    from headrace.server.repository.text import TextModel

SEED: Final = 20261122
GROUPS: Final = 4
"""Groups of 16 texts; each has the same share of queries and passages, so that any run of texts is fair."""
QUERIES: Final = (11, 5, 15)
"""In every group: how many, of how many tokens at least and at most. What a search box sends."""
PASSAGES: Final = (5, 60, 250)
"""The same for passages: what is indexed."""
VARYING: Final = 64
"""Size of a dimension that a model leaves open."""
TENSORS: Final = 8


class NotTunableError(Exception):
    """A model cannot be measured; the text says why. It is served as it is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request of one part.

    Attributes:
        weight: what it counts, in average requests.
        inputs: its tensors.
        outputs: names of the outputs wanted; empty for all.
        tokens: of a text; 0 for tensors.
        key: parts with equal keys may share a batch.
    """

    weight: float
    inputs: tuple[PartInput, ...]
    outputs: tuple[str, ...] = ()
    tokens: int = 0
    key: Hashable = None

    def part(self) -> Part:
        """Return a new part for the batcher."""
        return Part(self.inputs, outputs=self.outputs, rows=1, tokens=self.tokens, key=self.key)


def text_lengths(most: int) -> list[int]:
    """Draw token counts, at most ``most``: ``QUERIES`` and ``PASSAGES`` in every group, shuffled."""
    source = random.Random(SEED)  # noqa: S311 - the same texts every time is the point
    drawn: list[int] = []
    for _ in range(GROUPS):
        group = [
            source.randint(shortest, longest)
            for count, shortest, longest in (QUERIES, PASSAGES)
            for _ in range(count)
        ]
        source.shuffle(group)
        drawn += [min(count, most) for count in group]
    return drawn


def text_samples(text: TextModel) -> list[Sample]:
    """Make texts of random tokens: which ones does not matter to a model's speed, only how many."""
    counts = text_lengths(text.settings.max_tokens)
    mean = sum(counts) / len(counts)
    source = np.random.default_rng(SEED)
    outputs = ("embedding" if text.spec.head == "embed" else "logits",)
    vocabulary = text.settings.tokenizer.get_vocab_size()
    return [
        Sample(
            count / mean,
            (
                PartInput(
                    "token_ids", "INT32", (count,), source.integers(0, vocabulary, count, np.int32).tobytes()
                ),
                PartInput("lengths", "INT32", (1,), count.to_bytes(4, "little")),
            ),
            outputs,
            count,
            outputs,
        )
        for count in counts
    ]


def tensor_samples(model: CompletedModel) -> list[Sample]:
    """Make random tensors of one row; dimensions that the model leaves open have ``VARYING`` elements.

    Raises:
        NotTunableError: an input is BYTES, of which nobody knows what may be in it.
    """
    source = np.random.default_rng(SEED)
    samples: list[Sample] = []
    for _ in range(TENSORS):
        inputs = tuple(_input(tensor, source, batching=model.max_batch_size > 0) for tensor in model.inputs)
        samples.append(Sample(1.0, inputs, key="tensors"))
    return samples


def _input(tensor: ModelTensor, source: np.random.Generator, *, batching: bool) -> PartInput:
    if tensor.datatype == BYTES:
        raise NotTunableError(f"input '{tensor.name}' is BYTES: its contents cannot be made up")
    given = (1, *tensor.dims) if batching else tensor.dims
    shape = tensor.model_shape([VARYING if size < 0 else size for size in given], batching=batching)
    return PartInput(tensor.name, tensor.datatype, shape, _values(tensor.datatype, shape, source).tobytes())


def _values(datatype: str, shape: tuple[int, ...], source: np.random.Generator) -> NDArray[np.generic]:
    """Draw values that every model takes: floats around 0, and integers that are indices into anything."""
    kind = NUMPY_TYPES[datatype]
    if kind.kind == "f" or kind == np.dtype(ml_dtypes.bfloat16):
        return source.standard_normal(shape, np.float32).astype(kind)
    return source.integers(0, 2, shape).astype(kind)
