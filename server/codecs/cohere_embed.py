"""Cohere's embed, both versions: what a body asks for, and vectors in the number formats that it names.

Sources: Cohere's API reference (v1/embed, v2/embed) and vLLM's ``entrypoints/pooling/embed``. How Cohere
scales ``int8`` and ``uint8`` is not published; here the scale is the same for every model.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.server.codecs.json_body import convert, encode
from headrace.server.codecs.text_inputs import plain_texts
from headrace.server.codecs.vectors import json_vectors
from headrace.server.codecs.vllm_pooling import Reading
from headrace.server.errors import InputEmptyError, InvalidArgumentError, InvalidJsonError
from headrace.server.tasks.embed import unit_rows
from headrace.server.tasks.text_encoding import Direction

if TYPE_CHECKING:
    from headrace.server.codecs.openai_identity import Identity

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
Version = Literal["1", "2"]
"""Of Cohere's API."""

PROMPTS: Final = MappingProxyType(
    {
        "search_query": ("search_query", "query"),
        "search_document": ("search_document", "document", "passage"),
        "classification": ("classification",),
        "clustering": ("clustering",),
    }
)
"""Cohere's words for ``input_type``, and the names that models give to such prompts, best first."""


class _Part(msgspec.Struct):
    type: str = "text"
    text: str | None = None


class _Input(msgspec.Struct):
    content: list[_Part]


class CohereEmbedBody(msgspec.Struct):
    """What ``/v2/embed`` takes: ``texts`` or ``inputs``; None is absent. Other fields are ignored.

    Version 1 has ``texts`` only.
    """

    model: str | None = None
    texts: list[str] | None = None
    inputs: list[_Input] | None = None
    images: list[str] | None = None
    input_type: str | None = None
    embedding_types: list[EmbeddingType] | None = None
    output_dimension: int | None = None
    max_tokens: int | None = None
    truncate: Literal["NONE", "START", "END"] | None = None

    @property
    def types(self) -> list[str]:
        """The number formats of the answer, each once."""
        return list(dict.fromkeys(self.embedding_types or ("float",)))

    @property
    def reading(self) -> Reading:
        """How long inputs are treated: cut at their end, unless the body says something else.

        Raises:
            InvalidArgumentError: a limit below 1.
        """
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidArgumentError(
                f"`max_tokens` is {self.max_tokens}, expected at least 1", field="max_tokens"
            )
        direction = Direction.LEFT if self.truncate == "START" else Direction.RIGHT
        return Reading(self.truncate != "NONE", self.max_tokens, direction)


def read_body(value: Mapping[str, Any]) -> CohereEmbedBody:
    """Check the shape of a body.

    Raises:
        InvalidJsonError: a field has another type, or a word that is not one of its words.
    """
    return convert(dict(value), CohereEmbedBody, strict=False)


def read_texts(body: CohereEmbedBody) -> list[str]:
    """Return the texts to embed; the parts of one input are joined by line ends.

    Raises:
        InvalidJsonError: there are neither ``texts`` nor ``inputs``, or both.
        InvalidArgumentError: images.
        InputEmptyError: an empty list, or an input without text.
        BatchTooLargeError: more than ``MAX_INPUTS`` texts.
    """
    if body.images or body.input_type == "image":
        field = "images" if body.images else "input_type"
        raise InvalidArgumentError(f"`{field}`: images are not read, only text", field=field)
    if body.texts is None and body.inputs is None:
        raise InvalidJsonError("one of `texts` and `inputs` is needed", field="texts")
    if body.texts is not None and body.inputs is not None:
        raise InvalidJsonError("`texts` and `inputs` exclude each other: send one of them", field="texts")
    found = body.texts
    if found is None:
        found = [_joined(entry, f"inputs[{index}]") for index, entry in enumerate(body.inputs or ())]
    return plain_texts(found, field="inputs" if body.texts is None else "texts")


