"""Attention of one step over a cache in blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from headrace.runtimes.torch.generation.network import Form
from headrace.runtimes.torch.generation.paged_cache import PagedCache
from headrace.runtimes.torch.generation.scores import attend

Decode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Form], torch.Tensor]
"""Attends one token of each sequence: (query [sequences, query heads, key width], keys and values of a layer,
block tables [sequences, blocks], tokens of each sequence [sequences], form) → [sequences, query heads, value
width]. Tables and tokens are int32."""


@dataclass(frozen=True, slots=True)
class Long:
    """The packed tokens ``first`` to ``last`` of one sequence: its tokens ``start`` on, in ``table``."""

    first: int
    last: int
    start: int
    table: torch.Tensor


class PagedAttention:
    """An :class:`~headrace.runtimes.torch.generation.network.Attention` over :class:`PagedCache`.

    The first packed tokens are one of each decoding sequence; the others are those of ``long``.
    """

    def __init__(
        self,
        cache: PagedCache,
        places: torch.Tensor,
        tables: torch.Tensor,
        ends: torch.Tensor,
        long: Sequence[Long],
        decode: Decode,
    ) -> None:
        """Prepare for the tokens of a step.

        ``places`` [tokens] is where each token goes: block · block tokens + offset; ``tables`` [sequences,
        blocks] and ``ends`` [sequences] belong to the decoding sequences.
        """
        self._cache = cache
        self._places = places
        self._tables = tables
        self._ends = ends
        self._long = long
        self._decode = decode

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
    ) -> torch.Tensor:
        """Write the new tokens, then attend; see ``Attention``."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.view(-1, *keys.shape[2:]).index_copy_(0, self._places, key)
        values.view(-1, *values.shape[2:]).index_copy_(0, self._places, value)
        count = self._tables.shape[0]
        if not self._long:
            return self._decode(query, keys, values, self._tables, self._ends, form).flatten(1)
        result = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        if count:
            result[:count] = self._decode(query[:count], keys, values, self._tables, self._ends, form)
        for part in self._long:
            span = slice(part.first, part.last)
            own = (key[span], value[span])
            if part.start:
                own = (_collected(keys, part), _collected(values, part))
            result[span] = _prefill(query[span], *own, part.start, form)
        return result.flatten(1)


def gather(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    ends: torch.Tensor,
    form: Form,
) -> torch.Tensor:
    """Be a ``Decode`` in plain torch: collects the blocks of every sequence, padded to the longest."""
    count, heads = query.shape[0], keys.shape[2]
    key = keys[tables].flatten(1, 2).transpose(1, 2)
    value = values[tables].flatten(1, 2).transpose(1, 2)
    tokens = torch.arange(key.shape[2], device=query.device)
    seen = tokens < ends[:, None]
    if form.window:
        seen &= tokens >= ends[:, None] - form.window
    mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
    if form.sinks is not None:
        form = dataclasses.replace(form, sinks=form.sinks.view(heads, -1))
    queries = query.reshape(count, heads, query.shape[1] // heads, -1)
    return attend(queries, key, value, form, mask[:, None, None]).flatten(1, 2)


def _collected(blocks: torch.Tensor, part: Long) -> torch.Tensor:
    """Return what a sequence has, [tokens, heads, width]."""
    return blocks[part.table].flatten(0, 1)[: part.start + part.last - part.first]


def _prefill(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, form: Form
) -> torch.Tensor:
    """Attend tokens ``start`` on of one sequence to all of it; all are [tokens, heads, width]."""
    count, heads, end = query.shape[0], key.shape[1], key.shape[0]
    if form.plain and (not form.window or end <= form.window):
        rows, one_key, one_value = (states.transpose(0, 1)[None] for states in (query, key, value))
        part = functional.scaled_dot_product_attention(
            rows,
            one_key,
            one_value,
            causal_lower_right(count, end) if start else None,
            is_causal=not start,
            scale=form.scale,
            enable_gqa=query.shape[1] != heads,
        )
        return part[0].transpose(0, 1)
    own = torch.arange(start, end, device=query.device)[:, None]
    tokens = torch.arange(end, device=query.device)
    seen = tokens <= own
    if form.window:
        seen &= tokens > own - form.window
    mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, float("-inf"))
    group = query.shape[1] // heads
    # The query heads of a KV head as heads of a sequence of its own.
    queries = query.reshape(count, heads, group, -1).permute(1, 2, 0, 3)
    one_key, one_value = (
        states.transpose(0, 1)[:, None].expand(-1, group, -1, -1) for states in (key, value)
    )
    if form.sinks is not None:
        form = dataclasses.replace(form, sinks=form.sinks.view(heads, group, 1).expand(-1, -1, count))
    return attend(queries, one_key, one_value, form, mask).permute(2, 0, 1, 3).flatten(1, 2)
