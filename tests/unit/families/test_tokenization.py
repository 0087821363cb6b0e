"""The tokeniser pool: results, truncation, errors, and how requests are gathered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from headrace.server.errors import InputEmptyError, InputTooLongError, InvalidArgumentError
from headrace.server.repository.model import TextSettings
from headrace.server.tasks import tokenization
from headrace.server.tasks.text_encoding import Direction, EncodeRequest, Tokens, encode_group, resolve_prompt
from headrace.server.tasks.tokenization import Tokenizing

LONG = "a " * tokenization.INLINE_CHARACTERS
"""A text that is never tokenised on the event loop."""


def ids(tokens: Tokens) -> list[int]:
    assert len(tokens.ids) == tokens.count * 4
    found: list[int] = np.frombuffer(tokens.ids, "<i4").tolist()
    return found


def type_ids(tokens: Tokens) -> list[int]:
    return [0] * tokens.count if tokens.type_ids is None else np.frombuffer(tokens.type_ids, "<i4").tolist()


async def test_results_are_those_of_the_library(tokenizer: Tokenizer, tokenizing: Tokenizing) -> None:
    texts: list[Any] = ["What is deep learning?", ("paris", "the capital of france"), "good", "naïve 日本"]
    found = await tokenizing.tokenize(TextSettings(tokenizer, 64), texts)
    for text, tokens in zip(texts, found, strict=True):
        expected = tokenizer.encode(*((text,) if isinstance(text, str) else text))
        assert ids(tokens) == expected.ids
        assert type_ids(tokens) == expected.type_ids
        assert tokens.count == len(expected)
    assert found[0].type_ids is None
    assert found[1].type_ids is not None


words = st.lists(st.sampled_from(["good", "paris", "zebra", "?"]), min_size=1, max_size=14).map(" ".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(words, st.tuples(words, words)),
    limit=st.integers(3, 20),
    direction=st.sampled_from(Direction),
)
def test_truncation_is_that_of_the_library(
    tokenizer: Tokenizer, text: str | tuple[str, str], limit: int, direction: Direction
) -> None:
    (found,) = encode_group([EncodeRequest(TextSettings(tokenizer, limit), [text], True, direction, "")])
    assert isinstance(found, list)
    tokenizer.enable_truncation(limit, strategy="longest_first", direction=direction.value)
    try:
        expected = tokenizer.encode(*((text,) if isinstance(text, str) else text))
    finally:
        tokenizer.no_truncation()
    assert ids(found[0]) == expected.ids
    assert type_ids(found[0]) == expected.type_ids


def test_truncation_without_special_tokens(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = None
    requests = [
        EncodeRequest(TextSettings(tokenizer, 2), ["a b c"], True, direction, "") for direction in Direction
    ]
    right, left = encode_group(requests)
    assert isinstance(right, list)
    assert isinstance(left, list)
    whole = tokenizer.encode("a b c").ids
    assert ids(right[0]) == whole[:2]
    assert ids(left[0]) == whole[-2:]


async def test_too_long_is_refused_when_truncation_is_off(
    tokenizer: Tokenizer, tokenizing: Tokenizing
) -> None:
    with pytest.raises(
        InputTooLongError, match=r"^`inputs` must have less than 5 tokens. Given: 7$"
    ) as caught:
        await tokenizing.tokenize(TextSettings(tokenizer, 5), ["good", "good bad a b c"], truncate=False)
    assert caught.value.metadata == {"field": "inputs", "index": "1", "tokens": "7", "max_tokens": "5"}
    (fits,) = await tokenizing.tokenize(TextSettings(tokenizer, 7), ["good bad a b c"], truncate=False)
    assert fits.count == 7


async def test_absurd_lengths_never_reach_the_tokenizer(tokenizer: Tokenizer, tokenizing: Tokenizing) -> None:
    settings = TextSettings(tokenizer, 4)
    text = "good " * 500 + "bad"
    with pytest.raises(InputTooLongError, match=r"must have less than 1000 characters\. Given: 2503"):
        await tokenizing.tokenize(settings, [text], truncate=False)
    (right,) = await tokenizing.tokenize(settings, [text])
    (left,) = await tokenizing.tokenize(settings, [text], direction=Direction.LEFT)
    assert ids(right) == tokenizer.encode("good good").ids
    assert ids(left) == tokenizer.encode("good bad").ids


async def test_token_ids_are_read_back_and_encoded_again(
    tokenizer: Tokenizer, tokenizing: Tokenizing
) -> None:
    settings = TextSettings(tokenizer, 16)
    whole = tokenizer.encode("what is deep learning").ids
    bare = whole[1:-1]
    with_special, without = await tokenizing.tokenize(settings, [whole, bare])
    assert ids(with_special) == whole
    assert ids(without) == bare  # none are added
    (prompted,) = await tokenizing.tokenize(settings, [whole], prompt="a ")
    assert ids(prompted) == tokenizer.encode("a what is deep learning").ids


@pytest.mark.parametrize("token", [-1, 10_000, 2**31, 2**40])
async def test_token_ids_out_of_vocabulary(tokenizer: Tokenizer, tokenizing: Tokenizing, token: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"token id {token} is out of vocabulary, expected 0 to "):
        await tokenizing.tokenize(TextSettings(tokenizer, 16), [[2, token]])


@pytest.mark.parametrize("empty", ["", [], ("", "")])
async def test_empty_inputs(tokenizer: Tokenizer, tokenizing: Tokenizing, empty: Any) -> None:
    with pytest.raises(InputEmptyError, match="`inputs` cannot be empty") as caught:
        await tokenizing.tokenize(TextSettings(tokenizer, 16), ["good", empty])
    assert caught.value.metadata["index"] == "1"


async def test_half_empty_pair_is_fine(tokenizer: Tokenizer, tokenizing: Tokenizing) -> None:
    (tokens,) = await tokenizing.tokenize(TextSettings(tokenizer, 16), [("good", "")])
    assert ids(tokens) == tokenizer.encode("good", "").ids


async def test_text_without_tokens(tokenizer: Tokenizer, tokenizing: Tokenizing) -> None:
    tokenizer.post_processor = None
    with pytest.raises(InputEmptyError, match="makes no tokens"):
        await tokenizing.tokenize(TextSettings(tokenizer, 16), [" "])


async def test_lone_surrogates_are_named(tokenizer: Tokenizer, tokenizing: Tokenizing) -> None:
    with pytest.raises(InvalidArgumentError, match="not valid Unicode: unpaired surrogate at character 3"):
        await tokenizing.tokenize(TextSettings(tokenizer, 16), ["abc\ud800"])
    with pytest.raises(InvalidArgumentError, match="not valid Unicode"):
        await tokenizing.tokenize(TextSettings(tokenizer, 16), [("abc", "\udfff")])


async def test_a_wrong_input_fails_its_own_request_only(tokenizer: Tokenizer) -> None:
    pool = Tokenizing(1)
    settings = TextSettings(tokenizer, 6)
    blocked = threading.Event()
    holder = asyncio.ensure_future(pool.run(blocked.wait, 10))  # everything below waits and goes as one group
    requests = [
        pool.tokenize(settings, [LONG]),
        pool.tokenize(settings, ["bad", "\ud800"]),
        pool.tokenize(settings, ["a b c a b c"], truncate=False),
        pool.tokenize(settings, [""]),
        pool.tokenize(settings, [[-5]]),
        pool.tokenize(settings, ["bad"]),
    ]
    answers = asyncio.gather(*requests, return_exceptions=True)
    await asyncio.sleep(0)
    blocked.set()
    first, *errors, last = await answers
    await holder
    pool.close()
    assert [type(error) for error in errors] == [
        InvalidArgumentError, InputTooLongError, InputEmptyError, InvalidArgumentError,
    ]  # fmt: skip
    assert isinstance(first, list)
    assert isinstance(last, list)
    assert ids(first[0])[1:-1] == tokenizer.encode("a a a a", add_special_tokens=False).ids
    assert ids(last[0]) == tokenizer.encode("bad").ids


class Spy:
    """Counts the groups that reach the pool and remembers their threads; all wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[int] = []
        self.threads: set[int] = set()
        self.release = threading.Event()
        monkeypatch.setattr(tokenization, "encode_group", self)

    def __call__(self, requests: Sequence[EncodeRequest]) -> Any:
        self.groups.append(len(requests))
        self.threads.add(threading.get_ident())
        self.release.wait(10)
        return encode_group(requests)


