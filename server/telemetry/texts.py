"""What Text Embeddings Inference counts of one model version; only the event loop changes it.

Fed once for each call of a text task, whatever family asked. Buckets are those of TEI's router.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from headrace.server.telemetry.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.server.tasks.text_models import Timings

DURATION_BUCKETS: Final = tuple(0.00001 * 1.5**power for power in range(1, 36))
LENGTH_BUCKETS: Final = tuple(2.0**power for power in range(20))  # tokens

_SECONDS: Final = 1e-9


class Durations:
    """Where the time went, in seconds."""

    __slots__ = ("inference", "queue", "tokenization", "total")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.total = Histogram(DURATION_BUCKETS)
        self.tokenization = Histogram(DURATION_BUCKETS)
        self.queue = Histogram(DURATION_BUCKETS)
        self.inference = Histogram(DURATION_BUCKETS)

    def observe(self, timings: Timings, count: int = 1) -> None:
        """Count ``count`` requests or inputs that took as long."""
        self.total.observe(timings.total_ns * _SECONDS, count)
        self.tokenization.observe(timings.tokenization_ns * _SECONDS, count)
        self.queue.observe(timings.queue_ns * _SECONDS, count)
        self.inference.observe(timings.inference_ns * _SECONDS, count)


class TextStatistics:
    """Requests and their inputs; a request of more than one input is a batch.

    Attributes:
        singles: requests that began, of one input; ``single_successes`` those that were answered.
        batches: the same for more inputs.
        inputs: of all requests that began; ``input_successes`` of those that were answered.
        failures: requests that began and did not succeed.
        requests: durations of requests.
        per_input: durations of inputs, each that of its request.
        lengths: tokens of an input.
    """

    __slots__ = (
        "batch_successes", "batches", "failures", "input_successes", "inputs", "lengths", "per_input",
        "requests", "single_successes", "singles",
    )  # fmt: skip

    def __init__(self) -> None:
        """Begin with nothing."""
        self.singles = self.single_successes = self.batches = self.batch_successes = 0
        self.inputs = self.input_successes = self.failures = 0
        self.requests = Durations()
        self.per_input = Durations()
        self.lengths = Histogram(LENGTH_BUCKETS)

    def observe_started(self, inputs: int) -> None:
        """Count a request."""
        self.inputs += inputs
        if inputs > 1:
            self.batches += 1
        else:
            self.singles += 1

    def observe_failed(self) -> None:
        """Count a request that ends without an answer."""
        self.failures += 1

    def observe_finished(self, lengths: Sequence[int], timings: Timings) -> None:
        """Count an answered request; ``lengths`` are the tokens of each input."""
        count = len(lengths)
        self.input_successes += count
        if count > 1:
            self.batch_successes += 1
        else:
            self.single_successes += 1
        self.requests.observe(timings)
        self.per_input.observe(timings, count)
        for length in lengths:
            self.lengths.observe(length)
