"""Requests of one stream that have one answer each, and requests that have many."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from headrace.server.services.ordered import answer_as_they_come


async def numbers(count: int, *, stay: bool = False) -> AsyncIterator[int]:
    for number in range(count):
        yield number
    if stay:
        await asyncio.Event().wait()


def none(number: int) -> AsyncGenerator[int] | None:
    return None


async def test_single_answers_keep_their_order() -> None:
    async def answer(number: int) -> int:
        await asyncio.sleep(0.01 * (5 - number))
        return number

    assert [number async for number in answer_as_they_come(numbers(5), answer, none, 8)] == [0, 1, 2, 3, 4]


async def test_many_answers_come_between() -> None:
    gate = asyncio.Event()

    async def answer(number: int) -> int:
        await gate.wait()
        return number

    async def count(number: int) -> AsyncGenerator[int]:
        for step in range(3):
            yield number * 10 + step

    def several(number: int) -> AsyncGenerator[int] | None:
        return count(number) if number == 1 else None

    answers = answer_as_they_come(numbers(3), answer, several, 8)
    assert [await anext(answers) for _ in range(3)] == [10, 11, 12]
    gate.set()
    assert [number async for number in answers] == [0, 2]


async def test_an_error_has_its_turn_and_is_the_last() -> None:
    async def answer(number: int) -> int:
        await asyncio.sleep(0.01 * (4 - number))
        if number == 2:
            raise ValueError(number)
        return number

    seen = []
    with pytest.raises(ValueError, match="2"):  # noqa: PT012 - what came before the error counts
        async for number in answer_as_they_come(numbers(5), answer, none, 8):
            seen.append(number)  # noqa: PERF401
    assert seen == [0, 1]


async def test_an_error_in_reading_comes_after_the_answers() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 1
        raise ConnectionResetError

    async def answer(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    seen = []
    with pytest.raises(ConnectionResetError):  # noqa: PT012 - as above
        async for number in answer_as_they_come(requests(), answer, none, 2):
            seen.append(number)  # noqa: PERF401
    assert seen == [1]


async def test_answers_that_are_not_taken_hold_the_requests_up() -> None:
    started = made = 0

    async def answer(number: int) -> int:
        nonlocal started
        started += 1
        return number

    async def count(number: int) -> AsyncGenerator[int]:
        nonlocal made
        for step in range(100):
            made += 1
            yield step

    answers = answer_as_they_come(numbers(100), answer, none, 3)
    assert await anext(answers) == 0
    await asyncio.sleep(0.01)
    assert started <= 8  # three were given but not taken, three wait to give, one was taken
    await answers.aclose()
    pieces = answer_as_they_come(numbers(1), answer, count, 3)
    assert await anext(pieces) == 0
    await asyncio.sleep(0.01)
    assert made <= 5
    assert len([step async for step in pieces]) == 99


async def test_leaving_early_ends_what_runs() -> None:
    ended: list[int] = []

    async def answer(number: int) -> int:
        return number

    async def forever(number: int) -> AsyncGenerator[int]:
        try:
            yield number
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    def several(number: int) -> AsyncGenerator[int] | None:
        return forever(number) if number else None

    answers = answer_as_they_come(numbers(3, stay=True), answer, several, 8)
    async with contextlib.aclosing(answers):
        assert sorted([await anext(answers) for _ in range(3)]) == [0, 1, 2]
    assert sorted(ended) == [1, 2]