async def test_requests_that_wait_are_gathered(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    pool = Tokenizing(1)
    settings = TextSettings(tokenizer, 16)
    requests = [
        asyncio.ensure_future(pool.tokenize(settings, [word])) for word in [LONG, "b", "c", "good", "bad"]
    ]
    await asyncio.sleep(0)
    requests[2].cancel()
    await asyncio.sleep(0)
    spy.release.set()
    answers = await asyncio.gather(*requests, return_exceptions=True)
    pool.close()
    assert spy.groups == [1, 3]  # the first at once; of the four that waited, the cancelled one is dropped
    assert threading.get_ident() not in spy.threads
    assert isinstance(answers[2], asyncio.CancelledError)
    found = [ids(answer[0]) for answer in answers if isinstance(answer, list)]
    assert found[1:] == [tokenizer.encode(word).ids for word in ["b", "good", "bad"]]


async def test_short_texts_need_no_thread(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    spy.release.set()
    pool = Tokenizing(1)
    settings = TextSettings(tokenizer, 16)
    (short,) = await pool.tokenize(settings, ["good"])
    assert spy.threads == {threading.get_ident()}
    assert ids(short) == tokenizer.encode("good").ids
    for texts in ([LONG], ["good"] * 30, [[1, 2]], [("a", LONG)]):
        spy.threads.clear()
        await pool.tokenize(settings, texts)
        assert threading.get_ident() not in spy.threads
    pool.close()


async def test_groups_are_closed_by_size(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    pool = Tokenizing(1)
    settings = TextSettings(tokenizer, 16)
    requests = [asyncio.ensure_future(pool.tokenize(settings, ["a"] * 100)) for _ in range(8)]
    await asyncio.sleep(0)
    spy.release.set()
    await asyncio.gather(*requests)
    pool.close()
    assert spy.groups == [1, 3, 3, 1]


async def test_a_failing_pool_call_fails_its_requests_and_frees_the_thread(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(requests: Sequence[EncodeRequest]) -> Any:
        raise MemoryError

    pool = Tokenizing(1)
    with monkeypatch.context() as patch:
        patch.setattr(tokenization, "encode_group", broken)
        with pytest.raises(MemoryError):
            await pool.tokenize(TextSettings(tokenizer, 16), ["a"])
    assert len(await pool.tokenize(TextSettings(tokenizer, 16), ["a"])) == 1
    pool.close()


async def test_models_with_different_tokenizers_share_a_group(tokenizer: Tokenizer) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.post_processor = None
    requests = [
        EncodeRequest(TextSettings(owner, 16), ["a b"], True, Direction.RIGHT, "")
        for owner in (tokenizer, other)
    ]
    first, second = encode_group(requests)
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert ids(first[0])[1:-1] == ids(second[0])


def test_prompts(tokenizer: Tokenizer) -> None:
    settings = TextSettings(tokenizer, 16, prompts={"query": "query: ", "doc": "doc: "}, default_prompt="doc")
    assert resolve_prompt(settings, "query") == "query: "
    assert resolve_prompt(settings, None) == "doc: "
    assert resolve_prompt(TextSettings(tokenizer, 16), None) == ""
    with pytest.raises(
        InvalidArgumentError,
        match="^`default-prompt-name` is set to `x` but it was not found in the Sentence Transformers "
        r'prompts\. Available prompts: \["query", "doc"\]$',
    ):
        resolve_prompt(settings, "x")
    with pytest.raises(InvalidArgumentError, match="but no prompts were found in the Sentence Transformers"):
        resolve_prompt(TextSettings(tokenizer, 16), "x")


async def test_the_tokenizers_own_settings_stay(tokenizer: Tokenizer, tokenizing: Tokenizing) -> None:
    before = tokenizer.to_str()
    await tokenizing.tokenize(TextSettings(tokenizer, 4), ["good bad a b c"], direction=Direction.LEFT)
    assert tokenizer.to_str() == before
