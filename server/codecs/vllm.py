"""Bodies of vLLM's own paths, and of ``/tokenize`` as the other families know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.server.codecs.json_body import encode
from headrace.server.tasks.chat import Chat
from headrace.server.tasks.text_tokens import Token


class TokenizeBody(msgspec.Struct):
    """Body of ``/tokenize`` with ``prompt`` or ``messages``; None is absent."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class InputsBody(msgspec.Struct):
    """Body of ``/tokenize`` with ``inputs``, the form of Text Generation and Text Embeddings Inference."""

    inputs: str | list[str]
    model: str | None = None
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DetokenizeBody(msgspec.Struct):
    """Body of ``/detokenize``."""

    tokens: list[int]
    model: str | None = None


def conversation(body: TokenizeBody) -> Chat:
    """Return the conversation to tokenise."""
    continues = bool(body.continue_final_message)
    return Chat(
        body.messages or [],
        tools=body.tools or None,
        template=body.chat_template or "",
        add_generation_prompt=not continues
        if body.add_generation_prompt is None
        else body.add_generation_prompt,
        continue_final_message=continues,
        template_kwargs=body.chat_template_kwargs or {},
        add_special_tokens=bool(body.add_special_tokens),
    )


def tokens_json(ids: Sequence[int], strings: Sequence[str | None] | None, max_model_len: int) -> bytes:
    """Encode vLLM's answer; ``strings`` are the tokens as the vocabulary writes them."""
    return encode({"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": strings})


def nested_tokens_json(texts: Sequence[Sequence[Token]]) -> bytes:
    """Encode the tokens of each text as Text Embeddings Inference does."""
    return encode(
        [
            [
                {
                    "id": token.token_id,
                    "text": token.text,
                    "special": token.special,
                    "start": token.start,
                    "stop": token.stop,
                }
                for token in tokens
            ]
            for tokens in texts
        ]
    )


def tokenizer_info_json(special_tokens: Mapping[str, str], templates: Mapping[str, str]) -> bytes:
    """Encode what a tokenizer's configuration would say: special tokens and the chat template."""
    names = {"bos_token": None, "eos_token": None, "pad_token": None, "unk_token": None}
    return encode(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            **special_tokens,
            "chat_template": templates.get("default"),
        }
    )
