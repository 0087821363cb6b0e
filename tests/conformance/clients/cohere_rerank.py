"""Rerank with Cohere's client, API version 1 and 2, synchronous and not; says what it parsed as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import cohere  # type: ignore[import-not-found]


def told(answer: Any) -> dict[str, Any]:
    results = [
        {
            "index": entry.index,
            "score": entry.relevance_score,
            "text": getattr(getattr(entry, "document", None), "text", None),
        }
        for entry in answer.results
    ]
    return {"id": answer.id, "results": results, "units": answer.meta.billed_units.search_units}


async def asynchronous(url: str, asked: dict[str, Any]) -> dict[str, Any]:
    async with cohere.AsyncClientV2(api_key="-", base_url=url) as client:
        return told(await client.rerank(**asked))


def main() -> None:
    """Arguments: base URL, JSON with ``model``, ``query`` and ``documents``."""
    url, asked = sys.argv[1], json.loads(sys.argv[2])
    first = cohere.Client(api_key="-", base_url=url)
    second = cohere.ClientV2(api_key="-", base_url=url)
    objects = [{"text": text} for text in asked["documents"]]
    found = {
        "v1": told(first.rerank(**asked, top_n=2, return_documents=True)),
        "v1_objects": told(first.rerank(**{**asked, "documents": objects}, top_n=2, return_documents=False)),
        "v2": told(second.rerank(**asked, top_n=2)),
        "v2_limited": told(second.rerank(**asked, max_tokens_per_doc=3)),
        "v2_async": asyncio.run(asynchronous(url, {**asked, "top_n": 2})),
    }
    try:
        second.rerank(**{**asked, "model": "nope"})
    except cohere.NotFoundError as error:
        found["missing"] = {"status": error.status_code, "message": error.body["error"]["message"]}
    try:
        second.rerank(**{**asked, "documents": []})
    except cohere.BadRequestError as error:
        found["empty"] = {"status": error.status_code}
    sys.stdout.write(json.dumps(found))


main()
