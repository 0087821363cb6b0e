"""The OpenAI client against Headrace: a streamed chat, then an answer that must match a JSON schema."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from openai import OpenAI

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 16}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}


def main(url: str) -> None:
    """Chat with the server's default model."""
    with OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        stream = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=24,
            stream=True,
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()
        answer = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Describe the city of Paris in JSON."}],
            temperature=0,
            max_tokens=48,
            response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        )
        print(json.loads(answer.choices[0].message.content or ""))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
