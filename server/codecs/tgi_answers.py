"""Answers of Text Generation Inference that come at once: the text, its details, and the headers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.server.codecs.json_body import encode

if TYPE_CHECKING:
    from headrace.server.codecs.http_headers import Headers
    from headrace.server.tasks.generation import FinishReason, Generation, Sample, TokenDetail
    from headrace.server.tasks.text_tokens import Token


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished output and the seed that it was drawn with; None where nothing was drawn."""

    generation: Generation
    seed: int | None

    @property
    def sample(self) -> Sample:
        """The output."""
        return self.generation.samples[0]

    @property
    def mean_logprob(self) -> float:
        """By which outputs are compared; an output has at least one token."""
        logprobs = [detail.logprob or 0.0 for detail in self.sample.details]
        return sum(logprobs) / max(1, len(logprobs))


def finish_reason(finish: FinishReason, stop: str | int | None) -> str:
    """Return TGI's word for why an output ended."""
    if finish == "length":
        return "length"
    return "eos_token" if stop is None else "stop_sequence"


def best_first(answers: Sequence[Answer]) -> list[Answer]:
    """Order by mean log-probability of the tokens, the highest first."""
    return sorted(answers, key=lambda answer: answer.mean_logprob, reverse=True)


def generate_object(
    answers: Sequence[Answer], prefix: str, special: frozenset[int], *, details: bool, top: bool
) -> dict[str, Any]:
    """Return the answer to a generate request.

    Args:
        answers: what was generated, the best first.
        prefix: put before each text.
        special: ids of the vocabulary's special tokens.
        details: tell how the text came about.
        top: tell the alternatives to each token too.
    """
    best, *others = answers
    found: dict[str, Any] = {"generated_text": prefix + best.sample.text}
    if details:
        told = _details(best, special, top=top)
        if others:
            told["best_of_sequences"] = [
                {"generated_text": prefix + other.sample.text, **_details(other, special, top=top)}
                for other in others
            ]
        found["details"] = told
    return found


def generate_json(found: dict[str, Any], *, listed: bool) -> bytes:
    """Encode an answer; ``POST /`` wants it in a list."""
    return encode([found] if listed else found)


def _details(answer: Answer, special: frozenset[int], *, top: bool) -> dict[str, Any]:
    sample = answer.sample
    found: dict[str, Any] = {
        "finish_reason": finish_reason(sample.finish, sample.stop),
        "generated_tokens": len(sample.token_ids),
        "seed": answer.seed,
        "prefill": [
            {"id": detail.token_id, "text": detail.text, "logprob": detail.logprob}
            for detail in answer.generation.prompt_details
        ],
        "tokens": [
            token_object(detail, text) for detail, text in zip(sample.details, sample.texts, strict=True)
        ],
    }
    if top:
        found["top_tokens"] = [top_objects(detail, special) for detail in sample.details]
    return found


def token_object(detail: TokenDetail, text: str) -> dict[str, Any]:
    """Return one token; ``text`` is what it adds, a special one is told by its name."""
    return {
        "id": detail.token_id,
        "text": detail.text if detail.special else text,
        "logprob": detail.logprob,
        "special": detail.special,
    }


def top_objects(detail: TokenDetail, special: frozenset[int]) -> list[dict[str, Any]]:
    """Return the alternatives to a token, best first; it is one of them where it is among the likeliest."""
    return [
        {
            "id": other.token_id,
            "text": other.text,
            "logprob": other.logprob,
            "special": other.token_id in special,
        }
        for other in detail.top
    ]


def flat_tokens(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Return the tokens of a text with their bytes; one that the tokenizer added has no part of it."""
    return [
        {
            "id": token.token_id,
            "text": "" if token.special else token.text,
            "start": token.start or 0,
            "stop": token.stop or 0,
        }
        for token in tokens
    ]


def chat_tokens_json(tokens: Sequence[Token], text: str) -> bytes:
    """Encode what a conversation becomes."""
    return encode({"tokenize_response": flat_tokens(tokens), "templated_text": text})


def start_headers(compute_type: str, characters: int) -> Headers:
    """Return what is known when a stream begins."""
    return (("x-compute-type", compute_type), ("x-compute-characters", str(characters)))


def timing_headers(compute_type: str, characters: int, answers: Sequence[Answer]) -> Headers:
    """Return the headers of an answer; times are whole milliseconds, ``x-compute-time`` is seconds."""
    best = answers[0].generation
    times = best.timeline
    total = max(answer.generation.timeline.finished for answer in answers) - times.received
    started = times.started or times.finished  # never, when it was ended before
    inference, tokens = times.finished - started, len(answers[0].sample.token_ids)
    return (
        *start_headers(compute_type, characters),
        ("x-compute-time", str(total / 1e9)),
        ("x-total-time", _milliseconds(total)),
        ("x-validation-time", _milliseconds(times.tokenized - times.received)),
        ("x-queue-time", _milliseconds(started - times.tokenized)),
        ("x-inference-time", _milliseconds(inference)),
        ("x-time-per-token", _milliseconds(inference // max(1, tokens))),
        ("x-prompt-tokens", str(len(best.prompt_ids))),
        ("x-generated-tokens", str(tokens)),
    )


def _milliseconds(nanoseconds: int) -> str:
    return str(nanoseconds // 1_000_000)
