"""A decoder with a cache in blocks: any network, on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.runtimes.base import ModelError
from headrace.runtimes.generation.base import (
    Begun,
    Chunk,
    DeviceSampling,
    Draw,
    GenerationSpec,
    Outcome,
    Together,
)
from headrace.runtimes.torch.generation.cuda_graphs import Graphs
from headrace.runtimes.torch.generation.device_sampler import choose
from headrace.runtimes.torch.generation.network import Network
from headrace.runtimes.torch.generation.paged_attention import Decode, Long, PagedAttention
from headrace.runtimes.torch.generation.paged_cache import PagedCache
from headrace.runtimes.torch.generation.transfers import Arriving, to_device
from headrace.runtimes.torch.module import last_line


class _Step:
    """A :class:`~headrace.runtimes.generation.base.Begun`."""

    def __init__(
        self, logits: torch.Tensor, tokens: torch.Tensor, sound: torch.Tensor, device: torch.device
    ) -> None:
        """Begin to bring the results to the host: ``logits`` of the chunks that are not drawn for."""
        self._arriving = Arriving([logits.float(), torch.stack([tokens, sound.long()])], device)

    def read(self) -> Outcome:
        with _failures():
            logits, drawn = self._arriving.wait()
        tokens, sound = drawn.tolist()
        return Outcome(logits.numpy(), tokens, [flag != 0 for flag in sound])


class PagedDecoder:
    """A :class:`~headrace.runtimes.generation.base.SamplingDecoder`.

    The blocks of the engine are the cache's blocks. A step in which every sequence decodes one token is
    played from a CUDA graph where the network can be captured. Everything goes to one CUDA stream, which
    keeps the order in which it was asked for.
    """

    def __init__(
        self,
        network: Network,
        generation: GenerationSpec,
        device: torch.device,
        decode: Decode,
        sampling: DeviceSampling = "ahead",
    ) -> None:
        """Take the memory of the KV cache of ``network``, and capture its graphs."""
        self._network = network
        self._device = device
        self._decode = decode
        self._sampling = sampling
        # what the step that was begun last draws
        self._drawn = torch.empty(0, dtype=torch.int64, device=device)
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
    def together(self) -> Together:
        """All tokens of a step go through the layers together."""
        return "all"

    @property
    def sampling(self) -> DeviceSampling:
        """As the model's option ``sampling`` says."""
        return self._sampling

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Compute all chunks; see ``Decoder``.

        Raises:
            ModelError: the network failed.
            SystemExit: the GPU did, which only a new process gets over.
        """
        with _failures(), torch.inference_mode():
            result: NDArray[np.float32] = self._logits(chunks, None).float().cpu().numpy()
            return result

    def begin(
        self, chunks: Sequence[Chunk], draws: Sequence[Draw | None], follows: Sequence[int] | None = None
    ) -> Begun:
        """Begin a step; see ``SamplingDecoder``. Raises what ``step`` does, and so does reading it."""
        with _failures(), torch.inference_mode():
            tokens = None if follows is None else self._drawn[self._tensor(follows, torch.int64)]
            logits = self._logits(chunks, tokens)
            owners = [draw for chunk, draw in zip(chunks, draws, strict=True) for _ in range(chunk.logits)]
            drawn = [row for row, draw in enumerate(owners) if draw is not None]
            given = logits[:0]
            if len(drawn) < len(owners):
                others = [row for row, draw in enumerate(owners) if draw is None]
                given = logits[self._tensor(others, torch.int64)]
                logits = logits[self._tensor(drawn, torch.int64)]
            self._drawn, sound = choose(logits, [draw for draw in draws if draw is not None])
            return _Step(given, self._drawn, sound, self._device)

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

    def prepare(self) -> bool:
        """Return False: all memory was taken at the start."""
        return False

    def close(self) -> None:
        """Drop the network, its graphs and its KV cache."""
        del self._graphs, self._network, self._cache

    def _logits(self, chunks: Sequence[Chunk], tokens: torch.Tensor | None) -> torch.Tensor:
        """Compute all chunks; ``tokens`` stand in for those of chunks of one token."""
        if self._graphs is None or any(len(chunk.tokens) > 1 for chunk in chunks):
            return self._packed(chunks, tokens)
        logits = self._graphs.play(chunks, tokens)
        wanted = [number for number, chunk in enumerate(chunks) if chunk.logits]
        return logits if len(wanted) == len(chunks) else logits[self._tensor(wanted, torch.int64)]

    def _packed(self, chunks: Sequence[Chunk], given: torch.Tensor | None) -> torch.Tensor:
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
            self._tensor(tokens, torch.int64) if given is None else given,
            self._tensor(positions, torch.int64),
            self._tensor(rows, torch.int64),
            attention,
        )

    def _tensor(self, values: Sequence[int] | Sequence[Sequence[int]], dtype: torch.dtype) -> torch.Tensor:
        return to_device(torch.tensor(values, dtype=dtype), self._device)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Say what torch failed of; what the GPU failed of ends the process."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        text = last_line(error)
        if "CUDA error" in text:
            raise SystemExit(text) from error
        msg = f"torch failed: {text}"
        raise ModelError(msg) from error
