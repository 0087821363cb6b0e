"""Structured output: token masks that keep text within a JSON schema, expression or grammar (llguidance)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.generation.grammar_check import GrammarCheck, limits, load_tokenizer
from headrace.runtimes.generation.grammars import build
from headrace.runtimes.generation.logprobs import Row
from headrace.runtimes.generation.parameters import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_CACHED_GRAMMARS: Final = 64
_CACHED_CHARACTERS: Final = 1_000_000
"""Of grammar text in the cache; what is compiled takes some 60 bytes for each."""


class Matcher:
    """How far one sample has come in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def terminated(self) -> bool:
        """Whether nothing can follow but an end-of-sequence token, or the matcher gave up (see ``error``)."""
        return self._matcher.is_stopped()

    @property
    def error(self) -> str:
        """Why the matcher gave up, "" while it has not.

        Some grammars exceed llguidance's limits only along the way; the text so far then stays incomplete.
        """
        return self._matcher.get_error() if self._matcher.is_error() else ""

    def mask(self, row: Row) -> None:
        """Set the logits of tokens that must not come next to -inf, in place.

        End-of-sequence tokens are possible once the text is complete, and the only possible ones when
        nothing can be added to it.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(words, count=min(row.size, 8 * words.size), bitorder="little")
        np.putmask(row[: allowed.size], allowed == 0, -np.inf)
        row[allowed.size :] = -np.inf

    def accept(self, token: int) -> None:
        """Go on with ``token``; one that the mask excludes makes the matcher give up."""
        self._matcher.consume_token(token)

    def copy(self) -> Matcher:
        """Return a matcher in the same state that goes its own way from here."""
        return Matcher(self._matcher.deep_copy())


class CompiledGrammar:
    """A grammar that any number of samples can follow."""

    def __init__(self, prototype: LLMatcher) -> None:
        self._prototype = prototype

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of the text."""
        return Matcher(self._prototype.deep_copy())


class GrammarCompiler:
    """Compiles grammars for one model and keeps the latest; any thread may call it.

    ``tokenizer_path`` is the model's ``tokenizer.json``, ``vocabulary_size`` the width of its logits, which
    may differ from the tokenizer's. The tokenizer is read, and a child process that tries grammars first is
    started, when the first grammar comes. One that takes ``seconds`` of processor time or more is refused.
    """

    def __init__(
        self, tokenizer_path: str, vocabulary_size: int, eos_ids: Sequence[int], *, seconds: float = 5.0
    ) -> None:
        self._tokenizer_path = tokenizer_path
        self._vocabulary_size = vocabulary_size
        self._eos_ids = tuple(eos_ids)
        self._check = GrammarCheck(tokenizer_path, vocabulary_size, self._eos_ids, seconds)
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._cache: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._characters = 0

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile ``grammar`` or take it from the cache. Blocks, seldom for more than milliseconds.

        Raises:
            InvalidInputError: the grammar is malformed, beyond the limits, or can match nothing; or the
                model's tokenizer is of a kind that no grammar can be followed with.
        """
        with self._lock:
            found = self._cache.get(grammar)
            if found is not None:
                self._cache.move_to_end(grammar)
                return found
        compiled = self._compile(build(grammar))
        with self._lock:
            self._keep(grammar, compiled)
        return compiled

    def close(self) -> None:
        """End idle child processes; compiling once more would start another."""
        self._check.close()

    def _compile(self, built: str) -> CompiledGrammar:
        from llguidance import LLMatcher

        tokenizer = self._load_tokenizer()
        self._check.check(built)
        matcher = LLMatcher(tokenizer, built, log_level=0, limits=limits())
        if matcher.is_error():
            raise InvalidInputError(f"the grammar or schema cannot be used: {matcher.get_error()}")
        return CompiledGrammar(matcher)

    def _load_tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = load_tokenizer(
                        self._tokenizer_path, self._vocabulary_size, self._eos_ids
                    )
                except ValueError as error:
                    raise InvalidInputError(
                        f"this model's tokenizer cannot be used with grammars, schemas or choices: {error}"
                    ) from None
            return self._tokenizer

    def _keep(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        if grammar not in self._cache:
            self._characters += len(grammar.text)
        self._cache[grammar] = compiled
        while len(self._cache) > _CACHED_GRAMMARS or self._characters > _CACHED_CHARACTERS:
            dropped, _ = self._cache.popitem(last=False)
            self._characters -= len(dropped.text)
