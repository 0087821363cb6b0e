"""What vLLM's pooling routes and its embeddings route read: texts, token ids or conversations, and how.

Source: vLLM's OpenAI-compatible server, request fields of ``entrypoints/pooling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from headrace.server.codecs.json_body import convert
from headrace.server.codecs.text_inputs import Inputs, check_count, kept_tokens, texts
from headrace.server.errors import InputEmptyError, InvalidArgumentError, InvalidJsonError
from headrace.server.repository.model import Task
from headrace.server.tasks.chat import Chat
from headrace.server.tasks.text_encoding import Direction, Text, TokenIds

CONVERSATIONS: Final = "messages"


class PoolingBody(msgspec.Struct):
    """The options that all pooling routes share; None is absent. Other fields are ignored."""

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    dimensions: int | None = None
    encoding_format: str | None = None
    embed_dtype: str | None = None
    endianness: str | None = None
    task: str | None = None
    request_id: str | None = None

    @property
    def direction(self) -> Direction:
        """Which end of a text is cut."""
        return Direction.LEFT if self.truncation_side == "left" else Direction.RIGHT


class ChatBody(msgspec.Struct):
    """The options of inputs that are conversations; None is absent."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TextsBody(msgspec.Struct):
    """The inputs that are texts or token ids."""

    input: Inputs


class Reading(NamedTuple):
    """How long inputs are treated.

    ``truncate`` cuts what has more tokens than ``limit``, or than the model takes where that is None.
    """

    truncate: bool | None
    limit: int | None
    direction: Direction


class Read(NamedTuple):
    """What a body gives to read: either ``texts`` or ``chats``, the other is empty.

    ``special`` says whether the tokenizer adds its special tokens.
    """

    texts: list[Text]
    chats: list[Chat]
    special: bool


def read_inputs(value: Mapping[str, Any], options: PoolingBody) -> Read:
    """Return the inputs of a body: ``input``, ``messages``, or conversations in the place of ``input``.

    Token ids are read as they are, without a prompt or special tokens.

    Raises:
        InvalidJsonError: there is neither, or one of a wrong shape.
        InputEmptyError: an empty list.
        BatchTooLargeError: more than ``MAX_INPUTS`` inputs.
    """
    given = value.get(CONVERSATIONS)
    if given is None:
        given = value.get("input")
        if given is None:
            raise InvalidJsonError("one of `input` and `messages` is needed", field="input")
        if not _holds_messages(given):
            found = texts(convert({"input": given}, TextsBody).input, field="input")
            own: list[Text] = [TokenIds(entry) if isinstance(entry, list) else entry for entry in found]
            return Read(own, [], options.add_special_tokens is not False)
    body = convert(dict(value), ChatBody, strict=False)
    special = bool(body.add_special_tokens)
    return Read([], [_chat(messages, body) for messages in _conversations(given)], special)


def reading(body: PoolingBody, most: int, *, truncate: bool = False) -> Reading:
    """Return how a body treats long inputs: it cuts them where it says how or says so, else refuses them.

    Args:
        body: the options.
        most: the longest input of the model, in tokens.
        truncate: another field, or the route, gives leave to cut.

    Raises:
        InvalidArgumentError: ``truncate_prompt_tokens`` is out of range.
    """
    keep = body.truncate_prompt_tokens
    return Reading(keep is not None or truncate, kept_tokens(keep, most), body.direction)


def pooling_task(wanted: str | None, own: Task, *, tokens: bool) -> str:
    """Return what ``/pooling`` gives: ``token_embed``, ``embed`` or ``classify``.

    Args:
        wanted: ``task`` of the body; None for the default: token vectors of an embedder (one vector where it
            has no others), probabilities of a classifier.
        own: the model's task.
        tokens: whether it has a vector for each token.

    Raises:
        InvalidArgumentError: the model cannot do that.
    """
    supported: tuple[str, ...] = ("classify",)
    if own is Task.EMBED:
        supported = ("token_embed", "embed") if tokens else ("embed",)
    if wanted is None:
        return supported[0]
    if wanted not in supported:
        raise InvalidArgumentError(
            f"Task {wanted} is not supported, it must be one of {', '.join(supported)}.", field="task"
        )
    return wanted


def _holds_messages(given: Any) -> bool:
    """Whether an ``input`` is a conversation, or a list of them."""
    first = given[0] if isinstance(given, list) and given else None
    first = first[0] if isinstance(first, list) and first else first
    return isinstance(first, dict)


def _conversations(given: Any) -> list[list[dict[str, Any]]]:
    if not isinstance(given, list):
        raise InvalidJsonError("`messages`: expected a list of messages, or of such lists", field="messages")
    if not given:
        raise InputEmptyError("`messages` cannot be empty", field="messages")
    batch = given if all(isinstance(entry, list) for entry in given) else [given]
    check_count(len(batch))
    return batch


def _chat(messages: list[dict[str, Any]], body: ChatBody) -> Chat:
    return Chat(
        messages,
        template=body.chat_template or "",
        add_generation_prompt=bool(body.add_generation_prompt),
        continue_final_message=bool(body.continue_final_message),
        template_kwargs=body.chat_template_kwargs or {},
    )
