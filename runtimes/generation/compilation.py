"""Compiles grammars beside the engine, so that a slow one holds up nobody else."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, NamedTuple

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.generation.messages import Add, Rejected
from headrace.runtimes.generation.parameters import Grammar
from headrace.runtimes.generation.postprocess import failure
from headrace.runtimes.generation.structured import CompiledGrammar

THREADS: Final = 2
"""Grammars compiled at once: a long one leaves a thread for the short ones."""


class Compiled(NamedTuple):
    """A request, and what came of its grammar."""

    message: Add
    grammar: CompiledGrammar | Rejected


class Compilation:
    """Requests whose grammar is being compiled. Methods are the loop's; threads end with the process."""

    def __init__(
        self, compile_grammar: Callable[[Grammar], CompiledGrammar], wake: Callable[[], None]
    ) -> None:
        """``compile_grammar`` is called in threads, and so is ``wake``, whenever something is ready."""
        self._compile = compile_grammar
        self._wake = wake
        self._queue: SimpleQueue[Add] = SimpleQueue()
        self._ready: deque[Compiled] = deque()
        self._pending: set[int] = set()
        self._started = False

    def submit(self, message: Add) -> None:
        """Have the grammar of a request compiled."""
        if not self._started:
            self._started = True
            for number in range(THREADS):
                threading.Thread(target=self._run, name=f"grammar-{number}", daemon=True).start()
        self._pending.add(message.request)
        self._queue.put(message)

    def drop(self, request: int) -> None:
        """Forget a request, if it is here."""
        self._pending.discard(request)

    def ready(self) -> list[Compiled]:
        """Return what was compiled since the last call, without what was dropped."""
        found = []
        while self._ready:
            compiled = self._ready.popleft()
            if compiled.message.request in self._pending:
                self._pending.remove(compiled.message.request)
                found.append(compiled)
        return found

    def _run(self) -> None:
        while True:
            message = self._queue.get()
            if message.request in self._pending and message.sampling.grammar is not None:
                self._ready.append(Compiled(message, self._result(message, message.sampling.grammar)))
                self._wake()

    def _result(self, message: Add, grammar: Grammar) -> CompiledGrammar | Rejected:
        try:
            return self._compile(grammar)
        except InvalidInputError as error:
            return Rejected(message.request, "invalid", str(error))
        except Exception as error:  # noqa: BLE001 - whatever a library raises is this request's answer
            return Rejected(message.request, "execution", failure(error))
