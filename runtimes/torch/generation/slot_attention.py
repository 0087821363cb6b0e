"""Attention of one step over the slots' rows, on the CPU."""

from __future__ import annotations

import dataclasses

import torch
from torch.nn import functional

from headrace.runtimes.torch.generation.network import Form
from headrace.runtimes.torch.generation.packing import Group, Packed, Span
from headrace.runtimes.torch.generation.rows import Rows
from headrace.runtimes.torch.generation.scores import attend


class SlotAttention:
    """An :class:`~headrace.runtimes.torch.generation.network.Attention` over :class:`Rows`.

    The query heads that share a KV head are computed as rows of one product, so keys and values are read once
    and never repeated. Masks and indices are made by the first layer that needs them.
    """

    def __init__(self, rows: Rows, packed: Packed) -> None:
        """Prepare for the chunks of a step."""
        self._rows = rows
        self._packed = packed
        self._token_rows = torch.tensor(
            [span.row for span in packed.spans for _ in range(span.first, span.last)], dtype=torch.int64
        )
        self._places: dict[tuple[int, int], torch.Tensor] = {}
        self._masks: dict[tuple[int, int, torch.dtype], tuple[int, torch.Tensor | None]] = {}

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
    ) -> torch.Tensor:
        """Write the new tokens, then attend; see ``Attention``."""
        keys, values = self._rows.keys[layer], self._rows.values[layer]
        self._write(keys, key)
        self._write(values, value)
        result = query.new_empty(query.shape[0], query.shape[1] * value.shape[2])
        for group in self._packed.groups:
            part = self._decode(group, query[group.first : group.last], keys, values, form)
            result[group.first : group.last] = part.reshape(group.last - group.first, -1)
        for span in self._packed.long:
            part = self._prefill(span, query[span.first : span.last], keys, values, form)
            result[span.first : span.last] = part
        return result

    def _decode(
        self, group: Group, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, form: Form
    ) -> torch.Tensor:
        count, heads = len(group.ends), keys.shape[1]
        first, mask = self._group_mask(group, form.window, query.dtype)
        rows = slice(group.row, group.row + count)
        last = max(group.ends)
        queries = query.reshape(count, heads, query.shape[1] // heads, query.shape[2])
        form = _with_sinks(form, heads, 1)
        return attend(queries, keys[rows, :, first:last], values[rows, :, first:last], form, mask)

    def _prefill(
        self, span: Span, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, form: Form
    ) -> torch.Tensor:
        count, heads = query.shape[0], keys.shape[1]
        group = query.shape[1] // heads
        first, mask = self._span_mask(span, form.window, query.dtype)
        key = keys[span.row, :, None, first : span.end]
        value = values[span.row, :, None, first : span.end]
        # [tokens, heads, width] → [KV heads, query heads of each, tokens, width], keys seen by each of these.
        rows = query.reshape(count, heads, group, -1).permute(1, 2, 0, 3)
        if form.plain and mask is None:
            key, value = key.expand(-1, group, -1, -1), value.expand(-1, group, -1, -1)
            part = functional.scaled_dot_product_attention(rows, key, value, is_causal=True, scale=form.scale)
        elif form.plain:
            key, value = key.expand(-1, group, -1, -1), value.expand(-1, group, -1, -1)
            part = functional.scaled_dot_product_attention(rows, key, value, mask, scale=form.scale)
        else:
            form = _with_sinks(form, heads, count)
            part = attend(
                rows.flatten(1, 2)[None],
                key.transpose(0, 1),
                value.transpose(0, 1),
                form,
                (mask if mask is not None else _visible(span, 0, 0, torch.float32)).repeat(group, 1),
            ).view(heads, group, count, -1)
        return part.permute(2, 0, 1, 3).reshape(count, -1)

    def _write(self, cache: torch.Tensor, states: torch.Tensor) -> None:
        """Copy ``states`` [tokens, heads, width] of the new tokens into their places of ``cache``."""
        _, heads, row_tokens, width = cache.shape
        places = self._places.get((heads, row_tokens))
        if places is None:
            head_rows = self._token_rows[:, None] * heads + torch.arange(heads)
            places = (head_rows * row_tokens + self._packed.positions[:, None]).reshape(-1)
            self._places[heads, row_tokens] = places
        cache.view(-1, width).index_copy_(0, places, states.reshape(-1, width))

    def _group_mask(self, group: Group, window: int, dtype: torch.dtype) -> tuple[int, torch.Tensor | None]:
        """Return the first token that any sequence sees, and what hides the others; None hides nothing."""
        found = self._masks.get((group.first, window, dtype))
        if found is None:
            starts = [max(0, end - window) if window else 0 for end in group.ends]
            first, last = min(starts), max(group.ends)
            mask: torch.Tensor | None = None
            if any(start != first for start in starts) or any(end != last for end in group.ends):
                tokens = torch.arange(first, last)
                seen = (tokens < torch.tensor(group.ends)[:, None]) & (
                    tokens >= torch.tensor(starts)[:, None]
                )
                mask = _additive(seen, dtype)[:, None, None]
            found = self._masks[group.first, window, dtype] = first, mask
        return found

    def _span_mask(self, span: Span, window: int, dtype: torch.dtype) -> tuple[int, torch.Tensor | None]:
        """Return the same for a chunk of several tokens; None is causal from its first token on."""
        if span.start == 0 and (not window or span.end <= window):
            return 0, None
        found = self._masks.get((span.first, window, dtype))
        if found is None:
            first = max(0, span.start + 1 - window) if window else 0
            found = self._masks[span.first, window, dtype] = first, _visible(span, first, window, dtype)
        return found


def _visible(span: Span, first: int, window: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the mask of a chunk's tokens over tokens ``first`` to its end, [tokens of the chunk, tokens]."""
    own = torch.arange(span.start, span.end)[:, None]
    tokens = torch.arange(first, span.end)
    seen = tokens <= own
    if window:
        seen &= tokens > own - window
    return _additive(seen, dtype)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _with_sinks(form: Form, heads: int, tokens: int) -> Form:
    """Lay sinks out as the query rows are: [KV heads, query heads of each * tokens]."""
    if form.sinks is None:
        return form
    return dataclasses.replace(form, sinks=form.sinks.view(heads, -1).repeat_interleave(tokens, dim=1))
