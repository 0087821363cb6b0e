"""Compares an exported decoder graph with transformers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from headrace.runtimes.convert.causal_graph import LENGTHS, LOGITS, POSITIONS, TOTAL
from headrace.runtimes.convert.sessions import open_session


class Graph:
    """A decoder graph with a KV cache for one sequence, made anew for each text."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Open ``path``; ``threads`` 0 means one for each core."""
        self._session = open_session(path, threads=threads)
        self._caches = {
            value.name: (int(value.shape[1]), int(value.shape[3]))
            for value in self._session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self._has_positions = any(value.name == "position_ids" for value in self._session.get_inputs())
        self._outputs = [LOGITS, *(name.replace("past_key_values", "present") for name in self._caches)]

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [len(ids), vocabulary] of a whole text."""
        return self._run(ids, 0, self._empty(), len(ids))[0]

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` most likely tokens after ``ids``, one after another."""
        new: list[int] = []
        cache, chunk, start = self._empty(), list(ids), 0
        while len(new) < count:
            logits, cache = self._run(chunk, start, cache, 1)
            start += len(chunk)
            chunk = [int(logits[0].argmax())]
            new += chunk
        return new

    def _empty(self) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: np.zeros((1, heads, 0, size), np.float32) for name, (heads, size) in self._caches.items()
        }

    def _run(
        self, ids: Sequence[int], start: int, cache: dict[str, npt.NDArray[np.float32]], wanted: int
    ) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
        count = len(ids)
        feed: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.array([ids], np.int64),
            LENGTHS: np.array([start + count - 1], np.int32),
            TOTAL: np.array([start + count], np.int32),
            POSITIONS: np.arange(count - wanted, count),
            **cache,
        }
        if self._has_positions:
            feed["position_ids"] = np.arange(start, start + count)[None]
        logits, *present = self._session.run(self._outputs, feed)
        return logits, dict(zip(cache, present, strict=True))


def differing_tokens(folder: Path, graph: Path, prompts: Sequence[str], count: int) -> int:
    """How many of the first ``count`` greedy tokens after each prompt differ from transformers'."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    reference.generation_config.eos_token_id = None
    exported, wrong = Graph(graph), 0
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        with torch.inference_mode():
            whole = reference.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=count,
                do_sample=False,
            )
        expected = whole[0, len(ids) :].tolist()
        wrong += sum(a != b for a, b in zip(exported.greedy(ids, count), expected, strict=True))
    return wrong


def parameter_count(folder: Path) -> int:
    """Parameters of the Hugging Face model in ``folder``, which must load."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return sum(parameter.numel() for parameter in model.parameters())
