"""Uses models by their URLs as huggingface_hub does, blocking and async, and prints what it saw as JSON.

Usage: huggingface_endpoint.py URL. Runs with huggingface_hub 0.36 and 2.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient, __version__
from huggingface_hub.errors import HfHubHTTPError, TextGenerationError

HF: Any = "hf-inference"  # the only provider that has these two methods
PROMPT = "The capital of France is"
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
SAMPLED: dict[str, Any] = {"details": True, "seed": 7, "temperature": 0.7, "max_new_tokens": 6}
SENTENCES = ["Paris is the capital of France.", "Bananas are yellow."]
DIGITS: Any = {"type": "regex", "value": "[0-9]{3}"}


def details(answer: Any) -> dict[str, Any]:
    return {
        "text": answer.generated_text,
        "finish": answer.details.finish_reason,
        "count": answer.details.generated_tokens,
        "tokens": [token.text for token in answer.details.tokens],
        "prefill": len(answer.details.prefill),
        "seed": answer.details.seed,
    }


def tokens(events: list[Any]) -> dict[str, Any]:
    return {
        "tokens": [event.token.text for event in events],
        "text": events[-1].generated_text,
        "finish": events[-1].details.finish_reason,
        "earlier": [event.generated_text for event in events[:-1]],
    }


def labels(answer: Any) -> list[Any]:
    return [[entry.label, entry.score] for entry in answer]


def refused(call: Any) -> list[str]:
    try:
        call()
    except (HfHubHTTPError, TextGenerationError) as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def blocking(url: str) -> dict[str, Any]:
    generator = InferenceClient(model=f"{url}/models/smollm2", timeout=100)
    embedder = InferenceClient(model=f"{url}/models/minilm/", timeout=100)
    classifier = InferenceClient(model=f"{url}/models/sentiment", timeout=100)
    default = InferenceClient(model=url, timeout=100)
    asked = [InferenceClient(model=client.model, provider=HF) for client in (generator, embedder, default)]
    stream = generator.text_generation(PROMPT, stream=True, details=True, **GREEDY)
    return {
        "text": generator.text_generation(PROMPT, **GREEDY),
        "full": generator.text_generation(PROMPT, return_full_text=True, **GREEDY),
        "default": default.text_generation(PROMPT, **GREEDY),
        "details": details(generator.text_generation(PROMPT, details=True, **GREEDY)),
        "stream": tokens(list(stream)),
        "pieces": list(generator.text_generation(PROMPT, stream=True, **GREEDY)),
        "stop": generator.text_generation(PROMPT, stop=["is"], max_new_tokens=20, do_sample=False),
        "grammar": generator.text_generation("The answer is ", grammar=DIGITS, max_new_tokens=8),
        "sampled": details(generator.text_generation(PROMPT, **SAMPLED)),
        "vectors": embedder.feature_extraction(SENTENCES[0]).shape,
        "short": embedder.feature_extraction(SENTENCES[0], normalize=True, truncate=True).shape,
        "default_vectors": default.feature_extraction(SENTENCES[0], normalize=False).shape,
        "similarity": embedder.sentence_similarity(SENTENCES[0], other_sentences=SENTENCES),
        "default_similarity": default.sentence_similarity(SENTENCES[0], other_sentences=SENTENCES),
        "labels": labels(classifier.text_classification("this is good!")),
        "top": labels(classifier.text_classification("this is good!", top_k=2, function_to_apply="sigmoid")),
        "info": [client.get_endpoint_info() for client in asked],
        "healthy": [client.health_check() for client in asked],
        "chat": generator.chat_completion(
            [{"role": "user", "content": "What is the capital of France?"}], max_tokens=8, temperature=0
        )
        .choices[0]
        .message.content,
        "illegal": refused(lambda: generator.text_generation(PROMPT, temperature=-1.0)),
        "answering": refused(lambda: embedder.question_answering(question="Who?", context="You.")),
        "zero_shot": refused(lambda: classifier.zero_shot_classification("a", candidate_labels=["b"])),
        "summary": refused(lambda: generator.summarization("a", clean_up_tokenization_spaces=True)),
        "translation": refused(lambda: generator.translation("a", src_lang="en", tgt_lang="fr")),
        "speech": refused(lambda: embedder.automatic_speech_recognition(b"RIFF0000WAVE")),
        "entities": refused(lambda: classifier.token_classification("a", aggregation_strategy="simple")),
        "mask": refused(lambda: classifier.fill_mask("a [MASK]", targets=["b"])),
        "vectors_of_a_generator": refused(lambda: generator.sentence_similarity("a", other_sentences=["b"])),
        "unknown": refused(lambda: InferenceClient(model=f"{url}/models/nope").text_generation("a")),
    }


async def asynchronous(url: str) -> dict[str, Any]:
    generator = AsyncInferenceClient(model=f"{url}/models/smollm2", timeout=100)
    embedder = AsyncInferenceClient(model=f"{url}/models/minilm", timeout=100)
    classifier = AsyncInferenceClient(model=f"{url}/models/sentiment", timeout=100)
    asked = AsyncInferenceClient(model=generator.model, provider=HF)
    stream = await generator.text_generation(PROMPT, stream=True, details=True, **GREEDY)
    events = [event async for event in stream]
    vectors, similarity, found = await asyncio.gather(
        embedder.feature_extraction(SENTENCES[0]),
        embedder.sentence_similarity(SENTENCES[0], other_sentences=SENTENCES),
        classifier.text_classification("this is good!"),
    )
    return {
        "text": await generator.text_generation(PROMPT, **GREEDY),
        "details": details(await generator.text_generation(PROMPT, details=True, **GREEDY)),
        "stream": tokens(events),
        "vectors": vectors.shape,
        "similarity": similarity,
        "labels": labels(found),
        "info": await asked.get_endpoint_info(),
        "healthy": await asked.health_check(),
    }


def main() -> None:
    url = sys.argv[1]
    seen = {"version": __version__, "sync": blocking(url), "async": asyncio.run(asynchronous(url))}
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
