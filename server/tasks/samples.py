"""One sample's tokens to its deltas: text, stop texts and token details."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.server.tasks.generation import Delta, TokenDetail
from headrace.server.tasks.stop_strings import StopSearch

if TYPE_CHECKING:
    from headrace.runtimes.generation.messages import Tokens
    from headrace.server.tasks.detokenize import Detokenizer
    from headrace.server.tasks.generation import FinishReason, GenerationOptions
    from headrace.server.tasks.stop_strings import StopPatterns
    from headrace.server.tasks.vocabulary import Vocabulary


class SampleText:
    """What one sample of a request has become so far.

    Args:
        index: of the sample.
        options: of the request.
        vocabulary: of the model.
        detokenizer: for this sample alone.
        patterns: the request's stop texts; None when it has none.
    """

    __slots__ = (
        "_count",
        "_detokenizer",
        "_options",
        "_pieces",
        "_search",
        "_vocabulary",
        "finished",
        "index",
    )

    def __init__(
        self,
        index: int,
        options: GenerationOptions,
        vocabulary: Vocabulary,
        detokenizer: Detokenizer,
        patterns: StopPatterns | None,
    ) -> None:
        self.index = index
        self.finished = False
        self._options = options
        self._vocabulary = vocabulary
        self._detokenizer = detokenizer
        self._search = None if patterns is None else StopSearch(patterns, include=options.include_stop)
        self._count = 0
        self._pieces: list[str] | None = [] if options.token_texts else None

    def take(self, event: Tokens) -> Delta:
        """Turn what the engine says into a delta; only while the sample is not finished."""
        finish, tokens = event.finish, event.token_ids
        readable = len(tokens)
        if (
            finish == "stop"
            and (event.eos or event.stop_token is not None)
            and not self._options.include_stop
        ):
            readable -= 1  # the token that ended the sample is none of its text
        text = ""
        for number, token in enumerate(tokens[:readable], 1):
            new, stop = self._next(token)
            text += new
            if stop:
                self.finished = True
                kept = tokens[:number]
                return Delta(
                    self.index, text, kept, self._details(event, number), "stop", stop, texts=self._taken()
                )
        if finish is None:
            details = self._details(event, len(tokens))
            return Delta(self.index, text, tokens, details, texts=self._taken())
        text, stop = self._end(text)
        self.finished = True
        if stop:
            finish = "stop"
        return Delta(
            self.index,
            text,
            tokens,
            self._details(event, len(tokens)),
            finish,
            stop or event.stop_token,
            event.eos and not stop,
            self._taken(),
        )

    def cut(self, finish: FinishReason) -> Delta:
        """End the sample here; what was held back is its last text."""
        self.finished = True
        text, stop = self._end("")
        return Delta(self.index, text, finish="stop" if stop else finish, stop=stop or None)

    def _next(self, token: int) -> tuple[str, str]:
        """Return the text that ``token`` adds, and the stop text that it completes."""
        self._count += 1
        text = self._detokenizer.feed(token)
        search, pieces = self._search, self._pieces
        if search is None:
            if pieces is not None:
                pieces.append(text)
            return text, ""
        held = search.held
        found = search.feed(text, armed=self._armed)
        if pieces is not None:  # what stands behind a stop text is no part of the token's
            pieces.append(text[: len(found.text) - held] if found.stop else text)
        return found

    def _taken(self) -> tuple[str, ...]:
        """Return what the tokens since the last call added to the text, where that is wanted."""
        if self._pieces is None:
            return ()
        pieces = tuple(self._pieces)
        self._pieces.clear()
        return pieces

    def _end(self, text: str) -> tuple[str, str]:
        """Return ``text`` and all that was held back, and the stop text that this completes."""
        rest = self._detokenizer.flush()
        if self._pieces:
            self._pieces[-1] += rest
        if self._search is None:
            return text + rest, ""
        released, stop = self._search.feed(rest, armed=self._armed)
        return text + released + ("" if stop else self._search.flush()), stop

    @property
    def _armed(self) -> bool:
        """Whether enough tokens are there for a stop text to count."""
        return self._count > self._options.sampling.min_tokens

    def _details(self, event: Tokens, count: int) -> tuple[TokenDetail, ...]:
        if not self._options.details:
            return ()
        describe, logprobs = self._vocabulary.detail, event.logprobs
        if not logprobs:
            return tuple([describe(token) for token in event.token_ids[:count]])
        pairs = zip(event.token_ids[:count], logprobs[:count], strict=True)
        return tuple([describe(token, logprob) for token, logprob in pairs])
