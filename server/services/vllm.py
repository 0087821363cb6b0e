"""What vLLM's server offers beside the OpenAI API: tokenisation and server facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from headrace.server.codecs import vllm
from headrace.server.codecs.json_body import convert, encode
from headrace.server.codecs.openai_requests import default_model, json_object
from headrace.server.codecs.text_inputs import plain_texts
from headrace.server.codecs.tgi_answers import flat_tokens
from headrace.server.errors import InvalidJsonError
from headrace.server.repository.model import Task, TextSettings
from headrace.server.services.call import Call, HttpReply
from headrace.server.services.openai_requests import error_reply
from headrace.server.services.tei_requests import error_reply as tei_error_reply
from headrace.server.services.tgi_requests import error_reply as tgi_error_reply
from headrace.server.tasks.chat import chat_prompt, chat_texts
from headrace.server.tasks.generate import Generating, generation_settings
from headrace.server.tasks.generation_checks import check_vocabulary
from headrace.server.tasks.prompts import Prompt, encode_prompt
from headrace.server.tasks.text_models import text_settings
from headrace.server.tasks.text_tokens import tokenize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message

    from headrace.rest.v1 import vllm_pb2
    from headrace.server.errors import HeadraceError
    from headrace.server.repository.model import GenerationSettings, Model
    from headrace.server.repository.registry import Repository
    from headrace.server.tasks.chat import Chat

TGI: Final = "tgi"
TEI: Final = "tei"
ENCODERS: Final = (Task.EMBED, Task.CLASSIFY, Task.RERANK)


class VllmService:
    """Facade of ``headrace.rest.v1.VllmService``.

    Args:
        repository: the models.
        generating: the generate task.
        version: of the server.
        max_client_batch_size: most texts of one request whose body has ``inputs``.
    """

    def __init__(
        self, repository: Repository, generating: Generating, version: str, max_client_batch_size: int = 32
    ) -> None:
        self._repository = repository
        self._generating = generating
        self._version = version
        self._max_batch = max_client_batch_size

    async def Tokenize(self, request: vllm_pb2.VllmServiceTokenizeRequest, call: Call) -> HttpReply:
        """Tokenise a prompt, a conversation, or what the Text … Inference families call ``inputs``."""
        value = json_object(request.body.content_type, request.body.data)
        if value.get("inputs") is not None:
            return await self._tokenize_inputs(value, call)
        body = convert(value, vllm.TokenizeBody, strict=False)
        model = self._resolve(call, body.model)
        if body.messages is not None:
            ids = await self._chat(model, vllm.conversation(body))
        elif body.prompt is not None:
            ids = await self._prompt(model, body.prompt, special=body.add_special_tokens is not False)
        else:
            raise InvalidJsonError("one of `prompt`, `messages` and `inputs` is needed", field="prompt")
        settings = _settings(model)
        names = settings.tokenizer.id_to_token
        strings = [names(token_id) for token_id in ids] if body.return_token_strs else None
        return HttpReply(vllm.tokens_json(ids, strings, settings.max_tokens))

    async def _prompt(self, model: Model, text: str, *, special: bool) -> Sequence[int]:
        prompt = Prompt(text, add_special_tokens=special)
        return await self._generating.tokenizing.run(encode_prompt, _settings(model), prompt)

    async def _chat(self, model: Model, chat: Chat) -> Sequence[int]:
        if model.text is None:
            return (await chat_prompt(self._generating, model, chat)).token_ids or ()
        generating = self._generating
        (text,) = await chat_texts(generating.tokenizing, generating.templates, model, [chat])
        return await self._prompt(model, text, special=chat.add_special_tokens)

    async def _tokenize_inputs(self, value: Mapping[str, Any], call: Call) -> HttpReply:
        call.protocol = TEI  # who is answered, errors included
        name = value.get("model")
        model = self._resolve(call, name if isinstance(name, str) else None)
        own = model.generation
        call.protocol = TEI if own is None else TGI
        body = convert(value, vllm.InputsBody, strict=False)
        rows = await tokenize(
            self._generating.tokenizing,
            _encoder(model) if own is None else TextSettings(own.tokenizer, own.max_tokens),
            plain_texts(body.inputs, field="inputs", limit=self._max_batch),
            add_special_tokens=body.add_special_tokens is not False,
            prompt_name=body.prompt_name,
        )
        flat = own is not None and isinstance(body.inputs, str)
        return HttpReply(encode(flat_tokens(rows[0])) if flat else vllm.nested_tokens_json(rows))

    async def Detokenize(self, request: vllm_pb2.VllmServiceDetokenizeRequest, call: Call) -> HttpReply:
        """Decode token ids, special tokens included."""
        value = json_object(request.body.content_type, request.body.data)
        body = convert(value, vllm.DetokenizeBody, strict=False)
        tokenizer = _settings(self._resolve(call, body.model)).tokenizer
        check_vocabulary("tokens", body.tokens, tokenizer.get_vocab_size())
        text = await self._generating.tokenizing.run(tokenizer.decode, body.tokens, skip_special_tokens=False)
        return HttpReply(encode({"prompt": text}))

    async def TokenizerInfo(self, request: Message, call: Call) -> HttpReply:
        """Tell the special tokens and the chat template of a model that generates."""
        model = call.model = self._repository.resolve(call.model_id, Task.GENERATE)
        settings = generation_settings(model)
        return HttpReply(vllm.tokenizer_info_json(settings.special_tokens, settings.chat_templates))

    async def Version(self, request: Message, call: Call) -> HttpReply:
        """Tell the server's version."""
        return HttpReply(encode({"version": self._version}))

    async def Load(self, request: Message, call: Call) -> HttpReply:
        """Tell how many requests the generation engines have."""
        generators = [model.generator for model in self._repository.ready_models()]
        active = sum(generator.active for generator in generators if generator is not None)
        return HttpReply(encode({"server_load": active}))

    def _resolve(self, call: Call, name: str | None) -> Model:
        wanted = call.model_id or default_model(name)
        model = call.model = self._repository.resolve(wanted, Task.GENERATE, *ENCODERS)
        return model

    def error_reply(self, error: HeadraceError, call: Call) -> HttpReply:
        """Answer with vLLM's error object, or as TGI or TEI where the request is theirs."""
        if call.protocol == TEI:
            return tei_error_reply(error, call)
        return tgi_error_reply(error) if call.protocol == TGI else error_reply(error)


def _settings(model: Model) -> GenerationSettings | TextSettings:
    return model.generation or _encoder(model)


def _encoder(model: Model) -> TextSettings:
    return text_settings(model, True, "a text model")
