"""Bodies and errors of Text Embeddings Inference, and of the paths that other systems share with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.text_inputs import Inputs, PairInputs, direction
from headrace.server.errors import (
    BatchTooLargeError,
    ExecutionFailedError,
    HeadraceError,
    InputEmptyError,
    InvalidArgumentError,
    InvalidJsonError,
    ModelNotReadyError,
    QueueFullError,
    ServerDrainingError,
    TaskNotSupportedError,
    WorkerCrashedError,
    status_of,
)
from headrace.server.tasks.classify import Classifications
from headrace.server.tasks.embed import EmbedOptions
from headrace.server.tasks.rerank import Ranking
from headrace.server.tasks.sparse import Weights
from headrace.server.tasks.text_models import sigmoid, softmax

if TYPE_CHECKING:
    from headrace.server.repository.model import Model


class EmbedBody(msgspec.Struct):
    """Body of ``/embed``; None is absent."""

    inputs: Inputs
    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    dimensions: int | None = None
    model: str | None = None


class SimilarityParameters(msgspec.Struct):
    """``parameters`` of a similarity request."""

    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: str | None = None


class SimilarityInputs(msgspec.Struct):
    """``inputs`` of a similarity request."""

    source_sentence: str
    sentences: list[str]


class SimilarityBody(msgspec.Struct):
    """Body of ``/similarity``."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None
    model: str | None = None


class DecodeBody(msgspec.Struct):
    """Body of ``/decode``: one list of token ids, or several."""

    ids: list[int | list[int]]
    skip_special_tokens: bool | None = None
    model: str | None = None


class PredictBody(msgspec.Struct):
    """Body of ``/predict``; the last two fields before ``model`` are those of Hugging Face's pipelines."""

    inputs: PairInputs
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    top_k: int | None = None
    model: str | None = None


class RerankBody(msgspec.Struct):
    """Body of ``/rerank`` with ``texts``."""

    query: str
    texts: list[str]
    truncate: bool | None = None
    truncation_direction: str | None = None
    raw_scores: bool | None = None
    return_text: bool | None = None
    model: str | None = None


def embed_options(body: EmbedBody | SimilarityParameters) -> EmbedOptions:
    """Return how a body asks to be embedded.

    Raises:
        InvalidArgumentError: ``truncation_direction`` is another word than left or right.
    """
    return EmbedOptions(
        normalize=body.normalize if isinstance(body, EmbedBody) else None,
        dimensions=body.dimensions if isinstance(body, EmbedBody) else None,
        truncate=body.truncate,
        direction=direction(body.truncation_direction),
        prompt_name=body.prompt_name,
    )


def decode_rows(body: DecodeBody) -> list[list[int]]:
    """Return the lists of token ids.

    Raises:
        InvalidJsonError: ids and lists of them in one list.
        InputEmptyError: there is none.
    """
    rows = [entry for entry in body.ids if isinstance(entry, list)]
    flat = [entry for entry in body.ids if isinstance(entry, int)]
    if rows and flat:
        raise InvalidJsonError("`ids`: token ids and lists of them cannot be in one list", field="ids")
    if not (rows or flat):
        raise InputEmptyError("`input_ids` cannot be empty", field="ids", index="0")
    return rows or [flat]


def check_normalize(normalize: bool | None, model: Model, field: str = "normalize") -> None:
    """Refuse to scale the weights of a vocabulary to unit length; ``field`` is what the request calls it.

    Raises:
        TaskNotSupportedError: the model has SPLADE pooling, and ``normalize`` is not false.
    """
    if model.text is not None and model.text.sparse and normalize is not False:
        raise TaskNotSupportedError(
            f"`normalize` is not available for SPLADE models: set `{field}` to false, or use /embed_sparse",
            model=model.name,
            task=model.task.value,
        )


def check_pooled_late(model: Model) -> None:
    """Refuse to give the vectors of tokens where there are weights of a vocabulary.

    Raises:
        TaskNotSupportedError: the model has SPLADE pooling.
    """
    if model.text is not None and model.text.sparse:
        raise TaskNotSupportedError(
            "`embed_all` is not available for SPLADE models", model=model.name, task=model.task.value
        )


