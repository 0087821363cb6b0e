"""Callers that ask for much and leave: are slots free again, does the next one wait, does memory grow?"""

from __future__ import annotations

import http.client
import time
from typing import Final

import psutil

from benchmarks.generation import workload
from benchmarks.generation.measure import Measured, measure
from benchmarks.generation.paths import ServerPath
from benchmarks.generation.scenarios import Scenario
from benchmarks.generation.work import Work
from benchmarks.processes import Server

CUT_SECONDS: Final = 0.5
WAVES: Final = 3
NEXT_TOKENS: Final = 10
FREE_SECONDS: Final = 10.0
"""How long slots may take to be free again before they count as lost."""

_POLL_SECONDS: Final = 0.02
_MIB: Final = 2**20
SLOTS: Final = "headrace_generation_slots_free"
RUNNING: Final = "headrace_generation_requests_running"


def overload(scenario: Scenario, path: ServerPath, server: Server, callers: int, number: int) -> Measured:
    """Let ``callers`` ask for long texts and leave, three times; then ask for ten tokens.

    The reading is that of the last, short request. Its ``extra`` has:

    * ``free_of_all``: free slots afterwards ÷ before; ``freed_ms``: how long that took after callers had
      left, the longest of the earlier waves
    * ``next_of_before``: the short request's time ÷ the same before
    * ``memory_growth``: resident memory of server and workers after the last wave ÷ after the first;
      ``rss_before``, ``rss_first``, ``rss_last``: the same in MiB
    * ``refused``: requests that were not taken
    """
    short = workload.uniform(
        1, scenario.prompt, NEXT_TOKENS, workload.source("overload", path.name, number, "before")
    )
    path.send(short)
    before = measure(path, _short(scenario, path, number, "first"))
    slots = metric(server.http, SLOTS)
    resident = [_resident(server)]
    refused = freed = 0.0
    for wave in range(WAVES):
        work = workload.uniform(
            callers,
            scenario.prompt,
            scenario.new_tokens,
            workload.source("overload", path.name, number, wave),
        )
        received = path.send(work, cut=CUT_SECONDS)
        refused += len(received.trace.errors)
        if wave < WAVES - 1:
            left = time.monotonic()
            _wait_free(server.http, slots)
            freed = max(freed, time.monotonic() - left)
            resident.append(_resident(server))
    # The last wave's callers have only just left: the next request must not wait for what they asked for.
    after = measure(path, _short(scenario, path, number, "last"))
    free = _wait_free(server.http, slots)
    resident.append(_resident(server))
    after.reading.extra = {
        "free_of_all": free / slots if slots else float("nan"),
        "freed_ms": freed * 1000.0,
        "next_of_before": NEXT_TOKENS / after.reading.rate / (NEXT_TOKENS / before.reading.rate),
        "memory_growth": resident[-1] / resident[1],
        "rss_before": resident[0] / _MIB,
        "rss_first": resident[1] / _MIB,
        "rss_last": resident[-1] / _MIB,
        "refused": refused,
    }
    return after


def metric(address: str, name: str) -> float:
    """Return the sum of a Prometheus family's samples.

    Raises:
        RuntimeError: the server has no such family.
    """
    connection = http.client.HTTPConnection(address, timeout=10.0)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return sample_sum(text, name)


def sample_sum(text: str, name: str) -> float:
    """Sum the samples of family ``name`` in Prometheus' text format.

    Raises:
        RuntimeError: there is none.
    """
    values = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith((f"{name}{{", f"{name} "))
    ]
    if not values:
        raise RuntimeError(f"the server has no metric {name}")
    return sum(values)


def _short(scenario: Scenario, path: ServerPath, number: int, when: str) -> Work:
    draw = workload.source("overload", path.name, number, when)
    return workload.uniform(1, scenario.prompt, NEXT_TOKENS, draw)


def _wait_free(address: str, slots: float) -> float:
    """Wait until ``slots`` slots are free and nothing runs; return how many are free in the end."""
    deadline = time.monotonic() + FREE_SECONDS
    free = metric(address, SLOTS)
    while (free < slots or metric(address, RUNNING) > 0) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        free = metric(address, SLOTS)
    return free


def _resident(server: Server) -> float:
    """Return the bytes that the server and its workers have in memory."""
    groups = server.groups()
    processes: list[psutil.Process] = [*groups["server"], *groups["workers"]]
    return float(sum(process.memory_info().rss for process in processes))
