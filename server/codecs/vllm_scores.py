"""Bodies of ``/score`` and of ``/rerank`` with ``documents``: the forms of vLLM, Jina and Cohere.

Sources: vLLM's ``entrypoints/pooling/scoring``, Cohere's rerank v1 and v2, Jina's rerank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from headrace.server.codecs.json_body import encode
from headrace.server.errors import InputEmptyError, InvalidArgumentError, InvalidJsonError
from headrace.server.tasks.rerank import Ranking

if TYPE_CHECKING:
    from headrace.server.codecs.openai_identity import Identity

PAIR_FIELDS: Final = (
    ("data_1", "data_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("text_1", "text_2"),
)


class ScoringBody(msgspec.Struct):
    """The options of scores beside those of ``PoolingBody``; None is absent.

    ``rank_fields`` are the members of a document, an object, that are read (Cohere); ``truncate`` gives leave
    to cut what is too long.
    """

    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    truncate: bool | None = None

    @property
    def query_limit(self) -> int | None:
        """At most this many tokens of a query.

        Raises:
            InvalidArgumentError: a number below 0.
        """
        return _limit("max_tokens_per_query", self.max_tokens_per_query)

    @property
    def text_limit(self) -> int | None:
        """At most this many tokens of a document.

        Raises:
            InvalidArgumentError: a number below 0.
        """
        return _limit("max_tokens_per_doc", self.max_tokens_per_doc)

    @property
    def cuts(self) -> bool:
        """Whether what is too long is cut instead of refused; Cohere's limit of documents asks for it too."""
        return bool(self.truncate) or bool(self.max_tokens_per_doc)

    @property
    def best(self) -> int | None:
        """How many of the best documents are wanted; None (0 on the wire) for all.

        Raises:
            InvalidArgumentError: a number below 0.
        """
        return _limit("top_n", self.top_n)


class Documents(NamedTuple):
    """What a rerank body asks for: ``given`` has the documents as they came, ``texts`` what is read."""

    query: str
    texts: list[str]
    given: list[Any]


def read_pairs(value: Mapping[str, Any]) -> tuple[list[str], list[str], str]:
    """Return the first and the second texts of a score body, and what it calls the first ones.

    Raises:
        InvalidJsonError: none of the pairs of fields is there, or one is not of texts.
    """
    for first, second in PAIR_FIELDS:
        if value.get(first) is not None and value.get(second) is not None:
            return _texts(value[first], first, ()), _texts(value[second], second, ()), first
    known = ", ".join(f"`{first}` and `{second}`" for first, second in PAIR_FIELDS)
    raise InvalidJsonError(f"the texts to score are missing: send {known}", field="data_1")


def read_documents(value: Mapping[str, Any], body: ScoringBody) -> Documents:
    """Return the query and the documents of a rerank body.

    Raises:
        InvalidJsonError: a field is missing or has another shape.
        InputEmptyError: the query is empty, or there are no documents.
    """
    for field in ("query", "documents"):
        if value.get(field) is None:
            raise InvalidJsonError(f"`{field}` is missing", field=field)
    query = _text(value["query"], "query", ())
    if not query:
        raise InputEmptyError("`query` cannot be empty", field="query")
    given = value["documents"]
    found = _texts(given, "documents", body.rank_fields or ())
    if not found:
        raise InputEmptyError("`documents` cannot be empty", field="documents")
    return Documents(query, found, given if isinstance(given, list) else [given])


def _limit(name: str, value: int | None) -> int | None:
    if value is not None and value < 0:
        raise InvalidArgumentError(f"`{name}` is {value}, expected at least 0", field=name, value=str(value))
    return value or None


def _texts(given: Any, field: str, rank_fields: Sequence[str]) -> list[str]:
    if not isinstance(given, list):
        return [_text(given, field, rank_fields)]
    return [_text(entry, f"{field}[{index}]", rank_fields) for index, entry in enumerate(given)]


def _text(given: Any, field: str, rank_fields: Sequence[str]) -> str:
    """Read a text: a string, an object with ``text``, or one with ``content`` of text parts (vLLM)."""
    if isinstance(given, str):
        return given
    if isinstance(given, dict):
        if rank_fields:
            return "\n".join(f"{name}: {given[name]}" for name in rank_fields if name in given)
        if isinstance(given.get("text"), str):
            return str(given["text"])
        parts = given.get("content")
        if isinstance(parts, list) and parts:
            return "\n".join(_part(part, field) for part in parts)
        if isinstance(parts, str):
            return parts
    raise InvalidJsonError(
        f"`{field}`: expected a string, or an object with `text`; other media are not read", field=field
    )


def _part(part: Any, field: str) -> str:
    if isinstance(part, dict) and part.get("type", "text") != "text":
        raise InvalidArgumentError(
            f"`{field}`: content of type '{part['type']}' is not read, only text", field=field
        )
    if not isinstance(part, dict) or not isinstance(part.get("text"), str):
        raise InvalidJsonError(f"`{field}`: expected parts of `content` with a string `text`", field=field)
    return str(part["text"])


def results_json(result: Ranking, documents: Documents, answer: Identity, *, echo: bool) -> bytes:
    """Encode what a rerank body with ``documents`` is answered.

    ``document`` is ``{"text", "multi_modal": null}`` for a text, as vLLM writes it; an object comes back as
    it was given. ``meta`` has what Cohere's clients read.
    """
    tokens = sum(result.token_counts)
    results: list[dict[str, Any]] = []
    for index, score in zip(result.order, result.scores, strict=True):
        entry: dict[str, Any] = {"index": index, "relevance_score": score}
        if echo:
            given = documents.given[index]
            own = given if isinstance(given, dict) else {"text": given}
            entry["document"] = {"multi_modal": None, **own}
        results.append(entry)
    return encode(
        {
            "id": answer.id,
            "model": answer.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": tokens}},
            "results": results,
        }
    )
