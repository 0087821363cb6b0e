"""``/generate`` as vLLM's demo server has it: a prompt and sampling fields in, prompts with outputs out.

A stream is JSON objects that each end in a NUL byte; each has the whole text so far. MindIE's server, which
knows the same body, puts a space between the prompt and the output and streams only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.server.codecs.families import FAMILIES
from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openai_sampling import Wanted
from headrace.server.codecs.tgi_errors import error_json

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Grammar
    from headrace.server.errors import HeadraceError
    from headrace.server.tasks.generation import Delta

END: Final = b"\0"


class DemoBody(msgspec.Struct):
    """Fields beside those of :class:`SamplingBody` and structured outputs; None is absent."""

    prompt: str
    stream: bool | None = None
    model: str | None = None
    max_tokens: int | None = None
    best_of: int | None = None


def wanted(body: DemoBody, grammar: Grammar | None) -> Wanted:
    """Return what the body asks of the engine; vLLM's own default length where it says none."""
    default = FAMILIES["vllm"].default("max_tokens")
    tokens = body.max_tokens
    if tokens is None and default is not None:
        tokens = int(default)
    return Wanted(tokens, grammar=grammar, best_of=body.best_of)


def texts_json(texts: Sequence[str]) -> bytes:
    """Encode the prompts with their outputs."""
    return encode({"text": texts})


def error_piece(error: HeadraceError) -> bytes:
    """Return the end of a stream that failed."""
    return error_json(error)[1] + END


class DemoPieces:
    """Makes the objects of a stream.

    Args:
        prompt: stands before every output.
        samples: how many outputs there are.
    """

    def __init__(self, prompt: str, samples: int) -> None:
        self._texts = [prompt] * samples

    def piece(self, delta: Delta) -> bytes:
        """Encode all texts with what is new; b"" where nothing is."""
        if not delta.text and delta.finish is None:
            return b""
        self._texts[delta.sample] += delta.text
        return texts_json(self._texts) + END
