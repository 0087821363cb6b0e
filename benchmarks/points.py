"""One measurement of one server: load on one side, processor clocks on the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import psutil

from benchmarks.estimates import Window, credited, latencies_ms, percentile
from benchmarks.load import LoadGenerator
from benchmarks.load_job import Job
from benchmarks.payloads import Payload
from benchmarks.processes import CpuMeter
from benchmarks.results import Measurement

LEAD_SECONDS = 0.1
"""Time for the load generator to get its job and to connect."""


def ask(
    load: LoadGenerator,
    address: str,
    payload: Payload,
    clients: int,
    seconds: float,
    warmup: float,
    groups: Mapping[str, Iterable[psutil.Process]],
) -> Measurement:
    """Put ``clients`` callers on ``address`` and measure ``seconds`` after ``warmup`` seconds.

    Args:
        load: who asks.
        address: ``host:port``.
        payload: the requests.
        clients: callers in a closed loop.
        seconds: length of the measurement.
        warmup: seconds of load before it.
        groups: processes whose CPU time is measured, by name; the client's is added.
    """
    begin = time.monotonic() + LEAD_SECONDS + warmup
    window = Window(begin, begin + seconds)
    job = Job(
        payload.protocol,
        address,
        payload.target,
        payload.headers,
        payload.bodies,
        payload.weights,
        clients,
        window,
    )
    meter = CpuMeter({**groups, "client": [psutil.Process(load.pid)]})
    load.begin(job)
    _sleep_until(window.begin)
    meter.start()
    _sleep_until(window.end)
    spent = meter.stop()
    outcome = load.outcome(job)
    requests = credited(outcome.starts, outcome.ends, window)
    durations = latencies_ms(outcome.starts, outcome.ends, window)
    other = spent.pop("other")
    items = credited(outcome.starts, outcome.ends, window, outcome.weights)
    return Measurement(
        rate=items / window.seconds,
        p50_ms=percentile(durations, 0.50),
        p99_ms=percentile(durations, 0.99),
        cpu={name: value * 1000 / requests if requests else float("nan") for name, value in spent.items()},
        cpu_per_item=sum(spent.values()) * 1000 / items if items else float("nan"),
        other_cores=other / window.seconds,
        failed=outcome.failed,
        errors=outcome.errors,
    )


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
