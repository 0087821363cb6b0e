"""Chat and completions of the OpenAI API over REST, at once or as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.codecs.openai_requests import json_object
from headrace.server.services.call import Call, HttpReply, HttpStream
from headrace.server.services.openai_requests import error_reply
from headrace.server.services.openai_routes import OpenaiRoutes

if TYPE_CHECKING:
    from headrace.rest.v1 import openai_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.generate import Generating


class OpenaiGenerationService:
    """Facade of ``headrace.rest.v1.OpenaiGenerationService``.

    Args:
        repository: the models.
        generating: the generate task.
        version: of the server.
    """

    def __init__(self, repository: Repository, generating: Generating, version: str) -> None:
        self._routes = OpenaiRoutes(repository, generating, version)

    async def CreateChatCompletion(
        self, request: openai_pb2.OpenaiGenerationServiceCreateChatCompletionRequest, call: Call
    ) -> HttpReply | HttpStream:
        """Continue a conversation."""
        return await self._routes.chat(json_object(request.body.content_type, request.body.data), call)

    async def CreateCompletion(
        self, request: openai_pb2.OpenaiGenerationServiceCreateCompletionRequest, call: Call
    ) -> HttpReply | HttpStream:
        """Continue one or many prompts."""
        return await self._routes.completion(json_object(request.body.content_type, request.body.data), call)

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer with vLLM's error object."""
        return error_reply(error, call.surface)
