"""What the OpenAI services do alike with a request: find its model, name its answer, start it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headrace.server.codecs import oicm_chat
from headrace.server.codecs.http_headers import retry_headers
from headrace.server.codecs.json_body import convert
from headrace.server.codecs.openai_errors import error_json
from headrace.server.codecs.openai_identity import Identity, identity
from headrace.server.codecs.openai_options import options
from headrace.server.codecs.openai_requests import default_model, request_id
from headrace.server.codecs.openai_sampling import SamplingBody
from headrace.server.repository.model import Model, Task
from headrace.server.services.call import Call, HttpReply
from headrace.server.tasks.bad_words import bad_word_ids
from headrace.server.tasks.generate import Generating, generation_settings
from headrace.server.tasks.generation_checks import check_prompts
from headrace.server.tasks.merge import started

if TYPE_CHECKING:
    from headrace.server.codecs.openai_sampling import Wanted
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.generation import GenerationOptions
    from headrace.server.tasks.prompts import Prompt
    from headrace.server.tasks.text_stream import TextStream


class OpenaiRequests:
    """Shared by the services that generate text in the OpenAI API.

    Args:
        repository: the models.
        generating: the generate task.
        version: of the server, for ``system_fingerprint``.
    """

    def __init__(self, repository: Repository, generating: Generating, version: str) -> None:
        self.generating = generating
        self._repository = repository
        self._fingerprint = f"headrace-{version}"

    def model(self, call: Call, name: str | None) -> Model:
        """Return the model that the URL or the body names."""
        wanted = call.model_id or default_model(name)
        model = call.model = self._repository.resolve(wanted, Task.GENERATE)
        return model

    def sampling(self, value: dict[str, Any], call: Call) -> SamplingBody:
        """Read the sampling fields of a body; below OICM's URLs the defaults and ranges are OICM's."""
        body = convert(value, SamplingBody, strict=False)
        if call.surface == oicm_chat.SURFACE:
            oicm_chat.settle(body)
        return body

    def identity(self, prefix: str, model: Model, sampling: SamplingBody, call: Call) -> Identity:
        """Name an answer, after the caller's own name for the request where it has one."""
        return identity(prefix, model.name, self._fingerprint, request_id(sampling.request_id, call.headers))

    async def options(
        self, model: Model, sampling: SamplingBody, wanted: Wanted, answer: Identity
    ) -> GenerationOptions:
        """Return what the generate task is asked for."""
        settings = generation_settings(model)
        bad_words = await bad_word_ids(self.generating.tokenizing, settings.tokenizer, sampling.bad_words)
        return options(sampling, wanted, settings, answer.id, bad_words)

    async def start(
        self, model: Model, prompts: Sequence[Prompt], chosen: GenerationOptions
    ) -> list[TextStream]:
        """Start all prompts, or none when one is refused."""
        check_prompts(len(prompts), chosen.sampling)
        return await started(prompts, lambda prompt: self.generating.start(model, prompt, chosen))


def error_reply(error: HeadraceError, surface: str = "") -> HttpReply:
    """Answer with vLLM's error object; OICM's surface has a status of its own for a request's template."""
    status, body = error_json(error, oicm=surface == oicm_chat.SURFACE)
    return HttpReply(body, status=status, headers=retry_headers(status))
