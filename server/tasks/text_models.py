"""Running text encoders: texts to token ids to one output of the model, with the time it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import TaskNotSupportedError
from headrace.server.scheduling.work import Part, PartInput
from headrace.server.tasks.text_encoding import Direction, Text, Tokens

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.scheduling.work import PartResult
    from headrace.server.tasks.tokenization import Tokenizing

TextOutput = Literal["embedding", "token_embeddings", "logits"]


@dataclass(slots=True)
class Timings:
    """Where the time of one call went, in nanoseconds.

    Attributes:
        total_ns: from the start of the task until its result.
        tokenization_ns: text to tokens, the wait for a free tokeniser thread included.
        queue_ns: the longest wait of one of the call's parts for its batch.
        inference_ns: from the first batch that took a part of the call until the last result.
    """

    total_ns: int = 0
    tokenization_ns: int = 0
    queue_ns: int = 0
    inference_ns: int = 0


@dataclass(slots=True)
class TextRun:
    """What a text encoder answered: one raw float32 output, and the token count, for each input in order."""

    data: list[bytes]
    tokens: list[Tokens]
    timings: Timings

    @property
    def token_counts(self) -> list[int]:
        """Tokens given to the model for each input, special tokens included."""
        return [tokens.count for tokens in self.tokens]

    def matrix(self) -> NDArray[np.float32]:
        """Join the outputs: [inputs, width]; all rows must have the same width. Shares no memory with them."""
        return np.frombuffer(b"".join(self.data), dtype="<f4").reshape(len(self.data), -1)


async def run_texts(
    tokenizing: Tokenizing,
    model: Model,
    texts: Sequence[Text],
    output: TextOutput,
    *,
    truncate: bool | None = None,
    direction: Direction = Direction.RIGHT,
    prompt: str = "",
) -> TextRun:
    """Tokenise ``texts`` and run them as the parts of one request; ``truncate`` is on unless it is False.

    Raises:
        TaskNotSupportedError: the model does not take text.
        HeadraceError: what tokenising (see ``Tokenizing.tokenize``) or the batcher raises.
    """
    settings = model.text
    if settings is None:
        msg = f"model '{model.name}' does not take text"
        raise TaskNotSupportedError(msg, model=model.name, task=model.task.value)
    started = time.monotonic_ns()
    tokens = await tokenizing.tokenize(
        settings, texts, truncate=truncate is not False, direction=direction, prompt=prompt
    )
    tokenized = time.monotonic_ns()
    parts = [_part(entry, output) for entry in tokens]
    results: list[PartResult] = await model.batcher.run(parts)
    timings = part_timings(parts, started)
    timings.tokenization_ns = tokenized - started
    return TextRun([result[output].data for result in results], tokens, timings)


def _part(tokens: Tokens, output: TextOutput) -> Part:
    count = tokens.count
    inputs = [
        PartInput("token_ids", "INT32", (count,), tokens.ids),
        PartInput("lengths", "INT32", (1,), count.to_bytes(4, "little")),
    ]
    if tokens.type_ids is not None:
        inputs.append(PartInput("type_ids", "INT32", (count,), tokens.type_ids))
    outputs = (output,)
    return Part(inputs, outputs=outputs, rows=1, tokens=count, key=(outputs, tokens.type_ids is not None))


def part_timings(parts: Sequence[Part], started_ns: int) -> Timings:
    """Read the times of parts that have just been answered; ``started_ns`` is when the call began."""
    now = time.monotonic_ns()
    return Timings(
        total_ns=now - started_ns,
        queue_ns=max(0, *(part.dispatched_ns - part.enqueued_ns for part in parts)),
        inference_ns=max(0, now - min(part.dispatched_ns for part in parts)),
    )


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Map logits to (0, 1), without overflow for large negative ones."""
    positive = np.exp(-np.abs(logits))
    result: NDArray[np.float32] = (np.where(logits >= 0, 1.0, positive) / (1.0 + positive)).astype(np.float32)
    return result


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map each row of logits to probabilities that sum to 1."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float32] = exponents / exponents.sum(axis=-1, keepdims=True)
    return result
