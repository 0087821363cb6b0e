"""Uses a generator as the ``text-generation`` package does, and prints what it saw as JSON.

Usage: text_generation_client.py URL-OF-THE-MODEL. The package's streamed chat is left out: it reads
``data: [DONE]`` as JSON, so it fails with every server of the OpenAI API.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from text_generation import AsyncClient, Client  # type: ignore[import-not-found]
from text_generation.errors import NotFoundError, ValidationError  # type: ignore[import-not-found]
from text_generation.types import Grammar, GrammarType, Message  # type: ignore[import-not-found]

PROMPT = "The capital of France is"
DIGITS = Grammar(type=GrammarType.Regex, value="[0-9]{3}")
QUESTION = [Message(role="user", content="What is the capital of France?")]


def described(answer: Any) -> dict[str, Any]:
    return {
        "text": answer.generated_text,
        "finish": answer.details.finish_reason.value,
        "tokens": [token.text for token in answer.details.tokens],
        "prefill": [token.id for token in answer.details.prefill],
        "seed": answer.details.seed,
        "best_of": len(answer.details.best_of_sequences or []),
        "top": [len(entry) for entry in answer.details.top_tokens or []],
    }


def refused(call: Any) -> list[str]:
    try:
        call()
    except (NotFoundError, ValidationError) as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def blocking(url: str) -> dict[str, Any]:
    client = Client(url, timeout=100)
    missing = Client(url.replace("smollm2", "nope"), timeout=100)
    events = list(client.generate_stream(PROMPT, max_new_tokens=6))
    sampled = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 4}
    return {
        "greedy": described(client.generate(PROMPT, max_new_tokens=6)),
        "full": client.generate(PROMPT, max_new_tokens=6, return_full_text=True).generated_text,
        "stop": client.generate(PROMPT, max_new_tokens=20, stop_sequences=["is"]).generated_text,
        "grammar": client.generate("The answer is ", max_new_tokens=8, grammar=DIGITS).generated_text,
        "best": described(client.generate(PROMPT, best_of=2, **sampled)),
        "top": described(client.generate(PROMPT, max_new_tokens=3, top_n_tokens=2)),
        "stream": [event.token.text for event in events],
        "streamed": events[-1].generated_text,
        "details": events[-1].details.finish_reason.value,
        "chat": client.chat(QUESTION, max_tokens=8, temperature=0.0, seed=1).choices[0].message.content,
        "too_long": refused(lambda: client.generate(PROMPT, max_new_tokens=10**6)),
        "missing": refused(lambda: missing.generate(PROMPT)),
    }


async def asynchronous(url: str) -> dict[str, Any]:
    client = AsyncClient(url, timeout=100)
    events = [event async for event in client.generate_stream(PROMPT, max_new_tokens=6)]
    answer = await client.generate(PROMPT, max_new_tokens=6)
    chat = await client.chat(QUESTION, max_tokens=8, temperature=0.0, seed=1)
    try:
        await client.generate(PROMPT, max_new_tokens=10**6)
    except ValidationError as error:
        refusal = str(error)
    return {
        "greedy": described(answer),
        "stream": [event.token.text for event in events],
        "streamed": events[-1].generated_text,
        "chat": chat.choices[0].message.content,
        "too_long": refusal,
    }


def main() -> None:
    url = sys.argv[1]
    json.dump({"sync": blocking(url), "async": asyncio.run(asynchronous(url))}, sys.stdout)


if __name__ == "__main__":
    main()
