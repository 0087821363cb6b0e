"""``headrace.v1.EmbeddingService``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.server.codecs import typed
from headrace.server.codecs.text_inputs import check_count
from headrace.server.codecs.vectors import packed_vectors
from headrace.server.errors import InputEmptyError, InvalidArgumentError
from headrace.server.repository.model import Task
from headrace.server.tasks.embed import EmbedOptions, embed
from headrace.server.tasks.offload import call_by_size
from headrace.v1 import embedding_pb2

if TYPE_CHECKING:
    from headrace.server.repository.registry import Repository
    from headrace.server.services.call import Call
    from headrace.server.tasks.text_encoding import Text
    from headrace.server.tasks.tokenization import Tokenizing


class EmbeddingService:
    """Turns texts into vectors.

    Args:
        repository: the models.
        tokenizing: threads for tokenising and arithmetic.
    """

    def __init__(self, repository: Repository, tokenizing: Tokenizing) -> None:
        self._repository = repository
        self._tokenizing = tokenizing

    async def Embed(self, request: embedding_pb2.EmbedRequest, call: Call) -> embedding_pb2.EmbedResponse:
        """Embed texts or token ids."""
        inputs = _inputs(request)
        check_count(len(inputs))
        model = call.model = self._repository.resolve(request.model, Task.EMBED)
        options = EmbedOptions(
            normalize=request.normalize if request.HasField("normalize") else None,
            dimensions=request.dimensions if request.HasField("dimensions") else None,
            truncate=request.truncate if request.HasField("truncate") else None,
            direction=typed.direction(request.truncation_direction),
            prompt_name=request.prompt_name,
        )
        result = await embed(self._tokenizing, model, inputs, options)
        vectors = result.vectors
        response = await call_by_size(self._tokenizing, vectors.nbytes, _response, vectors)
        response.model = model.name
        response.model_version = str(model.version)
        typed.usage(result.token_counts, response.usage)
        typed.timings(result.timings, response.timings)
        return response


def _inputs(request: embedding_pb2.EmbedRequest) -> list[Text]:
    if request.texts and request.token_ids:
        raise InvalidArgumentError(
            "`texts` and `token_ids` are both set, expected one of them", field="token_ids"
        )
    if request.token_ids:
        if request.prompt_name:
            raise InvalidArgumentError("`prompt_name` is for `texts` only", field="prompt_name")
        return [list(entry.ids) for entry in request.token_ids]
    if not request.texts:
        raise InputEmptyError("`texts` cannot be empty", field="texts")
    return list(request.texts)


def _response(vectors: NDArray[np.float32]) -> embedding_pb2.EmbedResponse:
    return embedding_pb2.EmbedResponse.FromString(packed_vectors(vectors))
