"""How many steps of one kind an engine ran, and how long they took."""

from __future__ import annotations

from headrace.runtimes.generation.messages import StepStats


class StepTimes:
    """Totals since the engine began; times are nanoseconds, those of failed steps are left out.

    Of a step that was begun ahead they are what was left of it when the one before it had been told.

    Attributes:
        steps: that began.
        failures: those of them that failed.
        ns: whole steps, from the choice of who runs to the last event.
        forward_ns: the decoder in them.
        choice_ns: from its logits to the events: choosing tokens, ending sequences.
    """

    __slots__ = ("choice_ns", "failures", "forward_ns", "ns", "steps")

    def __init__(self) -> None:
        """Begin with nothing."""
        self.steps = self.failures = self.ns = self.forward_ns = self.choice_ns = 0

    @property
    def stats(self) -> StepStats:
        """The totals as they are now."""
        return StepStats(self.steps, self.failures, self.ns, self.forward_ns, self.choice_ns)

    def add(self, begin: int, planned: int, computed: int, chosen: int) -> None:
        """Count the end of a step whose stages ended at these times, ``time.perf_counter_ns`` values."""
        self.ns += chosen - begin
        self.forward_ns += computed - planned
        self.choice_ns += chosen - computed
