"""Tokenising for many callers at once, outside the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from headrace.server.errors import HeadraceError
from headrace.server.tasks.text_encoding import Direction, EncodeRequest, Text, Tokens, encode_group

if TYPE_CHECKING:
    from headrace.server.repository.model import TextSettings

Given = ParamSpec("Given")
Result = TypeVar("Result")
Waiting = tuple[EncodeRequest, asyncio.Future[list[Tokens]]]

INLINE_CHARACTERS: Final = 400
"""Texts of up to this many characters together are tokenised at once, on the event loop, when all threads are
free: that takes up to 0.2 ms, about as long as a change of thread there and back."""

_TEXT_CHARACTERS: Final = 20
"""What a text costs beside its characters, in characters."""

GROUP_TEXTS: Final = 256
"""A group that has this many texts is closed, so that a flood of requests is answered in turns."""


class Tokenizing:
    """A few threads that tokenise, and do other work that is too long for the event loop.

    A short request that finds all threads free needs none. Another that finds one free starts at once.
    Requests that arrive while all are busy are gathered and go together: one change of thread and one native
    call for the whole group instead of one each.

    Args:
        threads: calls under way at the same time, at least 1.
    """

    def __init__(self, threads: int = 2) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="headrace-tokenise")
        self._free = threads
        self._waiting: deque[Waiting] = deque()

    async def tokenize(
        self,
        settings: TextSettings,
        texts: Sequence[Text],
        *,
        truncate: bool = True,
        direction: Direction = Direction.RIGHT,
        prompt: str = "",
        special: bool = True,
    ) -> list[Tokens]:
        """Tokenise ``texts``; one result for each, in order.

        Args:
            settings: the model's tokenizer and limits.
            texts: texts, pairs or token ids. Ids are decoded and encoded again: without a prompt their
                special tokens are kept and none are added.
            truncate: cut what is longer than the model takes, instead of refusing it.
            direction: which end is cut; special tokens are never cut.
            prompt: text put before every text or id input (not before pairs).
            special: let the tokenizer add its special tokens; ids bring their own.

        Raises:
            InputEmptyError: an input is empty.
            InputTooLongError: an input is too long and ``truncate`` is off.
            InvalidArgumentError: a token id is out of vocabulary, or a text is not valid Unicode.
        """
        request = EncodeRequest(settings, texts, truncate, direction, prompt, special)
        if self._free == self.threads and _short(request):
            (answer,) = encode_group([request])
            if isinstance(answer, HeadraceError):
                raise answer
            return answer
        future: asyncio.Future[list[Tokens]] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._start()
        return await future

    async def run(
        self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Run ``function`` in the pool: for arithmetic or encoding of more than some kilobytes."""
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, partial(function, *args, **kwargs)
        )

    def close(self) -> None:
        """Stop the threads once what they do is done."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        """Hand groups to free threads."""
        while self._free and self._waiting:
            group: list[Waiting] = []
            texts = 0
            while self._waiting and texts < GROUP_TEXTS:
                entry = self._waiting.popleft()
                if not entry[1].done():  # the caller of a cancelled one has gone
                    group.append(entry)
                    texts += len(entry[0].texts)
            if not group:
                return
            call = asyncio.get_running_loop().run_in_executor(
                self._pool, encode_group, [request for request, _ in group]
            )
            self._free -= 1
            call.add_done_callback(partial(self._finish, group))

    def _finish(self, group: list[Waiting], call: asyncio.Future[list[list[Tokens] | HeadraceError]]) -> None:
        self._free += 1
        failure = asyncio.CancelledError() if call.cancelled() else call.exception()
        answers = [failure] * len(group) if failure is not None else call.result()
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, asyncio.CancelledError):
                future.cancel()
            elif isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._start()


def _short(request: EncodeRequest) -> bool:
    """Whether a request is tokenised faster than it is handed to a thread; never true of token ids."""
    left = INLINE_CHARACTERS
    for text in request.texts:
        if isinstance(text, list):
            return False
        left -= _TEXT_CHARACTERS + len(request.prompt)
        left -= len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
        if left < 0:
            return False
    return True
