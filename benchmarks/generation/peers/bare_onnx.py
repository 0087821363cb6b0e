"""The raw limit: plain ONNX Runtime over the graph that the server serves, one static batch in a loop.

Past and present of each layer are one buffer, as GroupQueryAttention allows, and the output head runs only
for the last positions. Prompts are computed eight at a time, so that their activations stay small.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.generation.peers.child import serve, static
from benchmarks.generation.work import Setup, Trace, Work

PREFILL_ROWS = 8


class BareOnnx:
    """A session and its KV buffers."""

    def __init__(self, setup: Setup) -> None:
        """Load the graph; one row of KV for each stream."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = setup.threads
        if not setup.options.get("spinning", True):
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(setup.model, options, providers=["CPUExecutionProvider"])
        self.title = f"onnxruntime {ort.__version__}"
        inputs = {entry.name: entry.shape for entry in self._session.get_inputs()}
        self._positions = "position_ids" in inputs
        self._cache = {
            name: np.zeros((setup.streams, shape[1], setup.tokens, shape[3]), np.float32)
            for name, shape in inputs.items()
            if name.startswith("past_key_values")
        }

    def run(self, work: Work) -> Trace:
        """Prefill eight rows at a time, then decode all rows together."""
        static(work)
        prompts = np.asarray(work.prompts, np.int64)
        rows, width = prompts.shape
        trace = Trace.empty(rows)
        first: list[NDArray[np.int64]] = []
        for row in range(0, rows, PREFILL_ROWS):
            part = prompts[row : row + PREFILL_ROWS]
            first.append(self._step(part, row, width))
            done = Trace(0.0, [], trace.times[row : row + len(part)], trace.tokens[row : row + len(part)], [])
            done.step(first[-1].tolist())
        tokens = np.concatenate(first)
        for length in range(width + 1, width + work.new_tokens[0]):
            tokens = self._step(tokens[:, None], 0, length)
            trace.step(tokens.tolist())
        return trace

    def _step(self, ids: NDArray[np.int64], row: int, length: int) -> NDArray[np.int64]:
        """Compute ``ids`` [rows, n], the last of ``length`` tokens; return the most likely next ones."""
        rows = len(ids)
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        binding.bind_cpu_input("seqlens_k", np.full(rows, length - 1, np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array([length], np.int32))
        binding.bind_cpu_input("logit_positions", np.arange(1, rows + 1) * ids.shape[1] - 1)
        if self._positions:
            places = np.broadcast_to(np.arange(length - ids.shape[1], length), ids.shape)
            binding.bind_cpu_input("position_ids", np.ascontiguousarray(places))
        binding.bind_output("logits", "cpu")
        for name, buffer in self._cache.items():
            part = buffer[row : row + rows]
            place = ("cpu", 0, np.float32, part.shape, part.ctypes.data)
            binding.bind_input(name, *place)
            binding.bind_output(name.replace("past_key_values", "present"), *place)
        self._session.run_with_iobinding(binding)
        chosen: NDArray[np.int64] = binding.get_outputs()[0].numpy().argmax(-1)
        return chosen


if __name__ == "__main__":
    serve(BareOnnx)
