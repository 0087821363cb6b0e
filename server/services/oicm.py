"""The model APIs of the Open Innovation Cluster Manager over REST that no other family has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs import oicm, tei
from headrace.server.codecs.http_headers import compute_headers, retry_headers
from headrace.server.codecs.json_body import convert, given, parse
from headrace.server.codecs.text_inputs import direction, plain_texts
from headrace.server.repository.model import Task
from headrace.server.services.call import Call, HttpReply
from headrace.server.services.pooling_requests import VLLM, PoolingRequests, error_reply
from headrace.server.tasks.classify import ClassifyOptions, classify

if TYPE_CHECKING:
    from headrace.rest.v1 import oicm_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.tokenization import Tokenizing


class OicmService:
    """Facade of ``headrace.rest.v1.OicmService``.

    Args:
        repository: the models.
        tokenizing: threads for tokenising.
        pooling: answers bodies in vLLM's form.
        compute_type: the header ``x-compute-type``.
    """

    def __init__(
        self,
        repository: Repository,
        tokenizing: Tokenizing,
        pooling: PoolingRequests,
        compute_type: str = "cpu",
    ) -> None:
        self._repository = repository
        self._tokenizing = tokenizing
        self._pooling = pooling
        self._compute_type = compute_type

    async def Classify(self, request: oicm_pb2.OicmServiceClassifyRequest, call: Call) -> HttpReply:
        """Label one text or a list of texts; a body with ``input`` or ``messages`` is vLLM's."""
        value = parse(request.body.data)
        members = given(value)
        if "inputs" not in members and members & {"input", "messages"}:
            call.form = VLLM
            return await self._pooling.classify(value, call)
        body = convert(value, oicm.ClassifyBody)
        batch = not isinstance(body.inputs, str)
        inputs = plain_texts(body.inputs, field="inputs")
        name = call.model_id or body.model or ""
        model = call.model = self._repository.resolve(name, Task.CLASSIFY, Task.RERANK)
        options = ClassifyOptions(
            raw_scores=bool(body.raw_scores),
            top_k=body.top_k,
            truncate=body.truncate,
            direction=direction(body.truncation_direction),
        )
        result = await classify(self._tokenizing, model, inputs, options)
        headers = compute_headers(inputs, result.token_counts, result.timings, self._compute_type)
        return HttpReply(oicm.classification_json(result, batch=batch), headers=headers)

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer ``{"error", "error_type"}``, or vLLM's error object where the body was vLLM's."""
        if call.form == VLLM:
            return error_reply(error, call)
        status, body = tei.error_json(error, oicm=True)
        return HttpReply(body, status=status, headers=retry_headers(status))