def applied(result: Classifications, function: str, top_k: int | None) -> Classifications:
    """Return classifications of logits with ``function`` applied: ``sigmoid``, ``softmax`` or ``none``.

    None of these changes the order of the labels; ``top_k`` keeps the first.

    Raises:
        InvalidArgumentError: ``top_k`` below 1.
    """
    if top_k is not None and top_k < 1:
        raise InvalidArgumentError(
            f"`top_k` is {top_k}, expected at least 1", field="top_k", value=str(top_k)
        )
    apply = {"sigmoid": sigmoid, "softmax": softmax}.get(function)
    scores = result.scores if apply is None else apply(result.scores)
    return replace(result, order=result.order[:, :top_k], scores=scores[:, :top_k])


def sparse_json(rows: Sequence[Weights]) -> bytes:
    """Encode ``[[{"index", "value"}, …], …]``, ascending by index."""
    return encode(
        [
            [
                {"index": index, "value": value}
                for index, value in zip(row.indices.tolist(), row.values, strict=True)
            ]
            for row in rows
        ]
    )


def labels_json(result: Classifications, *, batch: bool) -> bytes:
    """Encode ``[{"score", "label"}, …]``, or a list of such lists for a batch."""
    rows = [
        [{"score": score, "label": label} for label, score in result.named(row)]
        for row in range(len(result.token_counts))
    ]
    return encode(rows if batch else rows[0])


def ranks_json(result: Ranking, texts: list[str] | None) -> bytes:
    """Encode ``[{"index", "score"}, …]`` in order of relevance, with ``text`` where ``texts`` are given."""
    return encode(
        [
            {"index": index, "score": score} | ({} if texts is None else {"text": texts[index]})
            for index, score in zip(result.order, result.scores, strict=True)
        ]
    )


def error_json(error: HeadraceError, *, oicm: bool) -> tuple[int, bytes]:
    """Return the HTTP status and the body of an error.

    Statuses and ``error_type`` words are those of Text Embeddings Inference; on the OICM surface a model that
    does something else is 400 instead of 424.
    """
    status, kind, prefix = _classified(error, oicm=oicm)
    return status, encode({"error": prefix + _message(error), "error_type": kind})


def error_kind(error: HeadraceError) -> str:
    """Return the ``error_type`` word."""
    return _classified(error, oicm=False)[1]


def error_text(error: HeadraceError) -> str:
    """Return the message, behind the words that the family puts before it."""
    return _classified(error, oicm=False)[2] + _message(error)


def _message(error: HeadraceError) -> str:
    return "Model is overloaded" if isinstance(error, QueueFullError) else error.message


def _classified(error: HeadraceError, *, oicm: bool) -> tuple[int, str, str]:
    """Return status, ``error_type`` and what stands before the message."""
    if isinstance(error, TaskNotSupportedError) and oicm:
        return 400, "Validation", ""
    if isinstance(error, InvalidJsonError) and "offset" in error.metadata:
        return 400, "Validation", ""  # not JSON at all; JSON of a wrong shape is 422
    for kind, status, name, prefix in _ERRORS:
        if isinstance(error, kind):
            if error.message.startswith("tokenizer error"):
                return status, "Tokenizer", ""  # the library's own, with its text
            of_one_input = "index" in error.metadata
            return status, name, _INPUT_ERROR if prefix is None and of_one_input else prefix or ""
    return status_of(error).http, type(error).__name__.removesuffix("Error"), ""


_INPUT_ERROR: Final = "Input validation error: "
_ERRORS: Final = (
    (TaskNotSupportedError, 424, "Backend", "Backend error: "),
    (InputEmptyError, 400, "Empty", None),  # None: the usual prefix where one input is meant
    (InvalidJsonError, 422, "Validation", ""),
    (BatchTooLargeError, 422, "Validation", ""),
    (InvalidArgumentError, 422, "Validation", _INPUT_ERROR),
    (QueueFullError, 429, "Overloaded", ""),
    (ExecutionFailedError, 424, "Backend", "Backend error: "),
    (ModelNotReadyError, 503, "Unhealthy", ""),
    (WorkerCrashedError, 503, "Unhealthy", ""),
    (ServerDrainingError, 503, "Unhealthy", ""),
)
