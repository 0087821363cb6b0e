"""The requests: seeded random tokens, so that no two prompts share a prefix unless they are meant to."""

from __future__ import annotations

import math
import random
from typing import Final

from benchmarks.generation.scenarios import Scenario
from benchmarks.generation.work import Work

SEED: Final = 20261122
TOKENS: Final = (100, 49_000)
"""Ids that prompts are drawn from: no special tokens of SmolLM2's vocabulary of 49,152."""

WARM_PROMPT: Final = 16
WARM_TOKENS: Final = 4
SUFFIX: Final = 16
"""Tokens after a shared prefix."""

REQUESTS_PER_CALLER: Final = 6


def source(*names: object) -> random.Random:
    """Return a generator of random numbers that only ``names`` decide on."""
    return random.Random(":".join(map(str, (SEED, *names))))  # noqa: S311 - the same requests every time


def prompt(draw: random.Random, length: int) -> list[int]:
    """Draw token ids."""
    return [draw.randrange(*TOKENS) for _ in range(length)]


def uniform(streams: int, length: int, new_tokens: int, draw: random.Random) -> Work:
    """Return requests of equal lengths that begin together."""
    return Work([prompt(draw, length) for _ in range(streams)], [new_tokens] * streams, streams, [])


def warm(streams: int, draw: random.Random) -> Work:
    """Return a little work that wakes a contender up."""
    return uniform(streams, WARM_PROMPT, WARM_TOKENS, draw)


def mixed(scenario: Scenario, streams: int, draw: random.Random, gap: float) -> Work:
    """Return requests of mixed lengths whose callers begin one after another, at random gaps.

    Lengths are an even sample of their ranges in random order, so that every stretch of the run has about the
    same mean; outputs are drawn independently of prompts. ``gap`` is the mean time between two callers.
    """
    count = streams * REQUESTS_PER_CALLER
    prompts = spread(*scenario.prompt_range, count, draw)
    outputs = spread(*scenario.output_range, count, draw)
    gaps, moment = [], 0.0
    for _ in range(streams):
        gaps.append(moment)
        moment += draw.expovariate(1.0 / gap) if gap else 0.0
    return Work([prompt(draw, length) for length in prompts], outputs, streams, gaps)


def spread(low: int, high: int, count: int, draw: random.Random) -> list[int]:
    """Return ``count`` values evenly over ``low`` to ``high``; every block of 8 has low and high ones."""
    values = [low + round((high - low) * (index + 0.5) / count) for index in range(count)]
    blocks = math.ceil(count / 8)
    ordered: list[int] = []
    for block in range(blocks):
        part = values[block::blocks]
        draw.shuffle(part)
        ordered += part
    return ordered


def prefixed(shared: list[int], new_tokens: int, draw: random.Random) -> Work:
    """Return one request that begins with ``shared``."""
    return Work([shared + prompt(draw, SUFFIX)], [new_tokens], 1, [])


def longest(scenario: Scenario) -> int:
    """Return the tokens of a scenario's longest sequence."""
    if scenario.kind == "mixed":
        return scenario.prompt_range[1] + scenario.output_range[1]
    return scenario.prompt + (SUFFIX if scenario.kind == "prefix" else 0) + scenario.new_tokens
