"""transformers' continuous batching, fp32, sdpa."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.generation.peers.child import serve
from benchmarks.generation.work import Setup, Trace, Work

PAGE = 32
WAIT_SECONDS = 300.0


class Continuous:
    """A manager that runs in a thread of its own."""

    def __init__(self, setup: Setup) -> None:
        """Load the folder and start the manager."""
        torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            setup.model, dtype=torch.float32, attn_implementation="sdpa"
        )
        configuration: Any = GenerationConfig
        pages = setup.streams * (setup.tokens // PAGE + 2)
        self._manager: Any = model.eval().init_continuous_batching(
            generation_config=configuration(do_sample=False, eos_token_id=-1, pad_token_id=0),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE, num_blocks=pages, max_batch_tokens=512
            ),
        )
        self._manager.start()
        self._runs = count()
        self.title = f"transformers {transformers.__version__} continuous batching"

    def run(self, work: Work) -> Trace:
        """Hand over a caller's next request as soon as its last one is finished."""
        run = next(self._runs)
        trace = Trace.empty(len(work.prompts))
        waiting = list(range(len(work.prompts)))
        due = [trace.begin + gap for gap in (work.gaps or [0.0] * work.callers)]
        left = len(work.prompts)
        while left:
            while waiting and due and time.monotonic() >= due[0]:
                due.pop(0)
                self._ask(run, waiting.pop(0), work, trace)
            pause = max(0.001, due[0] - time.monotonic()) if waiting and due else WAIT_SECONDS
            output = self._manager.get_result(timeout=pause)
            if output is None:
                continue
            number = int(output.request_id.split("-")[1])
            fresh = output.generated_tokens[len(trace.tokens[number]) :]
            trace.times[number] += [time.monotonic()] * len(fresh)
            trace.tokens[number] += fresh
            if output.is_finished():
                left -= 1
                due.append(time.monotonic())
                if output.error:
                    trace.errors.append(output.error)
        return trace

    def _ask(self, run: int, number: int, work: Work, trace: Trace) -> None:
        trace.sent[number] = time.monotonic()
        self._manager.add_request(
            work.prompts[number], request_id=f"{run}-{number}", max_new_tokens=work.new_tokens[number],
            streaming=True, eos_token_id=-1,
        )  # fmt: skip


if __name__ == "__main__":
    serve(Continuous)
