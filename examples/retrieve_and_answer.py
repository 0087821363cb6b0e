"""Three models of one server answer a question from documents: embed, rerank, generate."""

from __future__ import annotations

import sys
from typing import Any, Final

import requests

DOCUMENTS: Final = (
    "Headrace keeps a model in a worker process of its own.",
    "A headrace is the channel that brings water to a mill's wheel.",
    "Bananas are rich in potassium.",
    "Envoy is a proxy for services.",
)
QUESTION: Final = "What is a headrace?"
KEPT: Final = 2


def main(url: str) -> None:
    """Find the documents that fit the question, order them, and have the answer written."""
    with requests.Session() as session:

        def ask(path: str, **body: Any) -> Any:
            answer = session.post(f"{url}{path}", json=body, timeout=60)
            answer.raise_for_status()
            return answer.json()

        question, *documents = ask("/embed", inputs=[QUESTION, *DOCUMENTS])
        scores = [sum(a * b for a, b in zip(question, vector, strict=True)) for vector in documents]
        near = [text for _, text in sorted(zip(scores, DOCUMENTS, strict=True), reverse=True)[: KEPT + 1]]
        ranks = ask("/rerank", query=QUESTION, texts=near)
        facts = "\n".join(near[rank["index"]] for rank in ranks[:KEPT])
        print(facts)
        prompt = f"{facts}\nUse only these facts: {QUESTION}"
        chat = ask(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=48,
        )
        print("->", chat["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
