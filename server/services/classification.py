"""``headrace.v1.ClassificationService``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs import typed
from headrace.server.codecs.text_inputs import check_count
from headrace.server.errors import InputEmptyError
from headrace.server.repository.model import Task
from headrace.server.tasks.classify import ClassifyOptions, classify
from headrace.v1 import classification_pb2

if TYPE_CHECKING:
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.classify import Classifications
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.tokenization import Tokenizing


class ClassificationService:
    """Assigns labels to texts.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and arithmetic.
    """

    def __init__(self, repository: Repository, tokenizing: Tokenizing) -> None:
        self._repository = repository
        self._tokenizing = tokenizing

    async def Classify(
        self, request: classification_pb2.ClassifyRequest, call: Call
    ) -> classification_pb2.ClassifyResponse:
        """Classify texts and text pairs."""
        if not request.inputs:
            raise InputEmptyError("`inputs` cannot be empty", field="inputs")
        check_count(len(request.inputs))
        model = call.model = self._repository.resolve(request.model, Task.CLASSIFY, Task.RERANK)
        inputs: list[Text] = [
            (entry.text, entry.text_pair) if entry.HasField("text_pair") else entry.text
            for entry in request.inputs
        ]
        options = ClassifyOptions(
            raw_scores=request.raw_scores,
            top_k=request.top_k if request.HasField("top_k") else None,
            truncate=request.truncate if request.HasField("truncate") else None,
            direction=typed.direction(request.truncation_direction),
        )
        result = await classify(self._tokenizing, model, inputs, options)
        return classification_pb2.ClassifyResponse(
            classifications=[_classification(result, row) for row in range(len(inputs))],
            model=model.name,
            model_version=str(model.version),
            usage=typed.usage(result.token_counts),
            timings=typed.timings(result.timings),
        )


def _classification(result: Classifications, row: int) -> classification_pb2.Classification:
    return classification_pb2.Classification(
        scores=[
            classification_pb2.LabelScore(label=result.labels[index], score=score, index=index)
            for index, score in zip(result.order[row].tolist(), result.scores[row].tolist(), strict=True)
        ]
    )
