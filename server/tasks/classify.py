"""Texts to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InvalidArgumentError
from headrace.server.repository.model import Task
from headrace.server.tasks.batching import USUAL, Queueing
from headrace.server.tasks.offload import call_by_size
from headrace.server.tasks.text_encoding import Direction, Text
from headrace.server.tasks.text_models import Timings, run_texts, sigmoid, softmax, text_settings

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.tasks.text_models import TextRun
    from headrace.server.tasks.tokenization import Tokenizing


@dataclass(frozen=True, slots=True)
class ClassifyOptions:
    """How to classify.

    Attributes:
        raw_scores: give the model's logits instead of probabilities.
        top_k: only this many best labels of every input, at least 1; None for all.
        truncate: cut inputs that are too long; None for yes.
        direction: which end is cut.
        limit: at most this many tokens of an input, at least 1; None for as many as the model takes.
        special: let the tokenizer add its special tokens.
        queueing: how its parts wait for their batches.
    """

    raw_scores: bool = False
    top_k: int | None = None
    truncate: bool | None = None
    direction: Direction = Direction.RIGHT
    limit: int | None = None
    special: bool = True
    queueing: Queueing = USUAL


@dataclass(slots=True)
class Classifications:
    """Labels of every input by descending score.

    Attributes:
        order: [inputs, labels] position of each label in the model's output.
        scores: float32 [inputs, labels] in the same order.
        labels: names by position in the model's output.
    """

    order: NDArray[np.intp]
    scores: NDArray[np.float32]
    labels: tuple[str, ...]
    token_counts: list[int]
    timings: Timings

    def by_class(self) -> NDArray[np.float32]:
        """Return the scores, [inputs, labels], in the order of the model's output; none may be left out."""
        rows = np.empty_like(self.scores)
        np.put_along_axis(rows, self.order, self.scores, axis=1)
        return rows

    def named(self, row: int) -> list[tuple[str, np.float32]]:
        """Return (label, score) of one input, best first."""
        return [
            (self.labels[index], score)
            for index, score in zip(self.order[row].tolist(), self.scores[row], strict=True)
        ]


async def classify(
    tokenizing: Tokenizing, model: Model, inputs: Sequence[Text], options: ClassifyOptions
) -> Classifications:
    """Classify ``inputs`` (at least one) as the parts of one request.

    Scores are independent probabilities (sigmoid) when the model is multi-label or has one label only, else
    probabilities that sum to 1 (softmax); with ``raw_scores`` they are the logits. Equal scores keep the
    order of the model's output.

    Raises:
        TaskNotSupportedError: the model does not classify.
        InvalidArgumentError: ``top_k`` below 1, or an input that cannot be tokenised.
        HeadraceError: what the batcher raises.
    """
    settings = text_settings(model, model.task in (Task.CLASSIFY, Task.RERANK), "a text classifier")
    if options.top_k is not None and options.top_k < 1:
        raise InvalidArgumentError(
            f"`top_k` is {options.top_k}, expected at least 1", field="top_k", value=str(options.top_k)
        )
    run = await run_texts(
        tokenizing, model, inputs, "logits",
        truncate=options.truncate, direction=options.direction, limit=options.limit, special=options.special,
        queueing=options.queueing,
    )  # fmt: skip
    order, scores = await call_by_size(
        tokenizing, run.size, _score, run,
        multi_label=settings.multi_label, raw=options.raw_scores, top_k=options.top_k,
    )  # fmt: skip
    labels = label_names(settings.labels, max(len(data) // 4 for data in run.data))
    return Classifications(order, scores, labels, run.token_counts, run.timings)


def label_names(labels: tuple[str, ...], width: int) -> tuple[str, ...]:
    """Return a name for each of ``width`` scores: a model that names none has ``LABEL_0`` and so on."""
    return labels + tuple(f"LABEL_{index}" for index in range(len(labels), width))


def _score(
    run: TextRun, *, multi_label: bool, raw: bool, top_k: int | None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the order of the labels of each input and their scores in that order."""
    scores = run.matrix()
    if not raw:
        scores = sigmoid(scores) if multi_label or scores.shape[1] == 1 else softmax(scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(scores, order, axis=1)
