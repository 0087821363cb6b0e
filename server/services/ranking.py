"""``headrace.v1.RankingService``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs import typed
from headrace.server.codecs.text_inputs import check_count
from headrace.server.errors import InputEmptyError
from headrace.server.repository.model import Task
from headrace.server.tasks.rerank import RerankOptions, rerank
from headrace.v1 import ranking_pb2

if TYPE_CHECKING:
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.tokenization import Tokenizing


class RankingService:
    """Orders texts by their relevance to a query.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and arithmetic.
    """

    def __init__(self, repository: Repository, tokenizing: Tokenizing) -> None:
        self._repository = repository
        self._tokenizing = tokenizing

    async def Rerank(self, request: ranking_pb2.RerankRequest, call: Call) -> ranking_pb2.RerankResponse:
        """Score texts against a query and sort them."""
        if not request.query:
            raise InputEmptyError("`query` cannot be empty", field="query")
        check_count(len(request.texts))
        model = call.model = self._repository.resolve(request.model, Task.RERANK, Task.EMBED, Task.CLASSIFY)
        options = RerankOptions(
            raw_scores=request.raw_scores,
            top_n=request.top_n if request.HasField("top_n") else None,
            truncate=request.truncate if request.HasField("truncate") else None,
            direction=typed.direction(request.truncation_direction),
        )
        texts = list(request.texts)
        result = await rerank(self._tokenizing, model, request.query, texts, options)
        return ranking_pb2.RerankResponse(
            ranks=[
                ranking_pb2.Rank(index=index, score=score, text=texts[index] if request.return_text else None)
                for index, score in zip(result.order, result.scores.tolist(), strict=True)
            ],
            model=model.name,
            model_version=str(model.version),
            usage=typed.usage(result.token_counts),
            timings=typed.timings(result.timings),
        )
