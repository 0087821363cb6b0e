"""The shapes of the JSON bodies that REST routes take, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from headrace.server.codecs.cohere_embed import CohereEmbedBody
from headrace.server.codecs.oicm import ClassifyBody
from headrace.server.codecs.openai_chat import ChatBody
from headrace.server.codecs.openai_completions import CompletionBody
from headrace.server.codecs.openai_responses import ResponsesBody
from headrace.server.codecs.openai_sampling import SamplingBody
from headrace.server.codecs.openai_structured import StructureBody
from headrace.server.codecs.openai_tools import ToolsBody
from headrace.server.codecs.tei import DecodeBody, EmbedBody, PredictBody, RerankBody, SimilarityBody
from headrace.server.codecs.tgi import GenerateBody
from headrace.server.codecs.vllm import DetokenizeBody, InputsBody, TokenizeBody
from headrace.server.codecs.vllm_demo import DemoBody
from headrace.server.codecs.vllm_pooling import ChatBody as TemplateBody
from headrace.server.codecs.vllm_pooling import PoolingBody, TextsBody
from headrace.server.codecs.vllm_scores import PAIR_FIELDS, ScoringBody

Form = tuple[type, ...]
"""Structures whose fields stand side by side in one object."""


GivenText = str | dict[str, Any]
"""A text, or an object that has it as ``text``, or as ``content`` of text parts."""
GivenTexts = str | dict[str, Any] | list[GivenText]


class RankBody(msgspec.Struct):
    """A query and documents in the shape of Cohere, Jina and vLLM."""

    query: GivenText
    documents: GivenTexts


class ConversationsBody(msgspec.Struct):
    """One conversation or several in the place of texts."""

    messages: list[dict[str, Any] | list[dict[str, Any]]]


PAIRS: Final = tuple(
    msgspec.defstruct(f"Pairs_{first}_{second}", [(first, GivenTexts), (second, GivenTexts)])
    for first, second in PAIR_FIELDS
)
"""Pairs to score, by each of their names: one text or several, and those that each is compared with."""


_CHAT: Final[Form] = (ChatBody, SamplingBody, ToolsBody, StructureBody)
_COMPLETION: Final[Form] = (CompletionBody, SamplingBody, StructureBody)
_EMBEDDING: Final[Form] = (TextsBody, PoolingBody)
_CONVERSATIONS: Final[Form] = (ConversationsBody, TemplateBody, PoolingBody)

BODIES: Final[Mapping[str, tuple[Form, ...]]] = MappingProxyType(
    {
        "EndpointService.Invoke": ((GenerateBody,), _CHAT, _COMPLETION, (EmbedBody,), (PredictBody,)),
        "EndpointService.Run": (
            (GenerateBody,),
            (EmbedBody,),
            (PredictBody,),
            (SimilarityBody,),
            (RerankBody,),
        ),
        "OicmService.Classify": ((ClassifyBody,), _EMBEDDING, _CONVERSATIONS),
        "OpenaiGenerationService.CreateChatCompletion": (_CHAT,),
        "OpenaiGenerationService.CreateCompletion": (_COMPLETION,),
        "OpenaiResponsesService.CreateResponse": ((ResponsesBody,),),
        "OpenaiService.CreateEmbedding": (_EMBEDDING, _CONVERSATIONS),
        "TeiService.Embed": ((EmbedBody,), (CohereEmbedBody,)),
        "TeiService.Predict": ((PredictBody,),),
        "TeiService.Rerank": ((RerankBody,), (RankBody, ScoringBody, PoolingBody)),
        "TeiVectorsService.Decode": ((DecodeBody,),),
        "TeiVectorsService.EmbedAll": ((EmbedBody,),),
        "TeiVectorsService.EmbedSparse": ((EmbedBody,),),
        "TeiVectorsService.Similarity": ((SimilarityBody,),),
        "TgiService.ChatTokenize": ((TokenizeBody,),),
        "TgiService.Generate": ((GenerateBody,), (DemoBody, SamplingBody, StructureBody)),
        "TgiService.GenerateStream": ((GenerateBody,),),
        "VllmPoolingService.CohereEmbed": ((CohereEmbedBody,),),
        "VllmPoolingService.Pooling": (_EMBEDDING, _CONVERSATIONS),
        "VllmPoolingService.Score": tuple((pairs, ScoringBody, PoolingBody) for pairs in PAIRS),
        "VllmService.Detokenize": ((DetokenizeBody,),),
        "VllmService.Tokenize": ((TokenizeBody,), (InputsBody,)),
    }
)
"""``Service.Rpc`` → the forms that its body may have; routes that are not here take any JSON."""
