"""The same inputs for everybody: what the bare loops run and what the requests carry."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks import mix

SEED: Final = 20261121
BLOCKS: Final = 16
"""Blocks of 32 texts; 512 texts are enough that sorted neighbours have the same length."""

IMAGES: Final = 16
_WORD: Final = re.compile(r"[a-z]{3,}\Z")


class Feed(NamedTuple):
    """One batch: how many average items it is worth, and its items in the form that ``Workload.run`` wants.

    A text counts for its tokens ÷ the mean of all texts: a span of a few seconds never sees exactly the mix,
    and without the weights it would measure which texts it saw.
    """

    weight: float
    data: Any


class Workload(Protocol):
    """A model and its inputs."""

    @property
    def model_file(self) -> Path:
        """The ONNX file."""

    def weights(self, items: int) -> list[float]:
        """Return what each request of ``items`` items is worth, in average items."""

    def feeds(self, batch: int, group: int) -> list[Feed]:
        """Cut the items into batches of at most ``batch``.

        ``group`` items at a time are put together as well as possible and in their order, as somebody who
        gets requests one after another has to; 0 puts all items together.
        """

    def run(self, session: ort.InferenceSession, feed: Feed) -> NDArray[Any]:
        """Do all that an offline program does for a batch; returns [items, values]."""


class Texts:
    """Seeded texts for a sentence encoder; tokenised here, padded and pooled in :meth:`run`."""

    def __init__(self, folder: Path, counts: Sequence[int]) -> None:
        """Write texts of ``counts`` tokens for the tokenizer of the model in ``folder``.

        Raises:
            ValueError: a word of the vocabulary is not one token.
        """
        from tokenizers import Tokenizer

        self.model_file = folder / "1" / "model.onnx"
        vocabulary = (folder / "1" / "vocab.txt").read_text(encoding="utf-8").split("\n")
        words = [word for word in vocabulary if _WORD.match(word)]
        self.texts = mix.texts(counts, words, SEED)
        tokenizer = Tokenizer.from_file(str(folder / "1" / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        encoded = tokenizer.encode_batch(self.texts)
        self.ids = [np.asarray(entry.ids, np.int64) for entry in encoded]
        if [len(ids) for ids in self.ids] != list(counts):
            raise ValueError("a word of the vocabulary is not one token; the mix would have other lengths")
        self._mean = sum(counts) / len(counts)

    def weights(self, items: int) -> list[float]:
        """Return the tokens of each request in average texts."""
        tokens = [len(ids) / self._mean for ids in self.ids]
        return [sum(tokens[start : start + items]) for start in range(0, len(tokens), items)]

    def feeds(self, batch: int, group: int) -> list[Feed]:
        """Cut the texts into batches, sorted by length within a group."""
        if group:
            return [
                feed
                for start in range(0, len(self.ids), group)
                for feed in self._batches(self.ids[start : start + group], batch)
            ]
        feeds = self._batches(self.ids, batch)
        return [feeds[index] for index in mix.spread(len(feeds))]

    def run(self, session: ort.InferenceSession, feed: Feed) -> NDArray[Any]:
        """Pad, encode, average over the tokens, scale to unit length; float32 [items, 384]."""
        rows: Sequence[NDArray[np.int64]] = feed.data
        width = max(map(len, rows))
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros_like(ids)
        weights = np.zeros((len(rows), 1, width), np.float32)
        for row, values in enumerate(rows):
            ids[row, : len(values)] = values
            mask[row, : len(values)] = 1
            weights[row, 0, : len(values)] = 1.0 / len(values)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = session.run(["last_hidden_state"], inputs)[0]
        pooled = np.matmul(weights, hidden)[:, 0]
        vectors: NDArray[Any] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors

    def _batches(self, rows: Sequence[NDArray[np.int64]], batch: int) -> list[Feed]:
        ordered = sorted(rows, key=len)
        chunks = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
        return [Feed(sum(map(len, chunk)) / self._mean, chunk) for chunk in chunks]


def mixed_texts(folder: Path) -> Texts:
    """Return the mix of queries and passages."""
    return Texts(folder, mix.lengths(BLOCKS, SEED))


def short_texts(folder: Path) -> Texts:
    """Return queries only, as many texts."""
    return Texts(folder, mix.queries(BLOCKS * mix.BLOCK, SEED))


class Images:
    """Random images for a classifier; their pixels do not matter to its speed."""

    def __init__(self, folder: Path) -> None:
        """Draw the images."""
        self.model_file = folder / "1" / "model.onnx"
        source = np.random.default_rng(SEED)
        self.pixels = source.standard_normal((IMAGES, 3, 224, 224), np.float32)

    def weights(self, items: int) -> list[float]:
        """Images are all alike."""
        return [float(items)] * (IMAGES // items)

    def feeds(self, batch: int, group: int) -> list[Feed]:
        """Cut the images into batches that lie in memory as the graph wants them."""
        batch = min(batch, group or batch)
        return [Feed(len(rows), rows) for rows in np.split(self.pixels, range(batch, IMAGES, batch))]

    def run(self, session: ort.InferenceSession, feed: Feed) -> NDArray[Any]:
        """Classify; float32 [items, 1000]."""
        logits: NDArray[Any] = session.run(["logits"], {"pixel_values": feed.data})[0]
        return logits


class Addsub:
    """Rows of 16 integers."""

    def __init__(self, folder: Path) -> None:
        """Draw the rows."""
        self.model_file = folder / "1" / "model.onnx"
        source = np.random.default_rng(SEED)
        self.left = source.integers(-1000, 1000, (64, 16), np.int32)
        self.right = source.integers(-1000, 1000, (64, 16), np.int32)

    def weights(self, items: int) -> list[float]:
        """Rows are all alike."""
        return [float(items)] * (len(self.left) // items)

    def feeds(self, batch: int, group: int) -> list[Feed]:
        """Cut the rows into batches."""
        batch = min(batch, group or batch)
        starts = range(0, len(self.left), batch)
        pairs = [(self.left[start : start + batch], self.right[start : start + batch]) for start in starts]
        return [Feed(len(left), (left, right)) for left, right in pairs]

    def run(self, session: ort.InferenceSession, feed: Feed) -> NDArray[Any]:
        """Add and subtract; int32 [items, 32], the sums before the differences."""
        left, right = feed.data
        sums, differences = session.run(["OUTPUT0", "OUTPUT1"], {"INPUT0": left, "INPUT1": right})
        return np.concatenate([sums, differences], axis=1)


WORKLOADS: Final[Mapping[str, Callable[[Path], Texts | Images | Addsub]]] = MappingProxyType(
    {"texts": mixed_texts, "queries": short_texts, "images": Images, "addsub": Addsub}
)
