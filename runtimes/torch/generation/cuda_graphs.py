"""CUDA graphs of decoding steps: one for each size of batch, played instead of launching every kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headrace.runtimes.generation.base import Chunk, GenerationSpec
from headrace.runtimes.torch.generation.network import Network
from headrace.runtimes.torch.generation.paged_attention import Decode, PagedAttention
from headrace.runtimes.torch.generation.paged_cache import PagedCache
from headrace.runtimes.torch.generation.transfers import to_device


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a graph reads, at addresses that stay; each row is a sequence."""

    tokens: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    ends: torch.Tensor
    tables: torch.Tensor


class Graphs:
    """The graphs of a network; batches are filled up to the next size with rows that decode nothing."""

    def __init__(
        self,
        network: Network,
        cache: PagedCache,
        generation: GenerationSpec,
        decode: Decode,
        device: torch.device,
    ) -> None:
        """Capture the graphs, the largest first so that the others use its memory."""
        self._cache = cache
        self._sizes = sizes(generation.max_sequences)
        blocks = -(-generation.max_tokens // generation.block_tokens)
        most = self._sizes[-1]
        self._inputs = inputs(most, blocks, cache, device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        pool = None
        for size in reversed(self._sizes):
            rows = torch.arange(size, device=device)
            attention = PagedAttention(
                cache,
                self._inputs.places[:size],
                self._inputs.tables[:size],
                self._inputs.ends[:size],
                (),
                decode,
            )
            graph = torch.cuda.CUDAGraph()
            # Once outside: kernels are compiled and libraries set up, which cannot be captured.
            network(self._inputs.tokens[:size], self._inputs.positions[:size], rows, attention)
            torch.cuda.synchronize(device)
            with torch.cuda.graph(graph, pool=pool):
                logits = network(self._inputs.tokens[:size], self._inputs.positions[:size], rows, attention)
            pool = graph.pool()
            self._graphs[size] = graph, logits

    def play(self, chunks: Sequence[Chunk], tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Compute chunks of one token; the result [chunks, vocabulary] is valid until the next play.

        ``tokens`` [chunks], int64 on the device, stand in for those of the chunks.
        """
        size = next(size for size in self._sizes if size >= len(chunks))
        fill(self._inputs, chunks, size, self._cache)
        if tokens is not None:
            self._inputs.tokens[: len(chunks)].copy_(tokens)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(chunks)]


def sizes(most: int) -> Sequence[int]:
    """Return the sizes of batches that have graphs: powers of two, then every 32nd, up to ``most``."""
    small = [2**power for power in range(6) if 2**power < most]
    return [*small, *range(64, most, 32), most]


def inputs(rows: int, blocks: int, cache: PagedCache, device: torch.device) -> Inputs:
    """Return inputs of ``rows`` rows that decode nothing: one token each, in the spare block."""
    place = cache.spare * cache.block_tokens
    return Inputs(
        tokens=torch.zeros(rows, dtype=torch.int64, device=device),
        positions=torch.zeros(rows, dtype=torch.int64, device=device),
        places=torch.full((rows,), place, dtype=torch.int64, device=device),
        ends=torch.ones(rows, dtype=torch.int32, device=device),
        tables=torch.full((rows, blocks), cache.spare, dtype=torch.int32, device=device),
    )


def fill(target: Inputs, chunks: Sequence[Chunk], rows: int, cache: PagedCache) -> None:
    """Write ``chunks`` of one token into the first of ``rows`` rows; the others decode nothing."""
    count, size = len(chunks), cache.block_tokens
    words = np.zeros((4, rows), np.int64)
    words[2] = cache.spare * size
    words[3] = 1
    tables = np.full((rows, target.tables.shape[1]), cache.spare, np.int32)
    for row, chunk in enumerate(chunks):
        words[0, row], words[1, row], words[3, row] = chunk.tokens[0], chunk.start, chunk.start + 1
        used = -(-(chunk.start + 1) // size)
        tables[row, :used] = chunk.blocks[:used]
        words[2, row] = chunk.blocks[chunk.start // size] * size + chunk.start % size
    columns = max(-(-(chunk.start + 1) // size) for chunk in chunks[:count])
    device = target.tokens.device
    sent = to_device(torch.from_numpy(words), device)
    target.tokens[:rows].copy_(sent[0])
    target.positions[:rows].copy_(sent[1])
    target.places[:rows].copy_(sent[2])
    target.ends[:rows].copy_(sent[3])
    target.tables[:rows, :columns].copy_(to_device(torch.from_numpy(tables[:, :columns].copy()), device))
