"""What the machine's memory and arithmetic allow: a trace computed from limits that are measured each time.

A step reads every weight and the KV of every sequence once, and computes two operations a parameter and
token; it lasts as long as the slower of the two. Nothing else is counted, so that no program can be faster.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from benchmarks.generation.peers.child import serve, static
from benchmarks.generation.peers.shape import Shape
from benchmarks.generation.work import Setup, Trace, Work

Array = NDArray[np.float32]
READ_FLOATS = 32 << 20
SIDE = 1024
REPEATS = 4


class Floor:
    """The machine."""

    def __init__(self, setup: Setup) -> None:
        """Read the model's shape; make the arrays that are read and multiplied."""
        self._shape = Shape.read(setup.model)
        self._threads = setup.threads
        self._pool = ThreadPoolExecutor(setup.threads)
        source = np.random.default_rng(1)
        self._vectors = [np.full(READ_FLOATS, 0.5, np.float32) for _ in range(setup.threads)]
        self._matrices = [source.random((SIDE, SIDE), np.float32) for _ in range(setup.threads)]
        self.title = "weights ÷ read bandwidth, operations ÷ sgemm"

    def run(self, work: Work) -> Trace:
        """Measure both limits and say when tokens would have been there."""
        static(work)
        bandwidth = self._rate(self._vectors, READ_FLOATS * 4)
        peak = self._rate(self._matrices, 2 * SIDE**3)
        rows, width = len(work.prompts), len(work.prompts[0])
        trace = Trace.empty(rows)
        moment = trace.begin
        for length in range(width, width + work.new_tokens[0]):
            fresh, look_back = (rows * width, width / 2) if length == width else (rows, float(length))
            reading = (self._shape.weight_bytes + rows * length * self._shape.kv_bytes) / bandwidth
            moment += max(reading, self._shape.operations(fresh, rows, look_back) / peak)
            for times in trace.times:
                times.append(moment)
        return trace

    def _rate(self, arrays: list[Array], amount: float) -> float:
        """Return how much a second all threads do together; the best of a few tries."""
        best = 0.0
        for _ in range(REPEATS):
            begin = time.perf_counter()
            for done in [self._pool.submit(_square, array) for array in arrays]:
                done.result()
            best = max(best, amount * len(arrays) / (time.perf_counter() - begin))
        return best


def _square(array: Array) -> None:
    """Read a vector once, or multiply a matrix by itself; NumPy releases the interpreter meanwhile."""
    np.dot(array, array)


if __name__ == "__main__":
    serve(Floor)
