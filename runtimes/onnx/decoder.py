"""The ONNX decoder: token generation on the CPU, by plain ONNX Runtime and a KV cache of our own.

A graph made by ``headrace convert`` writes keys and values into the buffers that it reads them from, rows of
a batch may have any lengths, and the last linear layer runs only for the positions that are asked for. So
one run decodes all sequences of a step, whenever each of them began, and, where the graph has a form for
that (``mixed_graph``), computes a prompt beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.generation.base import Chunk, GenerationSpec, Together
from headrace.runtimes.generation.groups import groups
from headrace.runtimes.generation.slots import CacheShape, SlotCache
from headrace.runtimes.onnx.decoder_graph import DecoderGraph
from headrace.runtimes.onnx.decoder_runs import Part, Runs, decodes, prompts
from headrace.runtimes.onnx.errors import load_error
from headrace.runtimes.onnx.files import find_model
from headrace.runtimes.onnx.kept import load_shared
from headrace.runtimes.onnx.linear import load_linear
from headrace.runtimes.onnx.options import (
    SHORT_SPINNING,
    STILL_BETWEEN_RUNS,
    THREADS,
    Provider,
    check_providers,
    providers,
    session_options,
)


def load(instance: InstanceSpec) -> OnnxDecoder:
    """Load the decoder of an instance.

    ``instance.path`` is the model file or the folder with it (``files.find_model``); the options are those of
    ``options.session_options``. A step has the machine to itself, so it uses the larger of ``threads`` and
    ``lone_threads``.

    Raises:
        ModelError: there is no model, it cannot be loaded, it is no decoder made by ``headrace convert``, or
            the device is not the CPU.
    """
    spec = instance.generation
    if spec is None:
        msg = f"model '{instance.model}' has no generation settings"
        raise ModelError(msg)
    if not instance.device.startswith("cpu"):
        msg = f"the ONNX runtime generates on the CPU only, not on {instance.device}; use backend torch"
        raise ModelError(msg)
    file = find_model(Path(instance.path))
    chosen = providers(instance)
    threads = str(max(instance.threads, instance.lone_threads))
    options = {THREADS: threads, **SHORT_SPINNING, **instance.options}
    try:
        session = load_linear(file, options, chosen) or ort.InferenceSession(
            str(file), session_options(options), providers=chosen
        )
    except Exception as error:
        raise load_error(error, file) from error
    check_providers(chosen, session.get_providers())
    return OnnxDecoder(session, spec, _mixed(instance, spec, file, options, chosen))


def _mixed(
    instance: InstanceSpec,
    spec: GenerationSpec,
    file: Path,
    options: Mapping[str, str],
    chosen: Sequence[Provider],
) -> ort.InferenceSession | None:
    """Load the form of the graph that decodes beside prompts; None where it is of no use, or there is none.

    Its weights are mapped from a file: while no prompts come, the kernel can have their memory back.
    """
    if not spec.mixed_runs or spec.max_sequences == 1 or find_spec("onnx") is None:
        return None
    return load_shared(instance, file, file, {**STILL_BETWEEN_RUNS, **options}, chosen, mixed=True)


class OnnxDecoder:
    """A :class:`~headrace.runtimes.generation.base.Decoder` on ONNX Runtime."""

    def __init__(
        self, session: ort.InferenceSession, spec: GenerationSpec, mixed: ort.InferenceSession | None = None
    ) -> None:
        """Serve ``session`` with a KV cache of its own; ``mixed`` decodes beside prompts.

        Raises:
            ModelError: the graph is no decoder of the kind that is served, or shorter than ``max_tokens``.
        """
        graph = DecoderGraph(session)
        self._vocabulary_size = graph.vocabulary_size
        self._cache = SlotCache(
            CacheShape(
                planes=len(graph.caches),
                heads=graph.heads,
                size=graph.head_size,
                dtype=graph.dtype,
                slots=spec.max_sequences,
                tokens=spec.max_tokens,
                block_tokens=spec.block_tokens,
                blocks=-(-spec.kv_tokens // spec.block_tokens) if spec.prefix_cache else 0,
                keep_tokens=spec.kv_tokens // spec.max_sequences,
            )
        )
        self._longest = spec.max_tokens
        self._runs = Runs(session, graph, self._cache.rows, mixed)
        self._together: Together = "alike" if mixed is None or not self._try_beside() else "mixed"

    @property
    def vocabulary_size(self) -> int:
        """Width of the logits."""
        return self._vocabulary_size

    @property
    def platform(self) -> str:
        """Triton's name for models that ONNX Runtime executes."""
        return "onnxruntime_onnx"

    @property
    def together(self) -> Together:
        """``mixed`` where the graph has a form for it."""
        return self._together

    def step(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Compute all chunks, a run for each of ``groups``.

        Raises:
            ModelError: ONNX Runtime failed.
        """
        cache = self._cache
        for chunk in chunks:
            if chunk.fresh:
                cache.release(chunk.slot)
                if chunk.start:
                    cache.load(chunk.slot, chunk.blocks, chunk.start)
        self._runs.begin(sum(chunk.logits for chunk in chunks))
        computed: list[int] = []
        for group in groups(chunks, self._together):
            computed += self._compute(chunks, group)
        for chunk in chunks:
            cache.advance(chunk.slot, chunk.start, len(chunk.tokens), chunk.blocks)
        logits = self._runs.logits
        return logits if computed == sorted(computed) else logits[_order(chunks, computed)]

    def _compute(self, chunks: Sequence[Chunk], group: Sequence[int]) -> list[int]:
        """Compute the chunks of a group; returns their indices in the order of their logits."""
        cache = self._cache
        single = [index for index in group if len(chunks[index].tokens) == 1]
        # before rows are taken by those that begin: what decodes shall have the first ones
        count = cache.gather([chunks[index].slot for index in single]) if single else 0
        longer = [index for index in group if len(chunks[index].tokens) > 1]
        longer.sort(key=lambda index: cache.row(chunks[index].slot))
        parts = self._prompts([chunks[index] for index in longer]) if longer else []
        if single:
            # a row in between writes behind it (``_decodes``), where there must be room
            beside = parts[0] if parts and parts[0].total < self._longest else None
            ahead = self._decodes([chunks[index] for index in single], count, beside)
            if beside is None:
                self._runs.run(ahead)
            else:
                self._runs.run_beside(ahead, parts.pop(0))
        for part in parts:
            self._runs.run(part)
        return single + longer

    def _try_beside(self) -> bool:
        """Run decodes beside a prompt once, which maps the weights; the rows are nobody's yet."""
        self._runs.begin(0)
        try:
            self._runs.run_beside(decodes([0], [0], []), prompts(1, [[0, 0]], 0, [0]))
        except ModelError as error:
            sys.stderr.write(f"prompts are computed apart from decodes: {error}\n")
            return False
        return True

    def _prompts(self, chunks: Sequence[Chunk]) -> list[Part]:
        """Chunks of more than one token; together if their rows are neighbours."""
        rows = [self._cache.row(chunk.slot) for chunk in chunks]
        together = len(chunks) if rows[-1] - rows[0] == len(rows) - 1 else 1
        parts = []
        for first in range(0, len(chunks), together):
            part = chunks[first : first + together]
            tokens, logits = [chunk.tokens for chunk in part], [chunk.logits for chunk in part]
            parts.append(prompts(rows[first], tokens, part[0].start, logits))
        return parts

    def _decodes(self, chunks: Sequence[Chunk], count: int, beside: Part | None) -> Part:
        """One token for each of ``chunks``, whose rows are among the first ``count``."""
        cache = self._cache
        tokens = [0] * count
        # A row in between that has no token now gets one all the same, behind its last: the next one of its
        # own is written over it.
        starts = [cache.length(row) for row in range(count)]
        if beside is not None:
            # there it would be in the way of what is written in the same run
            for row in range(beside.row, min(beside.row + len(beside.ids), count)):
                starts[row] = beside.total
        wanted = []
        for chunk in chunks:
            row = cache.row(chunk.slot)
            tokens[row], starts[row] = chunk.tokens[0], chunk.start
            if chunk.logits:
                wanted.append(row)
        return decodes(tokens, starts, wanted)

    def copy(
        self,
        source: int,
        target: int,
        source_blocks: Sequence[int],
        target_blocks: Sequence[int],
        tokens: int,
    ) -> None:
        """Copy row to row, and in the pool the blocks that the two do not share."""
        self._cache.copy(source, target, source_blocks, target_blocks, tokens)

    def release(self, slot: int) -> None:
        """Free the slot's row."""
        self._cache.release(slot)

    def prepare(self) -> bool:
        """Take some of the KV cache's memory."""
        return self._cache.prepare()

    def close(self) -> None:
        """Drop the session and the cache."""
        del self._runs, self._cache


def _order(chunks: Sequence[Chunk], computed: Sequence[int]) -> list[int]:
    """Return where the logits of each position of ``chunks`` are, which were computed in another order."""
    places: dict[int, range] = {}
    first = 0
    for index in computed:
        places[index] = range(first, first + chunks[index].logits)
        first += chunks[index].logits
    return [place for index in range(len(chunks)) for place in places[index]]
