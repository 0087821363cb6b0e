"""The facades with vLLM's pooling routes over in-test models, and what their tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.rest.v1 import oicm_pb2, openai_pb2, tei_pb2, vllm_pb2
from headrace.server.repository.model import Task
from headrace.server.services.oicm import OicmService
from headrace.server.services.openai import OpenaiService
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.services.vllm_pooling import VllmPoolingService
from headrace.server.tasks.chat_templates import ChatTemplates
from headrace.server.tasks.tokenization import Tokenizing

USAGE = {"completion_tokens": 0, "prompt_tokens_details": None}
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
CONVERSATION = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "bad a"}]
TOO_LONG = "what is deep learning good bad a b c"  # 9 words and two special tokens, where 8 fit


class Routes:
    """Posts to the routes of several facades by name."""

    def __init__(self, rest: Any, repository: Any, tokenizing: Tokenizing) -> None:
        pooling = PoolingRequests(
            repository, tokenizing, ChatTemplates(), max_documents=6, compute_type="cuda"
        )
        vllm = rest(VllmPoolingService(pooling))
        tei = rest(TeiService(TeiRequests(repository, tokenizing), pooling))
        self._routes = {
            "score": (vllm, "Score", vllm_pb2.VllmPoolingServiceScoreRequest),
            "pooling": (vllm, "Pooling", vllm_pb2.VllmPoolingServicePoolingRequest),
            "cohere": (vllm, "CohereEmbed", vllm_pb2.VllmPoolingServiceCohereEmbedRequest),
            "classify": (
                rest(OicmService(repository, tokenizing, pooling, compute_type="cuda")),
                "Classify",
                oicm_pb2.OicmServiceClassifyRequest,
            ),
            "embeddings": (
                rest(OpenaiService(repository, pooling)),
                "CreateEmbedding",
                openai_pb2.OpenaiServiceCreateEmbeddingRequest,
            ),
            "rerank": (tei, "Rerank", tei_pb2.TeiServiceRerankRequest),
            "embed": (tei, "Embed", tei_pb2.TeiServiceEmbedRequest),
        }  # fmt: skip

    async def __call__(self, route: str, body: Any, headers: Any = None) -> Any:
        facade, rpc, message = self._routes[route]
        path = {"x-envoy-original-path": f"/v1/{route}"}
        return await facade.post(rpc, message, body, {**path, **(headers or {})})


def pooling_routes(rest: Any, repository: Any, tokenizing: Tokenizing) -> Routes:
    """Post to embedders "e" and "prompted", classifier "c", cross-encoders "x" and "raw" (logits)."""
    repository.text("e", Task.EMBED, max_tokens=8, chat_templates={"default": TEMPLATE})
    repository.text("prompted", Task.EMBED, prompts={"q": "what is "}, default_prompt="q")
    repository.text("c", Task.CLASSIFY, labels=("negative", "neutral", "positive"), max_tokens=8)
    repository.text("x", Task.RERANK, labels=("score",), max_tokens=8)
    repository.text("raw", Task.RERANK, labels=("score",), logits=True)
    return Routes(rest, repository, tokenizing)


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def counted(tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": tokens, "total_tokens": tokens, **USAGE}
