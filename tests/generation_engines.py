"""Runs an engine on a ``HashDecoder``, and says what must come out: one sequence at a time, no KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from drawing_decoder import DrawingDecoder
from hash_decoder import HashDecoder, history_logits

from headrace.runtimes.generation.base import DeviceSampling, GenerationSpec, Together
from headrace.runtimes.generation.beams import Beams
from headrace.runtimes.generation.engine import Engine
from headrace.runtimes.generation.messages import (
    Add,
    Event,
    Logprob,
    PromptLogprobs,
    Rejected,
    Started,
    Tokens,
)
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.sampling import Sampler

EOS = 1
VOCABULARY = 40


def make_spec(
    *,
    max_tokens: int = 96,
    max_sequences: int = 4,
    kv_tokens: int = 512,
    block_tokens: int = 4,
    step_tokens: int = 16,
    prefill_tokens: int = 32,
    prefix_cache: bool = True,
    draft_tokens: int = 0,
) -> GenerationSpec:
    return GenerationSpec(
        max_tokens=max_tokens,
        max_sequences=max_sequences,
        kv_tokens=kv_tokens,
        block_tokens=block_tokens,
        step_tokens=step_tokens,
        prefill_tokens=prefill_tokens,
        prefix_cache=prefix_cache,
        draft_tokens=draft_tokens,
        eos_ids=(EOS,),
    )


def encode(prompt: Sequence[int]) -> bytes:
    return np.array(prompt, "<i4").tobytes()


@dataclass
class Result:
    """What a request got; ``samples[i]`` and ``logprobs[i]`` are sample ``i``'s."""

    samples: dict[int, list[int]] = field(default_factory=dict)
    logprobs: dict[int, list[Logprob]] = field(default_factory=dict)
    finishes: dict[int, tuple[str | None, int | None, bool]] = field(default_factory=dict)
    prompt_logprobs: tuple[Logprob | None, ...] | None = None
    rejected: Rejected | None = None
    started: list[Started] = field(default_factory=list)

    def take(self, event: Event) -> None:
        assert self.rejected is None
        if isinstance(event, Started):
            self.started.append(event)
            assert len(self.started) == 1
        elif isinstance(event, PromptLogprobs):
            assert not self.samples
            self.prompt_logprobs = event.logprobs
        elif isinstance(event, Rejected):
            self.rejected = event
        elif isinstance(event, Tokens):
            assert self.started
            assert event.sample not in self.finishes
            self.samples.setdefault(event.sample, []).extend(event.token_ids)
            self.logprobs.setdefault(event.sample, []).extend(event.logprobs)
            if event.finish is not None:
                self.finishes[event.sample] = (event.finish, event.stop_token, event.eos)

    def outcome(self) -> tuple[object, ...]:
        """Everything that must not depend on how the engine went about it."""
        return self.samples, self.logprobs, self.finishes, self.prompt_logprobs, self.rejected


class Bench:
    """An engine, its decoder and the results of all requests so far.

    With ``sampling`` the decoder chooses tokens itself; ``lazy`` as for ``DrawingDecoder``.
    """

    def __init__(
        self,
        spec: GenerationSpec,
        *,
        paged: bool = False,
        together: Together = "all",
        sampling: DeviceSampling | None = None,
        lazy: bool = True,
    ) -> None:
        self.spec = spec
        self.decoder = HashDecoder(spec, VOCABULARY, paged=paged, together=together)
        self.drawing = DrawingDecoder(self.decoder, sampling or "host", lazy=lazy)
        driven = self.decoder if sampling is None else self.drawing
        self.engine = Engine(driven, Sampler(VOCABULARY, spec.eos_ids), spec)
        self.results: dict[int, Result] = {}

    def add(self, prompt: Sequence[int], sampling: Sampling) -> int:
        request = len(self.results)
        self.results[request] = Result()
        self.take(self.engine.add(Add(request, encode(prompt), sampling)))
        return request

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert not isinstance(event, Event.__args__[0])  # Accepted: the loop's affair
            self.results[event.request].take(event)

    def step(self, listen: Callable[[], None] | None = None) -> None:
        self.engine.step(self.take, listen)

    def run(self, most: int = 5000) -> None:
        for _ in range(most):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def one(self, prompt: Sequence[int], sampling: Sampling) -> Result:
        request = self.add(prompt, sampling)
        self.run()
        return self.results[request]

    def assert_empty(self) -> None:
        """Nothing is held when nothing runs."""
        stats = self.engine.stats
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.free_slots == self.spec.max_sequences
        assert stats.free_blocks == stats.total_blocks
        self.drawing.finish()
        assert not self.decoder.held
        assert not self.engine._requests
        assert not self.engine._scheduler.prefixes._coming


