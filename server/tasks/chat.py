"""Conversations to prompts: which template, what it is given, and its text as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from headrace.server.errors import InvalidArgumentError
from headrace.server.tasks.chat_messages import template_messages
from headrace.server.tasks.generate import generation_settings
from headrace.server.tasks.prompts import Prompt, encode
from headrace.server.tasks.text_encoding import CHARACTERS_PER_TOKEN, Rendered
from headrace.server.tasks.text_models import text_settings

if TYPE_CHECKING:
    from headrace.server.repository.model import GenerationSettings, Model, TextSettings
    from headrace.server.tasks.chat_templates import ChatTemplates, CompiledTemplate
    from headrace.server.tasks.generate import Generating
    from headrace.server.tasks.tokenization import Tokenizing

    ChatSettings: TypeAlias = GenerationSettings | TextSettings

DEFAULT_TEMPLATE: Final = "default"
TOOL_TEMPLATE: Final = "tool_use"
RESERVED: Final = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
HERE: Final = "\uf8ffcontinue here\uf8ff "
"""Marks the end of a final message that is continued; its last space shows whether the template trims."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation and how it becomes a prompt.

    Attributes:
        messages: as :func:`headrace.server.tasks.chat_messages.template_messages` takes them.
        tools: what the model may call, as OpenAI writes them; None for none.
        template: name of one of the model's templates, or Jinja text where the family takes that; "" for the
            model's own (``tool_use`` when there are tools and such a template).
        add_generation_prompt: end with the beginning of the assistant's answer.
        continue_final_message: the last message is unfinished and goes on.
        documents: for templates that read them; None for none.
        template_kwargs: further variables of the template.
        add_special_tokens: let the tokenizer add its own, unless the template has written them.
        variables: what alone a template of the request may read beside ``template_kwargs``; None for all.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    template: str = ""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_special_tokens: bool = False
    variables: frozenset[str] | None = None


async def chat_prompt(generating: Generating, model: Model, chat: Chat) -> Prompt:
    """Return the conversation as token ids and their text, made in a thread.

    Raises:
        TaskNotSupportedError: the model does not generate text.
        InputEmptyError: there are no messages.
        InputTooLongError: the conversation is so long that it is refused before it is tokenised.
        InvalidArgumentError: a message is wrong, the model has no such template, or the template refused.
    """
    settings = generation_settings(model)
    text = checked_template(model.name, settings, chat)
    return await generating.tokenizing.run(_prompt, generating.templates, settings, chat, text)


async def chat_texts(
    tokenizing: Tokenizing, templates: ChatTemplates, model: Model, chats: Sequence[Chat]
) -> list[Rendered]:
    """Return conversations as the texts that an encoder reads, made in a thread; none is cut.

    Raises:
        TaskNotSupportedError: the model reads no texts.
        InputEmptyError, InputTooLongError, InvalidArgumentError: as :func:`chat_prompt`.
    """
    settings = text_settings(model, fits=True, purpose="a text model")
    chosen = [checked_template(model.name, settings, chat) for chat in chats]

    def render() -> list[Rendered]:
        return [
            Rendered(render_chat(_compiled(templates, settings, chat, text), settings, chat))
            for chat, text in zip(chats, chosen, strict=True)
        ]

    return await tokenizing.run(render)


def checked_template(name: str, settings: ChatSettings, chat: Chat) -> str:
    """Return the Jinja text that renders ``chat``, after a look at its options.

    Raises:
        InvalidArgumentError: options that exclude each other, or :func:`template_text`'s reasons.
    """
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InvalidArgumentError(
            "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
            field="continue_final_message",
        )
    reserved = sorted(RESERVED & chat.template_kwargs.keys())
    if reserved:
        raise InvalidArgumentError(
            f"`chat_template_kwargs` cannot set {', '.join(reserved)}", field="chat_template_kwargs"
        )
    return template_text(name, settings, chat)


def template_text(name: str, settings: ChatSettings, chat: Chat) -> str:
    """Return the Jinja text that renders ``chat``.

    Raises:
        InvalidArgumentError: the model has no template, and the request gives none.
    """
    templates = settings.chat_templates
    if chat.template:
        return templates.get(chat.template, chat.template)
    if chat.tools and TOOL_TEMPLATE in templates:
        return templates[TOOL_TEMPLATE]
    if DEFAULT_TEMPLATE in templates:
        return templates[DEFAULT_TEMPLATE]
    known = f"; it has {', '.join(templates)}, name one of them" if templates else ""
    raise InvalidArgumentError(f"model '{name}' has no chat template{known}", field="messages", model=name)


def _prompt(templates: ChatTemplates, settings: GenerationSettings, chat: Chat, text: str) -> Prompt:
    rendered = render_chat(_compiled(templates, settings, chat, text), settings, chat)
    begins = settings.special_tokens.get("bos_token", "")
    add = chat.add_special_tokens and not (begins and rendered.startswith(begins))
    return Prompt(rendered, encode(settings.tokenizer, rendered, add_special_tokens=add))


def _compiled(templates: ChatTemplates, settings: ChatSettings, chat: Chat, text: str) -> CompiledTemplate:
    template = templates.compile(text, trusted=text in settings.chat_templates.values())
    if chat.variables is not None:
        template.check_variables(chat.variables | chat.template_kwargs.keys())
    return template


def render_chat(template: CompiledTemplate, settings: ChatSettings, chat: Chat) -> str:
    """Render a conversation; for a thread. Raises as :func:`chat_prompt`."""
    messages = template_messages(
        chat.messages, parts=template.wants_parts, developer="developer" in template.text
    )
    if chat.continue_final_message:
        _mark(messages[-1])
    variables = {
        **settings.special_tokens,
        **chat.template_kwargs,
        "messages": messages,
        "tools": chat.tools,
        "documents": chat.documents,
        "add_generation_prompt": chat.add_generation_prompt,
    }
    rendered = template.render(variables, settings.max_tokens * CHARACTERS_PER_TOKEN)
    return _cut(rendered) if chat.continue_final_message else rendered


def _mark(message: dict[str, Any]) -> None:
    """Put the mark at the end of the message's text."""
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + HERE
    elif content:
        content[-1]["text"] += HERE
    else:
        raise InvalidArgumentError("the final message has no text to continue", field="messages")


def _cut(rendered: str) -> str:
    """Drop the mark and what the template wrote after it."""
    mark = HERE.rstrip()
    place = rendered.rfind(mark)
    if place < 0:
        raise InvalidArgumentError(
            "the final message cannot be continued: the chat template leaves out its text", field="messages"
        )
    kept = rendered[:place]
    return kept if rendered.startswith(HERE, place) else kept.rstrip()
