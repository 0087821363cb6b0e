"""Uses models as langchain-huggingface does, and prints what it saw as JSON.

Usage: langchain_huggingface_client.py URL. Its embeddings take no URL, only names of the Hub, so they
are given a client that has one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_core.messages import HumanMessage
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint, HuggingFaceEndpointEmbeddings  # type: ignore[import-not-found]

PROMPT = "The capital of France is"
SENTENCES = ["Paris is the capital\nof France.", "Bananas are yellow."]
QUESTION = [HumanMessage("What is the capital of France?")]


async def asynchronous(model: Any, chat: Any, embeddings: Any) -> dict[str, Any]:
    return {
        "text": await model.ainvoke(PROMPT),
        "pieces": [piece async for piece in model.astream(PROMPT)],
        "chat": (await chat.ainvoke(QUESTION)).content,
        "vectors": [len(vector) for vector in await embeddings.aembed_documents(SENTENCES)],
    }


def main() -> None:
    url = sys.argv[1]
    generator = f"{url}/models/smollm2"
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "temperature": None, "top_k": None}
    model = HuggingFaceEndpoint(
        endpoint_url=generator, task="text-generation", top_p=None, typical_p=None, **options
    )
    sampling = HuggingFaceEndpoint(endpoint_url=generator, task="text-generation", max_new_tokens=6, seed=3)
    chat = ChatHuggingFace(llm=model, model_id="smollm2", max_tokens=8, temperature=0.0)
    embeddings = HuggingFaceEndpointEmbeddings(model="minilm")
    embeddings.client = InferenceClient(model=f"{url}/models/minilm")
    embeddings.async_client = AsyncInferenceClient(model=f"{url}/models/minilm")
    seen = {
        "text": model.invoke(PROMPT),
        "stop": model.invoke(PROMPT, stop=["is"]),
        "pieces": list(model.stream(PROMPT)),
        "sampled": [sampling.invoke(PROMPT), sampling.invoke(PROMPT)],
        "chat": chat.invoke(QUESTION).content,
        "chat_pieces": [chunk.content for chunk in chat.stream(QUESTION)],
        "vectors": [len(vector) for vector in embeddings.embed_documents(SENTENCES)],
        "query": len(embeddings.embed_query(SENTENCES[0])),
        "async": asyncio.run(asynchronous(model, chat, embeddings)),
    }
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
