"""Logprobs in the three forms that OpenAI's and vLLM's clients read."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any, Final

from headrace.server.tasks.generation import Alternative, TokenDetail

MIN_LOGPROB: Final = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def chat_logprobs(details: Iterable[TokenDetail], *, as_ids: bool = False) -> dict[str, Any]:
    """Return a choice's ``logprobs`` of the chat API: an entry for each token, hidden ones included.

    Args:
        details: the tokens.
        as_ids: write ``token_id:123`` in place of texts (vLLM's ``return_tokens_as_token_ids``).
    """
    return {
        "content": [
            _entry(detail, as_ids)
            | {"top_logprobs": [_entry(alternative, as_ids) for alternative in detail.top]}
            for detail in details
        ]
    }


def _entry(token: TokenDetail | Alternative, as_ids: bool) -> dict[str, Any]:
    return {"token": _name(token, as_ids), "logprob": _finite(token.logprob), "bytes": list(token.raw)}


def prompt_logprobs(details: Sequence[TokenDetail]) -> list[dict[str, Any] | None]:
    """Return vLLM's ``prompt_logprobs``: for each prompt token an object by token id, null for the first."""
    found: list[dict[str, Any] | None] = []
    for detail in details:
        if detail.logprob is None:
            found.append(None)
            continue
        entries = {str(detail.token_id): _ranked(detail, detail.rank)}
        for rank, alternative in enumerate(detail.top, 1):
            entries.setdefault(str(alternative.token_id), _ranked(alternative, rank))
        found.append(entries)
    return found


def _ranked(token: TokenDetail | Alternative, rank: int) -> dict[str, Any]:
    return {"logprob": _finite(token.logprob), "rank": rank, "decoded_token": token.text}


class CompletionLogprobs:
    """Builds the ``logprobs`` of one choice of the completions API, in one go or piece by piece.

    Args:
        as_ids: write ``token_id:123`` in place of texts.
        skip_special: special tokens have no text, so they do not move the offset.
        echo: the prompt's text that the choice begins with.
    """

    def __init__(self, *, as_ids: bool = False, skip_special: bool = True, echo: str = "") -> None:
        self._as_ids = as_ids
        self._echo = echo
        self._skip_special = skip_special
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, details: Sequence[TokenDetail], prompt: Sequence[TokenDetail] = ()) -> dict[str, Any]:
        """Return the object of the next tokens, and before them of the prompt's where it is repeated.

        ``text_offset`` counts characters of the choice's whole text; the tokens of one character share the
        offset at which it starts. ``top_logprobs`` has the sampled token too, so one entry more than was
        asked for when it is not among the best.
        """
        offsets = self._echoed(prompt)
        for detail in details:
            offsets.append(self._offset)
            if not (detail.special and self._skip_special):
                self._offset += len(self._decoder.decode(detail.raw))
        details = (*prompt, *details)
        return {
            "text_offset": offsets,
            "token_logprobs": [
                None if detail.logprob is None else _finite(detail.logprob) for detail in details
            ],
            "tokens": [_name(detail, self._as_ids) for detail in details],
            "top_logprobs": [self._top(detail) for detail in details],
        }

    def _echoed(self, prompt: Sequence[TokenDetail]) -> list[int]:
        """Return the offsets of the prompt's tokens; special ones count where its text has them."""
        offsets: list[int] = []
        for detail in prompt:
            offsets.append(self._offset)
            if not detail.special or self._echo.startswith(detail.text, self._offset):
                self._offset += len(self._decoder.decode(detail.raw))
        if prompt:  # the generated text is decoded for itself
            self._offset = len(self._echo)
            self._decoder.reset()
        return offsets

    def _top(self, detail: TokenDetail) -> dict[str, float] | None:
        if detail.logprob is None:
            return None
        entries = {_name(entry, self._as_ids): _finite(entry.logprob) for entry in reversed(detail.top)}
        best_first = dict(reversed(entries.items()))  # of tokens with equal texts the likeliest stays
        best_first[_name(detail, self._as_ids)] = _finite(detail.logprob)
        return best_first


def _name(token: TokenDetail | Alternative, as_ids: bool) -> str:
    return f"token_id:{token.token_id}" if as_ids else token.text


def _finite(logprob: float | None) -> float:
    return MIN_LOGPROB if logprob is None else max(logprob, MIN_LOGPROB)
