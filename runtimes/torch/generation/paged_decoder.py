"""A decoder with a cache in blocks: any network, on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError
from headrace.runtimes.generation.base import Chunk, GenerationSpec
from headrace.runtimes.torch.generation.cuda_graphs import Graphs
from headrace.runtimes.torch.generation.network import Network
from headrace.runtimes.torch.generation.paged_attention import Decode, Long, PagedAttention
from headrace.runtimes.torch.generation.paged_cache import PagedCache
from headrace.runtimes.torch.module import last_line


class PagedDecoder:
    """A :class:`~headrace.runtimes.generation.base.Decoder`.

    The blocks of the engine are the cache's blocks. A step in which every sequence decodes one token is
    played from a CUDA graph where the network can be captured.
    """

    def __init__(
        self, network: Network, generation: GenerationSpec, device: torch.device, decode: Decode
    ) -> None:
        """Take the memory of the KV cache of ``network``, and capture its graphs."""
        self._network = network
        self._device = device
        self._decode = decode
        with torch.inference_mode():
            self._cache = PagedCache(network.shapes, generation, network.dtype, device)
            self._graphs = (
                Graphs(network, self._cache, generation, decode, device)
                if device.type == "cuda" and network.capturable
                else None
            )

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits."""
        return self._network.vocabulary_size

    @property
    def platform(self) -> str:
        """Triton's name for models that torch executes."""
        return "pytorch_libtorch"

    @property
    def together(self) -> bool:
        """All tokens of a step go through the layers together."""
        return True

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Compute all chunks; see ``Decoder``.

        Raises:
            ModelError: the network failed.
            SystemExit: the GPU did, which only a new process gets over.
        """
        try:
            with torch.inference_mode():
                if self._graphs is not None and all(len(chunk.tokens) == 1 for chunk in chunks):
                    logits = self._graphs.play(chunks)
                    wanted = [number for number, chunk in enumerate(chunks) if chunk.logits]
                    rows = logits if len(wanted) == len(chunks) else logits[wanted]
                else:
                    rows = self._packed(chunks)
                result: NDArray[np.float32] = rows.float().cpu().numpy()
                return result
        except (RuntimeError, IndexError) as error:
            text = last_line(error)
            if "CUDA error" in text:
                raise SystemExit(text) from error
            msg = f"torch failed: {text}"
            raise ModelError(msg) from error

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        """Copy the blocks of the first ``tokens`` tokens where the tables differ."""
        del source, target
        count = -(-tokens // self._cache.block_tokens)
        with torch.inference_mode():
            self._cache.copy(source_blocks[:count], target_blocks[:count])

    def release(self, slot: int) -> None:
        """Do nothing: blocks belong to the engine."""

    def close(self) -> None:
        """Drop the network, its graphs and its KV cache."""
        del self._graphs, self._network, self._cache

    def _packed(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Compute chunks of any length: those of one token first, the others behind them."""
        order = sorted(range(len(chunks)), key=lambda number: len(chunks[number].tokens) > 1)
        single = [chunks[number] for number in order if len(chunks[number].tokens) == 1]
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        firsts: dict[int, int] = {}
        long: list[Long] = []
        size = self._cache.block_tokens
        for number in order:
            chunk = chunks[number]
            firsts[number] = first = len(tokens)
            end = chunk.start + len(chunk.tokens)
            tokens.extend(chunk.tokens)
            positions.extend(range(chunk.start, end))
            places.extend(chunk.blocks[at // size] * size + at % size for at in range(chunk.start, end))
            if len(chunk.tokens) > 1:
                table = self._tensor(chunk.blocks[: -(-end // size)], torch.int64)
                long.append(Long(first, len(tokens), chunk.start, table))
        rows = [
            row
            for number, chunk in enumerate(chunks)
            for row in range(
                firsts[number] + len(chunk.tokens) - chunk.logits, firsts[number] + len(chunk.tokens)
            )
        ]
        used = [-(-(chunk.start + 1) // size) for chunk in single]
        tables = [
            [*chunk.blocks[:count], *[self._cache.spare] * (max(used) - count)]
            for chunk, count in zip(single, used, strict=True)
        ]
        attention = PagedAttention(
            self._cache,
            self._tensor(places, torch.int64),
            self._tensor(tables, torch.int32),
            self._tensor([chunk.start + 1 for chunk in single], torch.int32),
            long,
            self._decode,
        )
        return self._network(
            self._tensor(tokens, torch.int64),
            self._tensor(positions, torch.int64),
            self._tensor(rows, torch.int64),
            attention,
        )

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(self._device, non_blocking=True)
