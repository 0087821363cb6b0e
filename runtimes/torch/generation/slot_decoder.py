"""A decoder on the CPU: any network, slots with contiguous rows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.generation.base import Chunk, GenerationSpec, Together
from headrace.runtimes.torch.generation.network import Network
from headrace.runtimes.torch.generation.packing import pack
from headrace.runtimes.torch.generation.rows import Rows
from headrace.runtimes.torch.generation.slot_attention import SlotAttention
from headrace.runtimes.torch.module import last_line


class SlotDecoder:
    """A :class:`~headrace.runtimes.generation.base.Decoder`.

    All chunks of a step are one call of the network: its products run over the tokens of every sequence at
    once, only attention looks at each sequence's own row.
    """

    def __init__(self, network: Network, generation: GenerationSpec) -> None:
        """Reserve the KV cache of ``network``."""
        self._network = network
        self._rows = Rows(network.shapes, generation, network.dtype)

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

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Compute all chunks; see ``Decoder``.

        Raises:
            ModelError: the network failed.
        """
        try:
            with torch.inference_mode():
                for chunk in chunks:
                    if chunk.fresh and chunk.start:
                        self._rows.load(chunk.slot, chunk.blocks, chunk.start)
                self._rows.gather([chunk.slot for chunk in chunks])
                packed = pack(chunks, [self._rows.row(chunk.slot) for chunk in chunks])
                attention = SlotAttention(self._rows, packed)
                logits = self._network(packed.tokens, packed.positions, packed.rows, attention)
                for chunk in chunks:
                    self._rows.advance(chunk.slot, chunk.start, len(chunk.tokens), chunk.blocks)
                result: NDArray[np.float32] = logits.float().numpy()
                return result
        except (RuntimeError, IndexError) as error:
            msg = f"torch failed: {last_line(error)}"
            raise ModelError(msg) from error

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        """Give slot ``target`` the first ``tokens`` tokens of slot ``source``."""
        self._rows.copy(source, target, source_blocks, target_blocks, tokens)

    def release(self, slot: int) -> None:
        """Free the slot's row; whole blocks are in the pool already."""
        self._rows.release(slot)

    def prepare(self) -> bool:
        """Take some of the KV cache's memory."""
        return self._rows.prepare()

    def close(self) -> None:
        """Drop the network and its KV cache."""
        del self._network, self._rows


def set_threads(instance: InstanceSpec) -> None:
    """Give torch the threads of ``instance``.

    An engine serves all requests of its model, so it has the machine to itself as a lone batch has.
    """
    torch.set_num_threads(max(instance.threads, instance.lone_threads))
    if torch.get_num_interop_threads() != 1:
        # Torch refuses once its pool has started, which in a worker it has not.
        with contextlib.suppress(RuntimeError):
            torch.set_num_interop_threads(1)
