"""Embed with Cohere's clients of both API versions, synchronous and not; says what they parsed as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import cohere  # type: ignore[import-not-found]


def told(answer: Any) -> dict[str, Any]:
    found = answer.embeddings
    return {
        "id": answer.id,
        "kind": answer.response_type,
        "texts": answer.texts,
        "tokens": answer.meta.billed_units.input_tokens,
        "version": answer.meta.api_version.version,
        "float": found.float_,
        "int8": found.int8,
        "uint8": found.uint8,
        "binary": found.binary,
        "ubinary": found.ubinary,
        "base64": found.base64,
    }


async def asynchronous(url: str, asked: dict[str, Any]) -> dict[str, Any]:
    async with cohere.AsyncClientV2(api_key="-", base_url=url) as client:
        return told(await client.embed(**asked))


def main() -> None:
    """Arguments: base URL, JSON with ``model`` and ``texts``."""
    url, asked = sys.argv[1], json.loads(sys.argv[2])
    asked["input_type"] = "search_document"
    client = cohere.ClientV2(api_key="-", base_url=url)
    every = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    parts = [{"content": [{"type": "text", "text": text}]} for text in asked["texts"]]
    found = {
        "plain": told(client.embed(**asked)),
        "async": asyncio.run(asynchronous(url, asked)),
        "every": told(client.embed(**asked, embedding_types=every, output_dimension=64)),
        "inputs": told(client.embed(**{**asked, "texts": None}, inputs=parts)),
        "cut": told(client.embed(**{**asked, "texts": ["word " * 400]}, truncate="START", max_tokens=7)),
    }
    first = cohere.Client(api_key="-", base_url=url).embed(**asked)
    found["first"] = {"rows": first.embeddings, "kind": first.response_type, "texts": first.texts}
    for name, changes in (
        ("missing", {"model": "nope"}),
        ("images", {"texts": None, "images": ["data:image/png;base64,AAAA"]}),
        ("long", {"texts": ["word " * 400], "truncate": "NONE"}),
    ):
        try:
            client.embed(**{**asked, **changes})
        except (cohere.BadRequestError, cohere.NotFoundError) as error:
            found[name] = {"status": error.status_code, "message": error.body["error"]["message"]}
    sys.stdout.write(json.dumps(found))


main()
