"""Tokens that torch draws on the device are those of the NumPy sampler, row for row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from headrace.runtimes.generation.base import Draw
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.truncation import truncate
from headrace.runtimes.torch.generation import device_sampler

Logits = NDArray[np.float32]

BORDER = 2e-6
"""Where rounding may choose the other of two tokens, as a share of all weights."""


def on_host(row: Logits, draw: Draw) -> int:
    if draw.temperature <= 0:
        return int(row.argmax())
    with np.errstate(all="ignore"):
        return truncate(row.copy(), parameters(draw)).draw(draw.uniform)


def parameters(draw: Draw) -> Sampling:
    return Sampling(
        max_tokens=1, temperature=draw.temperature, top_k=draw.top_k, top_p=draw.top_p, min_p=draw.min_p
    )


def on_device(rows: Logits, draws: list[Draw]) -> tuple[list[int], list[bool]]:
    with torch.inference_mode():
        tokens, sound = device_sampler.choose(torch.from_numpy(rows.copy()), draws)
    return tokens.tolist(), sound.tolist()


def random_draw(generator: np.random.Generator) -> Draw:
    return Draw(
        temperature=float(generator.choice([0.0, 0.2, 0.7, 1.0, 1.6])),
        top_k=int(generator.choice([0, 0, 1, 2, 20, 10**6])),
        top_p=float(generator.choice([1.0, 1.0, 0.1, 0.9, 0.999])),
        min_p=float(generator.choice([0.0, 0.0, 0.05, 1.0])),
        uniform=float(generator.random()),
    )


def random_rows(generator: np.random.Generator, count: int, size: int) -> Logits:
    rows = generator.standard_normal((count, size)) * generator.choice([0.1, 2.0, 6.0], (count, 1))
    # half of the rows are as coarse as bfloat16, so that many logits are equal
    coarse = generator.random((count, 1)) < 0.5
    rows = np.where(coarse, np.round(rows * 8) / 8, rows)
    rows[generator.random((count, size)) < 0.05] = -np.inf
    rows[:, 0] = generator.standard_normal(count)
    return np.asarray(rows, np.float32)


@pytest.mark.parametrize(("size", "count"), [(2, 300), (97, 1500), (3000, 300), (50_000, 40)])
def test_tokens_are_those_of_the_sampler(size: int, count: int) -> None:
    generator = np.random.default_rng(size)
    rows = random_rows(generator, count, size)
    draws = [random_draw(generator) for _ in range(count)]
    tokens, sound = on_device(rows, draws)
    assert all(sound)
    wanted = [on_host(row, draw) for row, draw in zip(rows, draws, strict=True)]
    different = [place for place in range(count) if tokens[place] != wanted[place]]
    assert len(different) <= count // 300
    for place in different:
        assert at_border(rows[place], draws[place], tokens[place], wanted[place])


def at_border(row: Logits, draw: Draw, *tokens: int) -> bool:
    """Whether the uniform number comes within ``BORDER`` of what lies between two tokens."""
    weights = truncate(row.copy(), parameters(draw))
    ids = np.arange(row.size) if weights.ids is None else weights.ids
    full = np.zeros(row.size)
    full[ids] = weights.values
    sums = np.cumsum(full) / full.sum()
    low, high = min(tokens), max(tokens)
    between = full[low + 1 : high].sum() / full.sum()
    return bool(abs(sums[low] - draw.uniform) < BORDER and between < BORDER)


@pytest.mark.parametrize(("row", "parts"), [([0.0] * 8, 96), ([0, 1, 1, 2, 0, 1, 2, -1, -np.inf], 97)])
@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.75, "top_k": 6}, {"min_p": 0.3}, {"min_p": 1.0}]
)
def test_among_equals_the_same_are_kept(filters: dict[str, Any], row: list[float], parts: int) -> None:
    """Eight equal weights have no rounding: every border between them is met exactly."""
    whole = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **filters}
    draws = [Draw(**whole, uniform=place / parts) for place in range(parts)]
    rows = np.array([row] * parts, np.float32)
    tokens, _ = on_device(rows, draws)
    assert tokens == [on_host(each, draw) for each, draw in zip(rows, draws, strict=True)]
    assert len(set(tokens)) > 1
    assert 8 not in tokens


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_no_impossible_token_is_drawn_at_the_ends(uniform: float) -> None:
    rows = np.array([[-np.inf, 0, 1, -np.inf], [-np.inf, -200, 0, -np.inf]], np.float32)
    for top_p in (1.0, 0.7, 1e-9):
        for temperature in (1.0, 1e-40, 1e30):
            draws = [Draw(temperature, 0, top_p, 0.0, uniform)] * 2
            tokens, sound = on_device(rows, draws)
            assert sound == [True, True]
            assert tokens == [on_host(row, draw) for row, draw in zip(rows, draws, strict=True)]
            assert {*tokens} <= {1, 2}


def test_rows_that_are_not_finite_are_told_and_change_no_other() -> None:
    generator = np.random.default_rng(3)
    rows = random_rows(generator, 6, 50)
    draws = [Draw(0.8, 0, 0.9, 0.0, 0.4), Draw(1.0, 0, 1.0, 0.0, 0.4), Draw(0.0, 0, 1.0, 0.0, 0.0)] * 2
    wanted = [on_host(row, draw) for row, draw in zip(rows, draws, strict=True)]
    rows[0, 7], rows[1, 3], rows[2] = np.nan, np.inf, -np.inf
    tokens, sound = on_device(rows, draws)
    assert sound == [False, False, False, True, True, True]
    assert tokens[3:] == wanted[3:]
    assert all(0 <= token < 50 for token in tokens)


def test_rows_are_weighed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    rows = random_rows(generator, 40, 60)
    draws = [random_draw(generator) for _ in rows]
    whole = on_device(rows, draws)
    monkeypatch.setattr(device_sampler, "_AT_ONCE", 200)
    assert on_device(rows, draws) == whole


def test_the_first_of_the_most_likely_is_taken() -> None:
    rows = np.zeros((2, 40), np.float32)
    rows[1, [9, 30]] = 2
    for dtype in (torch.float32, torch.bfloat16):
        tokens, _ = device_sampler.choose(torch.from_numpy(rows).to(dtype), [Draw(0.0, 0, 1.0, 0.0, 0.0)] * 2)
        assert tokens.tolist() == [0, 9]
