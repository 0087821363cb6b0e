"""Messages and statuses of the gRPC API of Text Embeddings Inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc

from headrace.server.codecs.http_headers import Headers, cost_headers, count_characters
from headrace.server.codecs.tei import error_kind, error_text
from headrace.server.errors import HeadraceError, status_of
from headrace.server.tasks.text_encoding import Direction
from headrace.tei.v1 import tei_pb2

if TYPE_CHECKING:
    from headrace.server.tasks.classify import Classifications
    from headrace.server.tasks.rerank import Ranking
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.text_models import Timings
    from headrace.server.tasks.text_tokens import Token

_PRECONDITIONS: Final = frozenset({"Backend", "Tokenizer"})


def status(error: HeadraceError) -> tuple[grpc.StatusCode, str]:
    """Return code and message of an error: a model of another kind is FAILED_PRECONDITION here."""
    code = status_of(error).code
    if error_kind(error) in _PRECONDITIONS:
        code = grpc.StatusCode.FAILED_PRECONDITION
    return code, "No valid auth token" if code is grpc.StatusCode.UNAUTHENTICATED else error_text(error)


def direction(value: int) -> Direction:
    """Read a truncation direction."""
    left = value == tei_pb2.TRUNCATION_DIRECTION_LEFT
    return Direction.LEFT if left else Direction.RIGHT


def metadata(texts: Sequence[Text], token_counts: Sequence[int], times: Timings) -> tei_pb2.Metadata:
    """Say what a request cost."""
    return tei_pb2.Metadata(
        compute_chars=count_characters(texts),
        compute_tokens=sum(token_counts),
        total_time_ns=times.total_ns,
        tokenization_time_ns=times.tokenization_ns,
        queue_time_ns=times.queue_ns,
        inference_time_ns=times.inference_ns,
    )


def predictions(texts: Sequence[Text], result: Classifications) -> tei_pb2.PredictResponse:
    """Encode the labels of one input."""
    return tei_pb2.PredictResponse(
        predictions=[tei_pb2.Prediction(score=float(score), label=label) for label, score in result.named(0)],
        metadata=metadata(texts, result.token_counts, result.timings),
    )


def ranks(texts: Sequence[str], result: Ranking, *, return_text: bool) -> tei_pb2.RerankResponse:
    """Encode ranked texts."""
    return tei_pb2.RerankResponse(
        ranks=[
            tei_pb2.Rank(index=index, text=texts[index] if return_text else None, score=float(score))
            for index, score in zip(result.order, result.scores, strict=True)
        ],
        metadata=metadata(result.inputs, result.token_counts, result.timings),
    )


def headers(cost: tei_pb2.Metadata, compute_type: str) -> Headers:
    """Return the headers that a unary answer has in this family; times are whole milliseconds."""
    return cost_headers(
        compute_type,
        cost.compute_chars,
        cost.compute_tokens,
        total_ns=cost.total_time_ns,
        tokenization_ns=cost.tokenization_time_ns,
        queue_ns=cost.queue_time_ns,
        inference_ns=cost.inference_time_ns,
    )


def info(description: dict[str, Any]) -> tei_pb2.InfoResponse:
    """Encode what :class:`~headrace.server.codecs.tei_info.EncoderInfo` describes."""
    kind = next(iter(description["model_type"]))
    fields = {
        name: description[name]
        for name in tei_pb2.InfoResponse.DESCRIPTOR.fields_by_name
        if name != "model_type"
    }
    return tei_pb2.InfoResponse(model_type=f"MODEL_TYPE_{kind.upper()}", **fields)


def tokens(found: Sequence[Token]) -> tei_pb2.EncodeResponse:
    """Encode the tokens of one text."""
    return tei_pb2.EncodeResponse(
        tokens=[
            tei_pb2.SimpleToken(
                id=token.token_id,
                text=token.text,
                special=token.special,
                start=token.start,
                stop=token.stop,
            )
            for token in found
        ]
    )
