"""transformers' generate: a static batch, fp32, eager."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.generation.peers.child import serve, static
from benchmarks.generation.work import Setup, Trace, Work


class Steps:
    """A streamer: generate hands it the prompt first, then the tokens of every step."""

    def __init__(self, trace: Trace) -> None:
        """Note steps in ``trace``."""
        self._trace = trace
        self._prompt = True

    def put(self, value: Any) -> None:
        """Take the prompt or a step."""
        if not self._prompt:
            self._trace.step(value.reshape(-1).tolist())
        self._prompt = False

    def end(self) -> None:
        """Nothing is left to flush."""


class Generate:
    """The model."""

    def __init__(self, setup: Setup) -> None:
        """Load the folder."""
        torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        model: Any = AutoModelForCausalLM
        self._model = model.from_pretrained(setup.model, dtype=torch.float32).eval()
        self.title = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def run(self, work: Work) -> Trace:
        """Generate."""
        static(work)
        ids = torch.tensor(work.prompts)
        trace = Trace.empty(len(work.prompts))
        self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=work.new_tokens[0], do_sample=False,
            eos_token_id=-1, pad_token_id=0, streamer=Steps(trace),
        )  # fmt: skip
        return trace


if __name__ == "__main__":
    serve(Generate)