def prompt_name(input_type: str | None, prompts: Mapping[str, str]) -> str | None:
    """Return the name of the model's prompt for inputs of this type; None for its default.

    Args:
        input_type: one of Cohere's words, or the name of a prompt.
        prompts: the model's, by name.

    Raises:
        InvalidArgumentError: the word is neither.
    """
    if input_type is None or input_type in prompts:
        return input_type
    if input_type not in PROMPTS:
        known = ", ".join(dict.fromkeys([*PROMPTS, *prompts]))
        raise InvalidArgumentError(
            f"Unsupported input_type '{input_type}'. Supported values: {known}",
            field="input_type",
            value=input_type,
        )
    return next((name for name in PROMPTS[input_type] if name in prompts), None)


def embeddings_json(vectors: NDArray[np.float32], types: Sequence[str]) -> bytes:
    """Encode float32 [n, dim] as an object with one member for each of ``types``.

    ``float`` has the numbers and ``base64`` their bytes, little-endian. The others are made of the vectors at
    length 1: ``int8`` is 127 times a value, rounded, and ``uint8`` that plus 128; ``binary`` and ``ubinary``
    have one bit for each value, 1 where it is at least 0, the first in the highest bit of the first byte;
    ``binary`` writes a byte as its value minus 128.

    Raises:
        InvalidArgumentError: bits of vectors whose width is not a multiple of 8.
    """
    members = [encode(name) + b":" + _ENCODERS[name](vectors) for name in types]
    return b"{" + b",".join(members) + b"}"


def plain_floats(body: CohereEmbedBody, version: Version) -> bool:
    """Whether an answer has its vectors as a bare list of numbers: version 1, where no format is named."""
    return version == "1" and body.embedding_types is None


def answer_json(
    answer: Identity, embeddings: bytes, body: CohereEmbedBody, token_counts: Sequence[int], version: Version
) -> bytes:
    """Put an answer around the encoded ``embeddings``; texts are repeated where they were given so."""
    tokens = sum(token_counts)
    rest: dict[str, Any] = {} if body.texts is None else {"texts": body.texts}
    rest["meta"] = {
        "api_version": {"version": version},
        "billed_units": {"input_tokens": tokens},
        "tokens": {"input_tokens": tokens},
    }
    rest["response_type"] = "embeddings_floats" if plain_floats(body, version) else "embeddings_by_type"
    return encode({"id": answer.id})[:-1] + b',"embeddings":' + embeddings + b"," + encode(rest)[1:]


def _joined(entry: _Input, field: str) -> str:
    for part in entry.content:
        if part.type != "text":
            raise InvalidArgumentError(
                f"`{field}`: content of type '{part.type}' is not read, only text", field=field
            )
    found = [part.text for part in entry.content if part.text is not None]
    if not found:
        raise InputEmptyError(f"`{field}` has no text", field=field)
    return "\n".join(found)


def _int8(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.rint(unit_rows(vectors) * 127).astype(np.int8)


def _uint8(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    return _int8(vectors).view(np.uint8) ^ np.uint8(0x80)


def _bits(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    if vectors.shape[1] % 8:
        raise InvalidArgumentError(
            f"binary embeddings need a dimension that is a multiple of 8, not {vectors.shape[1]}",
            field="embedding_types",
        )
    return np.packbits(vectors >= 0, axis=1)


def _base64(vectors: NDArray[np.float32]) -> bytes:
    return encode([b64encode(row.tobytes()).decode("ascii") for row in vectors.astype("<f4", copy=False)])


_ENCODERS: Final[Mapping[str, Callable[[NDArray[np.float32]], bytes]]] = MappingProxyType(
    {
        "float": json_vectors,
        "int8": lambda vectors: encode(_int8(vectors)),
        "uint8": lambda vectors: encode(_uint8(vectors)),
        "binary": lambda vectors: encode((_bits(vectors) ^ np.uint8(0x80)).view(np.int8)),
        "ubinary": lambda vectors: encode(_bits(vectors)),
        "base64": _base64,
    }
)
