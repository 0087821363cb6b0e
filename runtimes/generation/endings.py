"""When a sample ends, and how its tokens and the best of several samples are told."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence as Rows

from msgspec.structs import replace

from headrace.runtimes.generation.messages import Logprob, Tokens
from headrace.runtimes.generation.parameters import Sampling
from headrace.runtimes.generation.sequence import Ending, Request, Sequence
from headrace.runtimes.generation.structured import Matcher


def grammar_failure(sequence: Sequence) -> str | None:
    """Return why a sample's grammar ended without its text being complete, if it did."""
    matcher = None if sequence.state is None else sequence.state.matcher
    if isinstance(matcher, Matcher) and matcher.error:
        return f"the grammar cannot be followed any further: {matcher.error}"
    return None


def sampler_parameters(request: Request) -> Sampling:
    """Return the request's parameters, with logprobs where samples are compared by them."""
    if request.chooses and request.sampling.logprobs is None:
        return replace(request.sampling, logprobs=0)
    return request.sampling


def search_ends(sampling: Sampling, eos_ids: Rows[int]) -> tuple[int, ...]:
    """Return the ids that finish a beam; where a grammar rules, its end is always one."""
    own = () if sampling.ignore_eos and sampling.grammar is None else eos_ids
    return (*own, *sampling.stop_token_ids)


def ending(sequence: Sequence, eos_ids: Container[int]) -> Ending | None:
    """Return how a sample's newest token ends it, if it does."""
    request = sequence.request
    sampling = request.sampling
    token = sequence.tokens[-1]
    if sequence.generated > sampling.min_tokens:
        if token in eos_ids and not sampling.ignore_eos:
            return Ending("stop", eos=True)
        if token in sampling.stop_token_ids:
            return Ending("stop", stop_token=token)
    if sequence.state is not None and sequence.state.terminated:
        return Ending("stop", eos=token in eos_ids)
    if len(sequence.tokens) >= request.last:
        return Ending("length")
    return None


def search_ending(tokens: Rows[int], sampling: Sampling, eos_ids: Container[int]) -> Ending:
    """Return how a hypothesis of a beam search ended."""
    last = tokens[-1] if tokens else None
    if last in sampling.stop_token_ids and (last not in eos_ids or sampling.ignore_eos):
        return Ending("stop", stop_token=last)
    if last in eos_ids and not (sampling.ignore_eos and sampling.grammar is None):
        return Ending("stop", eos=True)
    return Ending("length")


def told(
    request: Request, sample: int, tokens: Rows[int], logprobs: Rows[Logprob], ended: Ending | None
) -> Tokens:
    """Return the event of a sample's new tokens."""
    told_logprobs = () if request.sampling.logprobs is None else tuple(logprobs)
    if ended is None:
        return Tokens(request.identifier, sample, tuple(tokens), told_logprobs)
    return Tokens(request.identifier, sample, tuple(tokens), told_logprobs, *ended)


def best_samples(request: Request) -> list[Tokens]:
    """Return the samples with the highest mean logprob, best first; among equals the earlier one."""

    def mean(sequence: Sequence) -> float:
        return sum(entry.logprob for entry in sequence.logprobs) / max(1, len(sequence.logprobs))

    ranked = sorted(request.ended, key=lambda item: (-mean(item[0]), item[0].sample))
    return [
        told(request, place, sequence.tokens[len(request.prompt) :], sequence.logprobs, ended)
        for place, (sequence, ended) in enumerate(ranked[: request.sampling.n])
    ]