def logits(history: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return history_logits(np.array(history, np.int32), VOCABULARY)[np.newaxis]


def expected(prompt: Sequence[int], sampling: Sampling, spec: GenerationSpec) -> Result:
    """What the request must give, computed one token after the other."""
    result = (
        _expected_beams(prompt, sampling, spec)
        if sampling.beam
        else _expected_samples(prompt, sampling, spec)
    )
    if sampling.prompt_logprobs is not None:
        result.prompt_logprobs = _expected_prompt(prompt, sampling.prompt_logprobs)
    return result


def _expected_samples(prompt: Sequence[int], sampling: Sampling, spec: GenerationSpec) -> Result:
    sampler = Sampler(VOCABULARY, spec.eos_ids)
    result = Result()
    first = sampler.begin(sampling, prompt, 0, None)
    states = [first, *(sampler.fork(first, sample) for sample in range(1, sampling.best_of))]
    last = min(spec.max_tokens, len(prompt) + sampling.max_tokens)
    for sample, state in enumerate(states):
        history = list(prompt)
        result.samples[sample], result.logprobs[sample] = [], []
        result.finishes[sample] = ("length", None, False)
        while len(history) < last:
            (chosen,) = sampler.sample(logits(history), [state])
            history.append(chosen.token)
            result.samples[sample].append(chosen.token)
            if chosen.logprob is not None:
                result.logprobs[sample].append(chosen.logprob)
            if chosen.token == EOS and not sampling.ignore_eos:
                result.finishes[sample] = ("stop", None, True)
                break
            if chosen.token in sampling.stop_token_ids:
                result.finishes[sample] = ("stop", chosen.token, False)
                break
    return result


def _expected_prompt(prompt: Sequence[int], top: int) -> tuple[Logprob | None, ...]:
    rows = [logits(prompt[:end]) for end in range(1, len(prompt))]
    sampler = Sampler(VOCABULARY, (EOS,))
    return (None, *(sampler.prompt_logprobs(np.concatenate(rows), prompt[1:], top) if rows else []))


def _expected_beams(prompt: Sequence[int], sampling: Sampling, spec: GenerationSpec) -> Result:
    sampler = Sampler(VOCABULARY, spec.eos_ids)
    most = min(spec.max_tokens, len(prompt) + sampling.max_tokens) - len(prompt)
    ends = (*(() if sampling.ignore_eos else spec.eos_ids), *sampling.stop_token_ids)
    beams = Beams(sampling.best_of, sampling.n, sampling.length_penalty, most, ends)
    running = [(list(prompt), sampler.begin(sampling, prompt, 0, None))]
    while not beams.finished:
        rows = np.concatenate([logits(history) for history, _ in running])
        moves = beams.advance(sampler.log_probabilities(rows, [state for _, state in running]))
        following = []
        for parent, token in moves:
            state = sampler.fork(running[parent][1], 0)
            sampler.append(state, token)
            following.append(([*running[parent][0], token], state))
        running = following
    result = Result()
    for sample, (tokens, _) in enumerate(beams.best()):
        result.samples[sample] = list(tokens)
        result.logprobs[sample] = []
        if sampling.logprobs is not None:
            rows = np.concatenate([logits([*prompt, *tokens[:end]]) for end in range(len(tokens))])
            result.logprobs[sample] = sampler.prompt_logprobs(rows, tokens, sampling.logprobs)
        eos = tokens[-1] in spec.eos_ids and not sampling.ignore_eos
        stop = None if eos or tokens[-1] not in sampling.stop_token_ids else tokens[-1]
        finish = "stop" if eos or stop is not None else "length"
        result.finishes[sample] = (finish, stop, eos)
    for sample in range(len(result.samples), sampling.n):  # masks left no more
        result.samples[sample], result.logprobs[sample] = [], []
        result.finishes[sample] = ("length", None, False)
    return result
