"""Attention of one token of each sequence over a cache in blocks: a Triton kernel.

Each program attends the query heads of one KV head to one part of one sequence, with a running softmax; a
second kernel joins the parts. Parts keep a GPU busy when few sequences are long. Shapes do not depend on
lengths, so the launch can be captured in a CUDA graph.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import torch

from headrace.runtimes.torch.generation.network import Form

# Not a dependency: it comes with torch's builds for CUDA.
triton: Any = import_module("triton")
tl: Any = import_module("triton.language")

_TILE: Final = 64
_PARTS: Final = 8
_LEAST_ROWS: Final = 16
"""Rows that a matrix product of Triton has at least."""


def decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    ends: torch.Tensor,
    form: Form,
) -> torch.Tensor:
    """Be a ``Decode``; see ``paged_attention``."""
    sequences, query_heads, key_width = query.shape
    _, block_tokens, heads, value_width = values.shape
    group = query_heads // heads
    rows = max(_LEAST_ROWS, triton.next_power_of_2(group))
    sums = query.new_empty((sequences, query_heads, _PARTS, value_width), dtype=torch.float32)
    # Of each part: the largest score, and the sum of the exponentials of scores less that.
    stats = query.new_empty((sequences, query_heads, _PARTS, 2), dtype=torch.float32)
    _attend_part[sequences, heads, _PARTS](
        query.contiguous(),
        keys,
        values,
        tables,
        ends,
        sums,
        stats,
        form.scale,
        tables.stride(0),
        HEADS=heads,
        GROUP=group,
        ROWS=rows,
        KEY_WIDTH=key_width,
        KEY_COLUMNS=max(16, triton.next_power_of_2(key_width)),
        VALUE_WIDTH=value_width,
        VALUE_COLUMNS=max(16, triton.next_power_of_2(value_width)),
        BLOCK_TOKENS=block_tokens,
        WINDOW=form.window,
        SOFTCAP=form.softcap,
        TILE=_TILE,
        PARTS=_PARTS,
    )
    result = query.new_empty((sequences, query_heads, value_width))
    _join_parts[sequences, query_heads](
        sums,
        stats,
        stats if form.sinks is None else form.sinks,
        result,
        SINKS=form.sinks is not None,
        QUERY_HEADS=query_heads,
        VALUE_WIDTH=value_width,
        VALUE_COLUMNS=triton.next_power_of_2(value_width),
        PARTS=_PARTS,
    )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _attend_part(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    ends: tl.tensor,
    sums: tl.tensor,
    stats: tl.tensor,
    scale: tl.tensor,
    table_stride: tl.tensor,
    HEADS: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    KEY_WIDTH: tl.constexpr,  # noqa: N803
    KEY_COLUMNS: tl.constexpr,  # noqa: N803
    VALUE_WIDTH: tl.constexpr,  # noqa: N803
    VALUE_COLUMNS: tl.constexpr,  # noqa: N803
    BLOCK_TOKENS: tl.constexpr,  # noqa: N803
    WINDOW: tl.constexpr,  # noqa: N803
    SOFTCAP: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
) -> None:
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2)
    end = tl.load(ends + sequence)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(end - WINDOW, 0)
    length = tl.cdiv(tl.cdiv(end - begin, PARTS), TILE) * TILE
    first = begin + part * length
    last = tl.minimum(first + length, end)

    row = tl.arange(0, ROWS)
    key_column = tl.arange(0, KEY_COLUMNS)
    value_column = tl.arange(0, VALUE_COLUMNS)
    query_head = sequence * HEADS * GROUP + head * GROUP + row
    real = row < GROUP
    queries = tl.load(
        query + query_head[:, None] * KEY_WIDTH + key_column[None, :],
        mask=real[:, None] & (key_column < KEY_WIDTH)[None, :],
        other=0.0,
    )
    largest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, VALUE_COLUMNS], tl.float32)
    for at in range(first, last, TILE):
        token = at + tl.arange(0, TILE)
        seen = token < last
        block = tl.load(tables + sequence * table_stride + token // BLOCK_TOKENS, mask=seen, other=0)
        place = (block.to(tl.int64) * BLOCK_TOKENS + token % BLOCK_TOKENS) * HEADS + head
        key = tl.load(
            keys + place[:, None] * KEY_WIDTH + key_column[None, :],
            mask=seen[:, None] & (key_column < KEY_WIDTH)[None, :],
            other=0.0,
        )
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        if SOFTCAP > 0:
            # tanh, which Triton's language has not, by exponentials of what is not positive.
            capped = scores / SOFTCAP
            small = tl.exp(-2.0 * tl.abs(capped))
            magnitude = SOFTCAP * (1.0 - small) / (1.0 + small)
            scores = tl.where(capped < 0, -magnitude, magnitude)
        scores = tl.where(seen[None, :], scores, -1e30)
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        shares = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
        shrink = tl.exp(largest - higher)
        value = tl.load(
            values + place[:, None] * VALUE_WIDTH + value_column[None, :],
            mask=seen[:, None] & (value_column < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        summed = summed * shrink[:, None] + tl.dot(shares.to(value.dtype), value, input_precision="ieee")
        total = total * shrink + tl.sum(shares, axis=1)
        largest = higher
    place_out = query_head * PARTS + part
    tl.store(
        sums + place_out[:, None] * VALUE_WIDTH + value_column[None, :],
        summed,
        mask=real[:, None] & (value_column < VALUE_WIDTH)[None, :],
    )
    tl.store(stats + place_out * 2, largest, mask=real)
    tl.store(stats + place_out * 2 + 1, total, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def _join_parts(
    sums: tl.tensor,
    stats: tl.tensor,
    sinks: tl.tensor,
    result: tl.tensor,
    SINKS: tl.constexpr,  # noqa: N803
    QUERY_HEADS: tl.constexpr,  # noqa: N803
    VALUE_WIDTH: tl.constexpr,  # noqa: N803
    VALUE_COLUMNS: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803
) -> None:
    head = tl.program_id(1)
    row = tl.program_id(0) * QUERY_HEADS + head
    part = tl.arange(0, PARTS)
    column = tl.arange(0, VALUE_COLUMNS)
    largest = tl.load(stats + (row * PARTS + part) * 2)
    totals = tl.load(stats + (row * PARTS + part) * 2 + 1)
    highest = tl.max(largest, axis=0)
    extra = 0.0
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        highest = tl.maximum(highest, sink)
        extra = tl.exp(sink - highest)
    weights = tl.exp(largest - highest)
    total = tl.sum(weights * totals, axis=0) + extra
    parts = tl.load(
        sums + (row * PARTS + part)[:, None] * VALUE_WIDTH + column[None, :],
        mask=(column < VALUE_WIDTH)[None, :],
        other=0.0,
    )
    joined = tl.sum(parts * weights[:, None], axis=0) / total
    tl.store(
        result + row * VALUE_WIDTH + column,
        joined.to(result.dtype.element_ty),
        mask=column < VALUE_WIDTH,
    )
