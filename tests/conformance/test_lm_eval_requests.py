"""lm-evaluation-harness's ``local-completions``: itself, and what it asks, beside transformers' numbers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
import pytest
from tokenizers import Tokenizer

MODEL = "smollm2"
HARNESS = Path(__file__).resolve().parents[2] / ".cache/harness/bin/python"
TASK = Path(__file__).parent / "clients" / "lm_eval_task.py"
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a banana"),
    ("2 + 2 =", " 4"),
    ("Grüße aus", " Köln, 世界 😀"),
    ("", "Once upon a time"),
]


class Scored(NamedTuple):
    """Log-likelihood of a continuation, and whether greedy decoding gives it."""

    logprob: float
    greedy: bool


def encoded(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of both; an empty context is the end-of-text token, as the harness has it."""
    whole = tokenizer.encode(context + continuation).ids
    head = tokenizer.encode(context).ids
    return (head, whole[len(head) :]) if head else ([0], whole)


@pytest.fixture(scope="module")
def tokenizer(demo_repository: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_repository / MODEL / "1" / "tokenizer.json"))


@pytest.fixture(scope="module")
def expected(demo_repository: Path, tokenizer: Tokenizer) -> list[Scored]:
    """The same sums, computed by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = demo_repository / "smollm2-torch" / "1"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for pair in PAIRS:
        context, continuation = encoded(tokenizer, *pair)
        with torch.inference_mode():
            logits = model(torch.tensor([context + continuation])).logits[0]
        logprobs = torch.log_softmax(logits[len(context) - 1 : -1].double(), -1)
        targets = torch.tensor(continuation)
        chosen = logprobs[torch.arange(len(targets)), targets]
        found.append(Scored(float(chosen.sum()), bool((logprobs.argmax(-1) == targets).all())))
    return found


def scored(choice: dict[str, Any], context_length: int) -> Scored:
    """Read a choice as the harness does: the last position is the generated token's."""
    logprobs = choice["logprobs"]
    values = logprobs["token_logprobs"][context_length:-1]
    best = [max(top.values()) for top in logprobs["top_logprobs"][context_length:-1]]
    return Scored(sum(values), values == best)


async def ask(url: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    body = {
        "model": MODEL, "prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0,
        "seed": 1234,
    }  # fmt: skip
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200
        choices: list[dict[str, Any]] = (await answer.json())["choices"]
    return sorted(choices, key=lambda choice: choice["index"])


@pytest.mark.parametrize("batch", [1, len(PAIRS)])
async def test_loglikelihoods(server: Any, tokenizer: Tokenizer, expected: list[Scored], batch: int) -> None:
    pairs = [encoded(tokenizer, *pair) for pair in PAIRS]
    choices = []
    for start in range(0, len(pairs), batch):
        prompts = [context + continuation for context, continuation in pairs[start : start + batch]]
        choices += await ask(server.url, prompts)
    found = [scored(choice, len(context)) for choice, (context, _) in zip(choices, pairs, strict=True)]
    np.testing.assert_allclose(
        [entry.logprob for entry in found], [entry.logprob for entry in expected], atol=1e-3, rtol=1e-4
    )
    assert [entry.greedy for entry in found] == [entry.greedy for entry in expected]
    assert found[0].logprob > found[1].logprob


def test_the_harness_itself(server: Any, expected: list[Scored], tmp_path: Path) -> None:
    """A task of its own making, with tokens and log-likelihoods from the server, through Envoy."""
    (context, right), (_, wrong), *others = PAIRS[:-1]
    asked = [(context, [right, wrong]), *[(text, [continuation]) for text, continuation in others]]
    questions = tmp_path / "questions.jsonl"
    lines = [{"question": text, "choices": choices, "answer": 0} for text, choices in asked]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = subprocess.run(
        [HARNESS, TASK, f"{server.url}/models/{MODEL}/proxy", MODEL, questions],
        capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    assert found["accuracy"] == 1
    scores = [Scored(*choice) for answer in found["answers"] for choice in answer]
    np.testing.assert_allclose(
        [entry.logprob for entry in scores], [entry.logprob for entry in expected[:-1]], atol=1e-3, rtol=1e-4
    )
    assert [entry.greedy for entry in scores] == [entry.greedy for entry in expected[:-1]]


async def test_the_remote_tokenizer(server: Any, tokenizer: Tokenizer) -> None:
    """``tokenizer_backend: auto`` asks these two and takes them when both answer."""
    async with aiohttp.ClientSession(server.url) as session:
        async with session.get(f"/models/{MODEL}/proxy/tokenizer_info") as answer:
            assert (await answer.json())["eos_token"] == "<|im_end|>"
        body = {"model": MODEL, "prompt": "test", "add_special_tokens": False}
        async with session.post("/tokenize", json=body) as answer:
            assert (await answer.json())["tokens"] == tokenizer.encode("test").ids
