"""What the generate task takes and gives: plain data, free of any wire."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from headrace.runtimes.generation.parameters import Sampling

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How one prompt is continued.

    Attributes:
        sampling: what the engine does. The task checks the ranges that hold for every family, families their
            own before.
        stop: texts that end a sample; cut off unless ``include_stop``.
        include_stop: leave the stop text (or stop token's text) at the end.
        skip_special_tokens: special tokens give no text.
        details: report every token with its text (:class:`TokenDetail`), asked-for logprobs included.
        token_texts: report what each token adds to the text, and hold nothing of it back; with
            ``include_stop``.
        request_id: by which ``abort`` finds the request; "" for none.
    """

    sampling: Sampling
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    details: bool = False
    token_texts: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have been: its id, text, bytes and logprob."""

    token_id: int
    text: str
    raw: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """One token: of the prompt or the output.

    ``text`` is what the token alone decodes to (U+FFFD where it is part of a character), ``raw`` its bytes.
    ``logprob`` is None for a prompt's first token and when no logprobs were asked for. ``top`` is best first.
    """

    token_id: int
    text: str
    raw: bytes
    special: bool
    logprob: float | None = None
    rank: int = 0
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one sample.

    Attributes:
        sample: index in ``[0, n)``.
        text: complete characters only; may be empty. The texts of a sample's deltas, joined, are its text.
        token_ids: new tokens, those of a stop text and the end-of-sequence token included.
        details: the same tokens described; empty unless asked for.
        texts: what each of them adds to the text; empty unless asked for. The texts of a sample's deltas,
            joined, are its text.
        finish: set in the sample's last delta.
        stop: what ended the sample: a stop text, a stop token's id, or None (end of sequence, length).
        eos: the model's own end of sequence ended it.
    """

    sample: int
    text: str
    token_ids: tuple[int, ...] = ()
    details: tuple[TokenDetail, ...] = ()
    finish: FinishReason | None = None
    stop: str | int | None = None
    eos: bool = False
    texts: tuple[str, ...] = ()


@dataclass(slots=True)
class Timeline:
    """When things happened, ``time.perf_counter_ns`` values; 0 while they have not."""

    received: int = 0
    tokenized: int = 0
    started: int = 0
    first_token: int = 0
    finished: int = 0


@dataclass(slots=True)
class Sample:
    """One finished output."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    details: list[TokenDetail] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    finish: FinishReason = "stop"
    stop: str | int | None = None
    eos: bool = False


@dataclass(slots=True)
class Generation:
    """A finished request: samples in order, and what its prompt was."""

    samples: list[Sample]
    prompt_ids: tuple[int, ...]
    prompt_details: tuple[TokenDetail, ...]
    cached_tokens: int
    timeline: Timeline
