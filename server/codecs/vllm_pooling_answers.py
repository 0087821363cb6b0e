"""What vLLM's pooling routes answer: vectors in every number format, probabilities, scores, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from headrace.server.codecs import openai_errors
from headrace.server.codecs.json_body import encode
from headrace.server.errors import HeadraceError, InputTooLongError, InvalidArgumentError

if TYPE_CHECKING:
    from headrace.server.codecs.openai_identity import Identity
    from headrace.server.codecs.vector_formats import VectorFormat
    from headrace.server.tasks.classify import Classifications

METADATA: Final = "metadata"
_TASKS_WORD: Final = "inputs"
"""What errors of tasks call the texts that they were given."""
MAX_METADATA_BYTES: Final = 6 << 10
"""The largest header of a ``bytes`` answer: clients and proxies take 8 KiB of headers and more."""


def usage(token_counts: Sequence[int]) -> dict[str, Any]:
    """Return what a request is counted as: it only has input."""
    tokens = sum(token_counts)
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def list_json(answer: Identity, data: bytes, token_counts: Sequence[int]) -> bytes:
    """Put an answer around ``data``, the encoded array of its entries."""
    rest = encode({"usage": usage(token_counts)})
    return encode(answer.common("list"))[:-1] + b',"data":' + data + b"," + rest[1:]


def vectors_bytes(
    rows: Sequence[NDArray[np.float32]], form: VectorFormat, answer: Identity, token_counts: Sequence[int]
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Return the vectors one after another, and the header that says what is where.

    There is no header with ``bytes_only``.

    Raises:
        InvalidArgumentError: there are so many vectors that the header would be too large for a client.
    """
    packed = [form.pack(row) for row in rows]
    if form.encoding == "bytes_only":
        return b"".join(packed), ()
    entries = []
    start = 0
    for index, (row, data) in enumerate(zip(rows, packed, strict=True)):
        entries.append(
            {
                "index": index,
                "embed_dtype": form.dtype,
                "endianness": form.endianness,
                "start": start,
                "end": start + len(data),
                "shape": list(row.shape),
            }
        )
        start += len(data)
    known = {"id": answer.id, "created": answer.created, "model": answer.model}
    header = json.dumps({**known, "data": entries, "usage": usage(token_counts)}, separators=(",", ":"))
    if len(header) > MAX_METADATA_BYTES:
        raise InvalidArgumentError(
            f"the metadata of {len(rows)} vectors would be a header of {len(header)} bytes, more than "
            f"{MAX_METADATA_BYTES}; ask for encoding_format 'bytes_only', or send fewer inputs",
            field="encoding_format",
        )
    return b"".join(packed), ((METADATA, header),)


def classes_json(result: Classifications, answer: Identity) -> bytes:
    """Encode the probabilities of every input in the order of the model's classes, and the best label."""
    entries = []
    rows = result.by_class()
    for index in range(len(rows)):
        label = result.labels[result.order[index][0]]
        entries.append({"index": index, "label": label, "probs": rows[index], "num_classes": rows.shape[1]})
    return list_json(answer, encode(entries), result.token_counts)


def scores_json(values: NDArray[np.float32], token_counts: Sequence[int], answer: Identity) -> bytes:
    """Encode the score of every pair."""
    entries = [{"index": index, "object": "score", "score": value} for index, value in enumerate(values)]
    return list_json(answer, encode(entries), token_counts)


def error_json(error: HeadraceError, inputs: str = "input") -> tuple[int, bytes]:
    """Return the HTTP status and the body of an error: vLLM's object, in the words of its pooling routes.

    Args:
        error: what happened.
        inputs: what the body calls its inputs.
    """
    found = openai_errors.error_object(error)
    found["message"] = message_of(error, found["message"], inputs)
    if found["param"] == _TASKS_WORD:
        found["param"] = inputs
    return found["code"], encode({"error": found})


def message_of(error: HeadraceError, text: str, inputs: str = "input") -> str:
    """Return what ``text``, the message of an error, says in the words of clients of these routes.

    Proxies and LangChain recognise the sentence about the context length and the code in it.

    Args:
        error: what happened.
        text: what it is called elsewhere.
        inputs: what the body calls its inputs.
    """
    known = error.metadata
    if not isinstance(error, InputTooLongError):
        same = known.get("field") != _TASKS_WORD
        return text if same else text.replace(f"`{_TASKS_WORD}`", f"`{inputs}`")
    if "max_tokens" not in known or not ("tokens" in known or "characters" in known):
        return text  # a conversation or a prompt, in these words already
    whose = "This request's" if "own_limit" in known else "This model's"
    given = f"{known['tokens']} input tokens" if "tokens" in known else f"{known['characters']} characters"
    return (
        f"{whose} maximum context length is {known['max_tokens']} tokens. However, your prompt contains "
        f"{given}, which exceeds this limit even without any output tokens. Please reduce the length of the "
        "input prompt. (context_length_exceeded)"
    )
