"""llama.cpp through the low-level interface of llama-cpp-python: one static batch of sequences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import llama_cpp as llama
import numpy as np

from benchmarks.generation.peers.child import serve, static
from benchmarks.generation.work import Setup, Trace, Work

BATCH = 512


class LlamaCpp:
    """A context with a sequence for each stream."""

    def __init__(self, setup: Setup) -> None:
        """Load the GGUF file."""
        llama.llama_backend_init()
        model_parameters = llama.llama_model_default_params()
        self._model: Any = llama.llama_model_load_from_file(setup.model.encode(), model_parameters)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = setup.streams * (-(-setup.tokens // 256) * 256)
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_seq_max = setup.streams
        parameters.n_threads = parameters.n_threads_batch = setup.threads
        self._context: Any = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not load {setup.model}")
        self._width = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._batch: Any = llama.llama_batch_init(BATCH, 0, 1)
        self.title = f"llama-cpp-python {llama.__version__}"

    def run(self, work: Work) -> Trace:
        """Compute the prompts, as many as a batch holds at a time; then all sequences step by step."""
        static(work)
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        rows, width = len(work.prompts), len(work.prompts[0])
        trace = Trace.empty(rows)
        tokens: list[int] = []
        together = max(1, BATCH // width)
        for row in range(0, rows, together):
            part = range(row, min(rows, row + together))
            fresh = self._prefill(work, part)
            tokens += fresh
            Trace(0.0, [], [trace.times[i] for i in part], [trace.tokens[i] for i in part], []).step(fresh)
        for position in range(width, width + work.new_tokens[0] - 1):
            tokens = self._decode((tokens[row], position, row, True) for row in range(rows))
            trace.step(tokens)
        return trace

    def _prefill(self, work: Work, rows: range) -> list[int]:
        """Compute the prompts of ``rows``; a prompt longer than a batch comes alone, in parts."""
        width = len(work.prompts[0])
        chosen: list[int] = []
        for start in range(0, width, BATCH):
            stop = min(width, start + BATCH)
            chosen = self._decode(
                (work.prompts[row][place], place, row, place == width - 1)
                for row in rows
                for place in range(start, stop)
            )
        return chosen

    def _decode(self, entries: Iterable[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (token, position, sequence, wants logits); return the most likely next tokens."""
        batch, wanted = self._batch, []
        size = 0
        for size, (token, position, sequence, logits) in enumerate(entries, 1):
            at = size - 1
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, logits
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            if logits:
                wanted.append(at)
        batch.n_tokens = size
        if status := llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode answered {status}")
        return [
            int(np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, at), (self._width,)).argmax())
            for at in wanted
        ]


if __name__ == "__main__":
    serve(LlamaCpp)
