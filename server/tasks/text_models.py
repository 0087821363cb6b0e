"""Running text encoders: texts to token ids to one output of the model, with the time it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace.server.errors import InputEmptyError, InputTooLongError, TaskNotSupportedError
from headrace.server.scheduling.work import Part, PartInput
from headrace.server.tasks.batching import USUAL, Queueing, batcher_of, run_in_turns
from headrace.server.tasks.text_encoding import Direction, Text, Tokens

if TYPE_CHECKING:
    from headrace.server.repository.model import Model, TextSettings
    from headrace.server.scheduling.runner import BatchRunner
    from headrace.server.tasks.tokenization import Tokenizing

TextOutput = Literal["embedding", "token_embeddings", "logits"]


@dataclass(slots=True)
class Timings:
    """Where the time of one call went, in nanoseconds.

    Attributes:
        total_ns: from the start of the task until its result.
        tokenization_ns: text to tokens, the wait for a free tokeniser thread included.
        queue_ns: wait for a batch, the mean over the call's inputs.
        inference_ns: run of the batch that an input was in, the mean over the call's inputs.
    """

    total_ns: int = 0
    tokenization_ns: int = 0
    queue_ns: int = 0
    inference_ns: int = 0

    def then(self, later: Timings) -> None:
        """Add what followed in the same call."""
        self.total_ns += later.total_ns
        self.tokenization_ns += later.tokenization_ns
        self.queue_ns += later.queue_ns
        self.inference_ns += later.inference_ns


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

    @property
    def size(self) -> int:
        """Bytes of all outputs together."""
        return sum(map(len, self.data))

    def matrix(self) -> NDArray[np.float32]:
        """Join the outputs into a new array [inputs, width]; all must have the same width."""
        return np.frombuffer(b"".join(self.data), dtype="<f4").reshape(len(self.data), -1)


def text_settings(model: Model, fits: bool, purpose: str) -> TextSettings:
    """Return the settings of a model that takes text and does what is asked of it.

    Args:
        model: the model.
        fits: whether its task is right.
        purpose: what the model would have to be, for the message.

    Raises:
        TaskNotSupportedError: the task is wrong, or the model takes tensors only.
    """
    if fits and model.text is not None:
        return model.text
    reason = f"its task is {model.task.value}" if not fits else "it takes tensors, not text"
    if model.generation is not None:
        reason = "it generates text: use /v1/chat/completions, /v1/completions or GenerationService"
    raise TaskNotSupportedError(
        f"model '{model.name}' is not {purpose}, {reason}", model=model.name, task=model.task.value
    )


def check_token_vectors(model: Model, purpose: str) -> None:
    """Refuse what needs a vector for each token of a text; ``purpose`` is what the model would have to be.

    Raises:
        TaskNotSupportedError: the model gives one vector only: its graph pools, or it weighs a vocabulary.
    """
    if not model.token_vectors:
        raise TaskNotSupportedError(
            f"model '{model.name}' is not {purpose}, it gives no vectors of tokens",
            model=model.name,
            task=model.task.value,
        )


async def run_texts(
    tokenizing: Tokenizing,
    model: Model,
    texts: Sequence[Text],
    output: TextOutput,
    *,
    truncate: bool | None = None,
    direction: Direction = Direction.RIGHT,
    prompt: str = "",
    limit: int | None = None,
    special: bool = True,
    queueing: Queueing = USUAL,
) -> TextRun:
    """Tokenise ``texts`` and run them as the parts of one request.

    ``truncate`` is on unless it is False. ``limit`` stands for the model's longest sequence where it is
    lower; without ``special`` the tokenizer adds no special tokens.

    Raises:
        TaskNotSupportedError: the model does not take text.
        InputEmptyError: there are no texts.
        HeadraceError: what tokenising (see ``Tokenizing.tokenize``) or the batcher raises.
    """
    settings = text_settings(model, fits=True, purpose="a text model")
    if not texts:
        raise InputEmptyError("`inputs` cannot be empty", field="inputs")
    limited = limit is not None and limit < settings.max_tokens
    if limit is not None and limited:
        settings = replace(settings, max_tokens=limit)
    batcher = batcher_of(model)
    counted = model.statistics.texts
    counted.observe_started(len(texts))
    try:
        started = time.monotonic_ns()
        tokens = await tokenizing.tokenize(
            settings, texts,
            truncate=truncate is not False, direction=direction, prompt=prompt, special=special,
        )  # fmt: skip
        run = await _run_tokens(batcher, tokens, output, started, queueing)
    except BaseException as error:
        counted.observe_failed()
        if limited and isinstance(error, InputTooLongError):
            error.metadata["own_limit"] = str(limit)  # not the model's
        raise
    counted.observe_finished(run.token_counts, run.timings)
    return run


async def _run_tokens(
    batcher: BatchRunner, tokens: list[Tokens], output: TextOutput, started: int, queueing: Queueing
) -> TextRun:
    """Run tokenised inputs; ``started`` is when tokenising began, ``time.monotonic_ns``."""
    parts = [_part(entry, output) for entry in tokens]
    timings = Timings(tokenization_ns=time.monotonic_ns() - started)
    results = await run_in_turns(batcher, parts, queueing)
    data = [result[output].data for result in results]
    for turn in {part.pending for part in parts}:
        if turn is not None:
            timings.queue_ns += turn.all_queue_ns
            timings.inference_ns += turn.all_infer_ns
    timings.queue_ns //= len(parts)
    timings.inference_ns //= len(parts)
    timings.total_ns = time.monotonic_ns() - started
    return TextRun(data, tokens, timings)


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
