"""Counters of one model version that generates text; only the event loop changes them.

Two places count. The engine's client counts what passes through its hands: requests that start, tokens and
the time between them. The generate task calls :meth:`GenerationStatistics.observe_finished` once for each
request that got a ticket, however it ended. Buckets are those of vLLM, whose dashboards read them under its
names.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal

from headrace.server.telemetry.histogram import Histogram
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.telemetry.tgi import TgiStatistics

if TYPE_CHECKING:
    from headrace.runtimes.generation.messages import EngineStats
    from headrace.server.tasks.generation import Timeline

FinishedReason = Literal["stop", "length", "abort", "error"]
FINISHED_REASONS: Final[tuple[FinishedReason, ...]] = ("stop", "length", "abort", "error")

FIRST_TOKEN_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
SAMPLE_BUCKETS: Final = (1.0, 2.0, 5.0, 10.0, 20.0)

_SECONDS: Final = 1e-9


class GenerationStatistics:
    """What happened to the requests of one model version.

    Args:
        totals: the counters that every model has; requests are counted there too.
        max_tokens: longest sequence of the model; ends the buckets of token counts.
        block_tokens: tokens in a block of the KV cache.
        draft_tokens: most tokens that a step may guess.
    """

    __slots__ = (
        "cached_tokens", "decode_seconds", "e2e_seconds", "finished", "first_token_seconds",
        "generated_tokens", "inference_seconds", "inter_token_seconds", "max_tokens", "output_tokens",
        "per_token_seconds", "prefill_seconds", "prompt_lengths", "prompt_tokens", "queue_seconds", "refused",
        "rejected", "samples", "tgi", "totals",
    )  # fmt: skip

    def __init__(
        self, totals: ModelStatistics, max_tokens: int, *, block_tokens: int = 16, draft_tokens: int = 0
    ) -> None:
        lengths = _one_two_five(max_tokens)
        self.totals = totals
        self.finished: dict[FinishedReason, int] = dict.fromkeys(FINISHED_REASONS, 0)
        self.refused = 0  # for a full queue
        self.rejected = 0  # by an engine, as invalid; they are among ``finished`` as errors
        self.prompt_tokens = 0  # of requests that started
        self.cached_tokens = 0  # of those, found in the prefix cache
        self.generated_tokens = 0
        self.first_token_seconds = Histogram(FIRST_TOKEN_BUCKETS)
        self.inter_token_seconds = Histogram(TOKEN_BUCKETS)
        self.per_token_seconds = Histogram(TOKEN_BUCKETS)  # a request's mean after its first token
        self.e2e_seconds = Histogram(REQUEST_BUCKETS)
        self.queue_seconds = Histogram(REQUEST_BUCKETS)
        self.inference_seconds = Histogram(REQUEST_BUCKETS)  # start to end
        self.prefill_seconds = Histogram(REQUEST_BUCKETS)  # start to first token
        self.decode_seconds = Histogram(REQUEST_BUCKETS)  # first token to end
        self.prompt_lengths = Histogram(lengths)
        self.output_tokens = Histogram(lengths)
        self.max_tokens = Histogram(lengths)  # as requests asked
        self.samples = Histogram(SAMPLE_BUCKETS)  # n, as requests asked
        self.tgi = TgiStatistics(max_tokens, block_tokens=block_tokens, draft_tokens=draft_tokens)

    # Called by the engine's client.

    def observe_admitted(self, max_tokens: int, samples: int) -> None:
        """Count a request that got a ticket."""
        self.totals.pending += 1
        self.max_tokens.observe(max_tokens)
        self.samples.observe(samples)
        self.tgi.max_new_tokens.observe(max_tokens)

    def observe_refused(self) -> None:
        """Count a request that found the queue full."""
        self.refused += 1
        self.totals.failed(0, "REJECTED")

    def observe_left(self) -> None:
        """Count a ticket that ended."""
        self.totals.pending -= 1

    def observe_started(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Count a request whose prompt is computed now."""
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens

    def observe_steps(self, before: EngineStats | None, now: EngineStats) -> None:
        """Count what an engine did between two reports; ``before`` is None for a worker's first one."""
        totals = self.totals
        totals.execution_count += now.steps - (before.steps if before else 0)
        totals.last_inference_ms = time.time_ns() // 1_000_000
        self.tgi.observe_steps(before, now)

    # Called by the generate task.

    def observe_finished(
        self, reason: FinishedReason, timeline: Timeline, *, prompt_tokens: int, generated_tokens: int
    ) -> None:
        """Count the end of a request that had got a ticket; to be called once.

        Args:
            reason: ``stop`` or ``length`` of the first sample; ``abort`` when the caller left or the request
                was aborted; ``error`` for every failure.
            timeline: ``received`` is required; times after an early end are 0. ``finished`` 0 is taken as an
                end that nobody waited for, whose durations are not counted.
            prompt_tokens: of the request.
            generated_tokens: of all samples together.
        """
        self.finished[reason] += 1
        self.prompt_lengths.observe(prompt_tokens)
        self.output_tokens.observe(generated_tokens)
        self.tgi.input_lengths.observe(prompt_tokens)
        received, started, first, finished = (
            timeline.received,
            timeline.started,
            timeline.first_token,
            timeline.finished,
        )
        totals = self.totals
        if first:
            self.first_token_seconds.observe((first - received) * _SECONDS)
        if reason in ("abort", "error"):
            totals.failed(max(0, finished - received), "CANCELED" if reason == "abort" else "BACKEND")
            return
        if not finished:
            return
        totals.success.add(finished - received)
        totals.inference_count += 1
        self.e2e_seconds.observe((finished - received) * _SECONDS)
        if not started:
            return
        totals.queue.add(started - received)
        totals.compute_infer.add(finished - started)
        self.queue_seconds.observe((started - received) * _SECONDS)
        self.inference_seconds.observe((finished - started) * _SECONDS)
        self.tgi.observe_success(timeline, generated_tokens)
        if first:
            self.prefill_seconds.observe((first - started) * _SECONDS)
            self.decode_seconds.observe((finished - first) * _SECONDS)
            if generated_tokens > 1:
                self.per_token_seconds.observe((finished - first) * _SECONDS / (generated_tokens - 1))


def _one_two_five(most: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, … up to ``most``."""
    bounds: list[float] = []
    power = 1
    while power <= most:
        bounds += [float(power * factor) for factor in (1, 2, 5) if power * factor <= most]
        power *= 10
    return tuple(bounds)
