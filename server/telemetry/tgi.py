"""What Text Generation Inference counts of one model version; only the event loop changes it.

Fed by :class:`headrace.server.telemetry.generation.GenerationStatistics`: once for each request and once for
each message of an engine, never for each token. Buckets are those of TGI's router, which its dashboards read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.runtimes.generation.messages import StepStats
from headrace.server.telemetry.histogram import Histogram

if TYPE_CHECKING:
    from headrace.runtimes.generation.messages import EngineStats
    from headrace.server.tasks.generation import Timeline

DURATION_BUCKETS: Final = tuple(0.0001 * 1.5**power for power in range(1, 36))
BATCH_SIZES: Final = tuple(float(size) for size in range(1, 1025))

_SECONDS: Final = 1e-9
_NO_STEPS: Final = StepStats()


class StepStatistics:
    """Steps of one method, prefill or decode: how many began and failed, and how long the others took."""

    __slots__ = ("choice_seconds", "failed", "forward_seconds", "seconds", "steps")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.steps = 0
        self.failed = 0
        self.seconds = Histogram(DURATION_BUCKETS)
        self.forward_seconds = Histogram(DURATION_BUCKETS)  # the model
        self.choice_seconds = Histogram(DURATION_BUCKETS)  # its logits to tokens

    def observe(self, before: StepStats, now: StepStats) -> None:
        """Count the steps between two reports, each as long as their mean."""
        steps = now.steps - before.steps
        if not steps:
            return
        failures = now.failures - before.failures
        self.steps += steps
        self.failed += failures
        if (count := steps - failures) > 0:
            share = _SECONDS / count
            self.seconds.observe((now.ns - before.ns) * share, count)
            self.forward_seconds.observe((now.forward_ns - before.forward_ns) * share, count)
            self.choice_seconds.observe((now.choice_ns - before.choice_ns) * share, count)


class TgiStatistics:
    """Requests and steps of one model version.

    Args:
        max_tokens: longest sequence of the model, prompt and output together; divides the buckets of lengths.
        block_tokens: tokens in a block of the KV cache.
        draft_tokens: most tokens that a step may guess.
    """

    __slots__ = (
        "block_tokens", "decode", "generated_tokens", "inference_seconds", "input_lengths", "max_new_tokens",
        "next_sizes", "per_token_seconds", "prefill", "queue_seconds", "seconds", "skipped_tokens",
        "validation_seconds",
    )  # fmt: skip

    def __init__(self, max_tokens: int, *, block_tokens: int, draft_tokens: int) -> None:
        inputs, totals = hundredths(max(1, max_tokens - 1)), hundredths(max_tokens)
        self.block_tokens = block_tokens
        self.seconds = Histogram(DURATION_BUCKETS)
        self.validation_seconds = Histogram(DURATION_BUCKETS)
        self.queue_seconds = Histogram(DURATION_BUCKETS)
        self.inference_seconds = Histogram(DURATION_BUCKETS)
        self.per_token_seconds = Histogram(DURATION_BUCKETS)
        self.input_lengths = Histogram(inputs)
        self.max_new_tokens = Histogram(totals)
        self.generated_tokens = Histogram(totals)
        self.skipped_tokens = Histogram(tuple(map(float, range(draft_tokens + 1))))  # of steps that guessed
        self.next_sizes = Histogram(BATCH_SIZES)  # requests that began together
        self.prefill = StepStatistics()
        self.decode = StepStatistics()

    def observe_success(self, timeline: Timeline, generated_tokens: int) -> None:
        """Count a request whose last token was sent; all times of ``timeline`` are set."""
        tokenized = timeline.tokenized or timeline.received
        inference = (timeline.finished - timeline.started) * _SECONDS
        self.seconds.observe((timeline.finished - timeline.received) * _SECONDS)
        self.validation_seconds.observe((tokenized - timeline.received) * _SECONDS)
        self.queue_seconds.observe((timeline.started - tokenized) * _SECONDS)
        self.inference_seconds.observe(inference)
        self.generated_tokens.observe(generated_tokens)
        if generated_tokens:
            self.per_token_seconds.observe(inference / generated_tokens)

    def observe_guessed(self, tokens: int) -> None:
        """Count the tokens that one step gave a sequence beyond its first.

        More of them than can be guessed is a sample that is told at its end, not a guess.
        """
        if tokens < len(self.skipped_tokens.bounds):
            self.skipped_tokens.observe(tokens)

    def observe_steps(self, before: EngineStats | None, now: EngineStats) -> None:
        """Count what an engine did between two reports; ``before`` is None for a worker's first one."""
        self.prefill.observe(before.prefill if before else _NO_STEPS, now.prefill)
        self.decode.observe(before.decode if before else _NO_STEPS, now.decode)


def hundredths(most: int) -> tuple[float, ...]:
    """Return 1/100, 2/100, … 100/100 of ``most``."""
    return tuple(most * part / 100 for part in range(1, 101))
