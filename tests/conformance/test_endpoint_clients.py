"""Hugging Face's clients against models by their URLs, through Envoy; each runs as a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from running import ServerProcess

CLIENTS = Path(__file__).parent / "clients"
OLDER = Path(__file__).resolve().parents[2] / ".cache/clients/bin/python"
PROMPT = "The capital of France is"
GREEDY = " Paris.\n\nThe answer"
PIECES = [" Paris", ".", "\n", "\n", "The", " answer"]
CHAT = "The capital of France is Paris."


def run(python: Path, program: str, url: str) -> dict[str, Any]:
    """Run a client and return what it printed."""
    if not python.exists():
        pytest.fail(f"{python} is missing; run `make clients` first")
    done = subprocess.run(
        [python, CLIENTS / program, url], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="module", params=["0.36", "2"])
def hub(request: pytest.FixtureRequest, server: ServerProcess) -> dict[str, Any]:
    """What huggingface_hub of two generations saw."""
    python = OLDER if request.param == "0.36" else Path(sys.executable)
    seen = run(python, "huggingface_endpoint.py", server.url)
    assert seen["version"].startswith(f"{request.param}.")
    return seen


@pytest.fixture(scope="module")
def text_generation(server: ServerProcess) -> dict[str, Any]:
    return run(OLDER, "text_generation_client.py", f"{server.url}/models/smollm2")


@pytest.fixture(scope="module")
def langchain(server: ServerProcess) -> dict[str, Any]:
    return run(OLDER, "langchain_huggingface_client.py", server.url)


def test_hub_generates(hub: dict[str, Any]) -> None:
    """``POST /`` has the prompt in front, as a pipeline has; pieces of a stream have not."""
    seen = hub["sync"]
    assert seen["text"] == seen["full"] == seen["default"] == hub["async"]["text"] == PROMPT + GREEDY
    assert seen["pieces"] == PIECES
    assert seen["stop"] == PROMPT + " Paris"
    assert seen["grammar"].removeprefix("The answer is ").isdigit()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_hub_details_and_streams(hub: dict[str, Any], kind: str) -> None:
    assert hub[kind]["details"] == {
        "text": PROMPT + GREEDY, "finish": "length", "count": 6, "tokens": PIECES, "prefill": 0, "seed": None,
    }  # fmt: skip
    assert hub[kind]["stream"] == {
        "tokens": PIECES, "text": PROMPT + GREEDY, "finish": "length", "earlier": [None] * 5,
    }  # fmt: skip


def test_hub_samples_with_its_seed(hub: dict[str, Any]) -> None:
    assert hub["sync"]["sampled"]["seed"] == 7


def test_hub_embeds_and_compares(hub: dict[str, Any]) -> None:
    seen = hub["sync"]
    assert seen["vectors"] == seen["short"] == seen["default_vectors"] == hub["async"]["vectors"] == [1, 384]
    same, other = seen["similarity"]
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.5
    assert seen["default_similarity"] == pytest.approx(seen["similarity"], abs=1e-5)
    assert hub["async"]["similarity"] == pytest.approx(seen["similarity"], abs=1e-5)


def test_hub_classifies(hub: dict[str, Any]) -> None:
    labels = dict(hub["sync"]["labels"])
    assert list(labels) == ["positive", "neutral", "negative"]
    assert sum(labels.values()) == pytest.approx(1, abs=1e-5)
    assert [label for label, _ in hub["async"]["labels"]] == list(labels)
    top = dict(hub["sync"]["top"])
    assert list(top) == ["positive", "neutral"]
    assert sum(top.values()) > 1  # sigmoids are independent


def test_hub_info_and_health(hub: dict[str, Any]) -> None:
    generator, embedder, default = hub["sync"]["info"]
    assert generator["model_id"] == default["model_id"] == hub["async"]["info"]["model_id"] == "smollm2"
    assert generator["max_total_tokens"] > generator["max_input_tokens"] > 0
    assert embedder["model_type"] == {"embedding": {"pooling": "mean"}}
    assert hub["sync"]["healthy"] == [True, True, True]
    assert hub["async"]["healthy"] is True


def test_hub_chats_at_a_models_url(hub: dict[str, Any]) -> None:
    assert hub["sync"]["chat"] == CHAT


@pytest.mark.parametrize(
    ("method", "task", "advice"),
    [
        ("answering", "Question answering", "/v1/chat/completions"),
        ("zero_shot", "Zero-shot classification", "'sentiment' does. It classifies text"),
        ("summary", "Summarization or translation", "'smollm2' does. It generates text"),
        ("translation", "Translation", "/v1/chat/completions"),
        ("speech", "no model here takes audio, images or other binary bodies", "send a JSON object"),
        ("entities", "Token classification", "'sentiment' does. It classifies text"),
        ("mask", "Filling masks", '{"inputs": "…"}'),
        ("vectors_of_a_generator", "Sentence similarity", "'smollm2' does. It generates text"),
    ],
)
def test_hub_is_told_what_is_not_served(hub: dict[str, Any], method: str, task: str, advice: str) -> None:
    kind, text = hub["sync"][method]
    assert kind == "HfHubHTTPError"
    assert "422" in text
    assert f"Input validation error: {task}" in text
    assert advice in text


def test_hub_raises_typed_errors(hub: dict[str, Any]) -> None:
    assert hub["sync"]["illegal"] == [
        "ValidationError",
        "Input validation error: `temperature` must be strictly positive",
    ]
    assert hub["sync"]["unknown"] == ["UnknownError", "Request for unknown model: 'nope' is not found"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_text_generation_package(text_generation: dict[str, Any], kind: str) -> None:
    seen = text_generation[kind]
    assert seen["greedy"] == {
        "text": GREEDY, "finish": "length", "tokens": PIECES, "prefill": [], "seed": None, "best_of": 0,
        "top": [],
    }  # fmt: skip
    assert (seen["stream"], seen["streamed"]) == (PIECES, GREEDY)
    assert seen["chat"] == CHAT


def test_text_generation_options(text_generation: dict[str, Any]) -> None:
    seen = text_generation["sync"]
    assert seen["full"] == PROMPT + GREEDY
    assert seen["stop"] == " Paris"
    assert seen["grammar"].isdigit()
    assert seen["best"]["best_of"] == 1
    assert 1 <= len(seen["best"]["tokens"]) <= 4
    assert seen["best"]["seed"] is not None
    assert seen["top"]["top"] == [2, 2, 2]
    assert seen["details"] == "length"


def test_text_generation_errors_are_typed(text_generation: dict[str, Any]) -> None:
    text = (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192. Given: 5 `inputs` "
        "tokens and 1000000 `max_new_tokens`"
    )
    assert text_generation["sync"]["too_long"] == ["ValidationError", text]
    assert text_generation["async"]["too_long"] == text
    assert text_generation["sync"]["missing"] == [
        "NotFoundError",
        "Request for unknown model: 'nope' is not found",
    ]


def test_langchain_generates(langchain: dict[str, Any]) -> None:
    assert langchain["text"] == langchain["async"]["text"] == GREEDY
    assert langchain["pieces"] == langchain["async"]["pieces"] == PIECES
    assert langchain["stop"] == " Par"  # it cuts the stop text off itself
    first, second = langchain["sampled"]
    assert first == second


def test_langchain_chats(langchain: dict[str, Any]) -> None:
    assert langchain["chat"] == langchain["async"]["chat"] == "".join(langchain["chat_pieces"]) == CHAT


def test_langchain_embeds(langchain: dict[str, Any]) -> None:
    assert langchain["vectors"] == langchain["async"]["vectors"] == [384, 384]
    assert langchain["query"] == 384
