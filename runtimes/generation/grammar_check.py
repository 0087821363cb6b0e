"""Tries grammars in a process of its own before the engine takes them.

A hostile grammar can overflow the stack of the library that compiles it, or keep it busy for minutes; both
end the child and nothing else. ``python -m`` this module is the child: it reads a JSON string a line and
answers each with what is wrong, a JSON string that is empty where nothing is. It ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.runtimes.base import InvalidInputError

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

_STACK_BYTES: Final = 1 << 20
"""The child's stack: less than any thread of the engine has, so that what passes here passes there."""

_MEMORY_BYTES: Final = 4 << 30
_PROBE_TOKENS: Final = 8
_MESSAGE_LENGTH: Final = 400
_OVERLAP: Final = (
    "oneOf is supported where its alternatives cannot match the same value, by a required constant property "
    "or by type; make them exclude each other, or use anyOf"
)


def load_tokenizer(path: str, vocabulary_size: int, eos_ids: Sequence[int]) -> LLTokenizer:
    """Read ``tokenizer.json`` for a model with logits of ``vocabulary_size``.

    Raises:
        ValueError: llguidance cannot work with this tokenizer.
    """
    from llguidance import LLTokenizer

    eos = [*eos_ids] or None
    try:
        return LLTokenizer(path, n_vocab=vocabulary_size, eos_token=eos)
    except ValueError as error:
        if "vocab size too small" not in str(error):
            raise
        return LLTokenizer(path, eos_token=eos)


def limits() -> LLParserLimits:
    """Return the bounds of time and memory of one step of a grammar."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class GrammarCheck:
    """The children: one for each thread that checks at the same time, started when first needed.

    Blocking. A grammar may take ``seconds`` of processor time, so that a busy machine refuses nothing.
    """

    def __init__(
        self, tokenizer_path: str, vocabulary_size: int, eos_ids: Sequence[int], seconds: float
    ) -> None:
        self._seconds = seconds
        options = json.dumps([tokenizer_path, vocabulary_size, [*eos_ids], seconds])
        self._command = [sys.executable, "-m", "headrace.runtimes.generation.grammar_check", options]
        self._idle: deque[subprocess.Popen[bytes]] = deque()

    def check(self, grammar: str) -> None:
        """Try ``grammar``, in llguidance's form.

        Raises:
            InvalidInputError: it is wrong, can match nothing, or takes more time or memory than it may.
        """
        child = self._take()
        error = _ask(child, grammar)
        if error is None:
            _end(child)
            if child.returncode == -signal.SIGPROF:
                error = f"it takes more than {self._seconds:g} s to compile; make it smaller"
            else:
                error = "it is too large or too deeply nested to compile; make it smaller"
        else:
            self._idle.append(child)
        if error:
            raise InvalidInputError(f"the grammar or schema cannot be used: {error}")

    def close(self) -> None:
        """End the children that are idle."""
        while self._idle:
            _end(self._idle.pop())

    def _take(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(IndexError):
            while True:
                child = self._idle.pop()
                if child.poll() is None:
                    return child
                _end(child)
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    with contextlib.suppress(BrokenPipeError):
        child.communicate()


def _ask(child: subprocess.Popen[bytes], grammar: str) -> str | None:
    """Return what is wrong with ``grammar``, "" for nothing; None when the child did not survive it."""
    if child.stdin is None or child.stdout is None:
        return None
    try:
        child.stdin.write(json.dumps(grammar).encode() + b"\n")
        child.stdin.flush()
        answer = child.stdout.readline()
        return str(json.loads(answer)) if answer else None
    except BrokenPipeError:
        return None


def _serve(tokenizer_path: str, vocabulary_size: int, eos_ids: Sequence[int], seconds: float) -> None:
    tokenizer = load_tokenizer(tokenizer_path, vocabulary_size, eos_ids)
    while line := sys.stdin.buffer.readline():
        signal.setitimer(signal.ITIMER_PROF, seconds)
        error = _problem(tokenizer, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(error) + "\n")
        sys.stdout.flush()


def _problem(tokenizer: LLTokenizer, grammar: str) -> str:
    """Compile a grammar and take a few steps with it; return what is wrong."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if matcher.is_error():
        error = matcher.get_error()
        # its advice is for programmers
        return _OVERLAP if "coerce_one_of" in error else error[:_MESSAGE_LENGTH]
    for step in range(_PROBE_TOKENS):
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            if matcher.stop_reason() == "NoExtensionBias" or "NoExtensionBias" in matcher.get_error():
                return "no text can match it; check for rules or references that only lead to themselves"
            return f"it is too complex: {matcher.get_error()[:_MESSAGE_LENGTH]}"
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        if matcher.is_stopped() or not allowed.size:
            break
        # from both ends, as JSON's brackets and its letters are far apart in vocabularies
        matcher.consume_token(int(allowed[-(step % 2)]))
    return ""


def main() -> None:
    """Serve as the child until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    threading.stack_size(_STACK_BYTES)
    serving = threading.Thread(target=_serve, args=json.loads(sys.argv[1]))
    serving.start()
    serving.join()


if __name__ == "__main__":
    main()
