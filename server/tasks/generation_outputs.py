"""Generated text as tensors: one row for each sample.

Names, shapes and meanings are those of Triton's vLLM backend, ``cum_log_probs`` and ``output_log_probs``
those of its TensorRT-LLM backend, and ``details`` is the Open Inference Protocol's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import orjson

from headrace.runtimes.datatypes import BYTES, NUMPY_TYPES, pack_bytes
from headrace.server.tasks.generation import Delta, Sample
from headrace.server.tasks.tensors import OutputTensor

if TYPE_CHECKING:
    from headrace.server.tasks.generation import TokenDetail

Rows = Sequence[Delta | Sample | None]
"""What is new of each sample, or all of it; None where there is nothing."""

JSON_OUTPUTS: Final = frozenset({"details"})
"""Outputs whose elements are JSON texts that a JSON protocol may write as what they say."""

SCORES: Final = frozenset({"cumulative_logprob", "logprobs", "cum_log_probs", "output_log_probs", "details"})
"""Outputs that need the tokens' logprobs."""


class TextOutputs:
    """Makes the outputs of one request's responses.

    Args:
        prompt_tokens: length of the prompt.
        samples: how many there are.
        prefix: put before each text.
        extras: outputs beside the text.
        names: outputs that were asked for; empty for all.
        ranked: ``logprobs`` says something, for the request asked for alternatives.
    """

    def __init__(
        self,
        prompt_tokens: int,
        samples: int,
        prefix: str,
        extras: Sequence[str],
        names: frozenset[str],
        *,
        ranked: bool,
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._sums = (0.0,) * samples
        self._prefix = prefix
        self._extras = [(name, EXTRAS[name]) for name in extras if not names or name in names]
        self._text = not names or "text_output" in names
        self._ranked = ranked

    def tensors(self, rows: Rows) -> list[OutputTensor]:
        """Return the outputs of one response; call it once for every response, in order."""
        outputs: list[OutputTensor] = []
        if self._text:
            texts = [self._prefix + row.text if row is not None else "" for row in rows]
            outputs.append(OutputTensor("text_output", BYTES, (len(texts),), pack_bytes(texts)))
        if self._extras:
            added = zip(self._sums, rows, strict=True)
            self._sums = tuple(total + sum(_logprobs(row)) for total, row in added)
            news = _News(rows, self._prompt_tokens, self._sums, self._ranked)
            outputs += [OutputTensor(name, *make(news)) for name, make in self._extras]
        return outputs


class _News(NamedTuple):
    """What one response is made of; ``sums`` are the logprobs of each sample's tokens so far, added up."""

    rows: Rows
    prompt_tokens: int
    sums: Sequence[float]
    ranked: bool


Values = tuple[str, tuple[int, ...], bytes]
"""Datatype, shape and raw data."""


def _bytes(elements: Sequence[str | bytes]) -> Values:
    return BYTES, (len(elements),), pack_bytes(elements)


def _numbers(datatype: str, values: Any) -> Values:
    array = np.asarray(values, NUMPY_TYPES[datatype])
    return datatype, array.shape, array.tobytes()


def _finish_reason(news: _News) -> Values:
    """Why each sample ended; ``None`` while it has not."""
    return _bytes([str(row.finish if row is not None else None) for row in news.rows])


def _cumulative(news: _News) -> Values:
    return _numbers("FP32", news.sums)


def _token_logprobs(news: _News) -> Values:
    """The logprob of each new token, (samples, tokens); short rows end in zeros."""
    found = [_logprobs(row) for row in news.rows]
    longest = max(map(len, found))
    return _numbers("FP32", [row + [0.0] * (longest - len(row)) for row in found])


def _ranked_logprobs(news: _News) -> Values:
    """For each sample a JSON list of objects, token id → logprob, rank, text; ``null`` if not asked for."""
    if not news.ranked:
        return _bytes(["null"] * len(news.rows))
    rows = [[_ranks(token) for token in row.details] if row is not None else [] for row in news.rows]
    return _bytes([orjson.dumps(row) for row in rows])


def _input_tokens(news: _News) -> Values:
    return _numbers("UINT32", [news.prompt_tokens])


def _output_tokens(news: _News) -> Values:
    """How many tokens of each sample are new."""
    return _numbers("UINT32", [len(row.token_ids) if row is not None else 0 for row in news.rows])


def _details(news: _News) -> Values:
    """For each sample a JSON object: why it ended, how many tokens are new, and which."""
    return _bytes([b"null" if row is None else orjson.dumps(_detail(row)) for row in news.rows])


EXTRAS: Final[Mapping[str, Callable[[_News], Values]]] = MappingProxyType(
    {
        "finish_reason": _finish_reason,
        "cumulative_logprob": _cumulative,
        "logprobs": _ranked_logprobs,
        "num_input_tokens": _input_tokens,
        "num_output_tokens": _output_tokens,
        "cum_log_probs": _cumulative,
        "output_log_probs": _token_logprobs,
        "details": _details,
    }
)
"""Outputs beside the text, in the order of the model's, and what makes each."""


def _logprobs(row: Delta | Sample | None) -> list[float]:
    return [] if row is None else [token.logprob for token in row.details if token.logprob is not None]


def _ranks(token: TokenDetail) -> dict[str, Any]:
    """Return the token and its alternatives as vLLM describes them."""
    found = {
        str(other.token_id): {"logprob": other.logprob, "rank": rank, "decoded_token": other.text}
        for rank, other in enumerate(token.top, 1)
    }
    chosen = {"logprob": token.logprob, "rank": token.rank, "decoded_token": token.text}
    return {str(token.token_id): chosen} | found


def _detail(row: Delta | Sample) -> dict[str, Any]:
    """Return the protocol's ``details``: what it calls logprobs are the tokens."""
    reason = {None: None, "length": "length"}.get(row.finish, "eos_token" if row.eos else "stop_sequence")
    return {
        "finish_reason": reason,
        "generated_tokens": len(row.token_ids),
        "logprobs": [
            {"id": token.token_id, "text": token.text, "logprob": token.logprob, "special": token.special}
            for token in row.details
        ],
    }
