"""The soak itself: a server, its callers, a clock for memory, and a hand that kills workers."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from benchmarks import verify
from benchmarks.payloads import BUILDERS
from benchmarks.processes import Server
from benchmarks.scenarios import SCENARIOS
from benchmarks.soak.client import SoakClient, SoakJob
from benchmarks.soak.plan import Plan
from benchmarks.soak.results import SoakResult
from benchmarks.soak.tally import Tally
from benchmarks.workloads import WORKLOADS

SEED: Final = 20261123
READ_SECONDS: Final = 1.0
LATE_SECONDS: Final = 30.0
"""How long the last answers may take beyond the callers' patience before the soak is given up."""

RECOVER_SECONDS: Final = 60.0
_QUIET: Final = 0.75
"""When it is quiet, as a share of warming up; workers are killed in the first half."""

_MIB: Final = 2**20
_REFERENCE: Final = "encoding-1"
"""The scenario whose requests are compared with the bare model before and after."""

Progress = Callable[[float, Tally, dict[str, float]], None]
"""(seconds since the beginning, what became of requests, MiB by group) → None."""


def run(
    plan: Plan, repository: Path, folder: Path, arguments: tuple[str, ...], minutes: float, say: Progress
) -> SoakResult:
    """Soak for ``minutes``; the server's log goes into ``folder``.

    Raises:
        WrongAnswerError: answers before or after are not the model's.
        RuntimeError: the server does not start, or the callers fail themselves.
        TimeoutError: the callers do not come to an end.
    """
    result = SoakResult(plan.name, plan.title, plan.callers, minutes, plan.warmup)
    first, *others = plan.models
    flags = [f"--load-models={name}" for name in others]
    flags += [f"--max-queue-size={plan.queue}", *arguments]
    with Server(repository, first, folder / "soak.log", flags) as server:
        _verify(server, repository)
        result.workers = len(server.groups()["workers"])
        begin = time.monotonic()
        quiet = begin + minutes * 60.0 * plan.warmup * _QUIET
        job = SoakJob(
            server.grpc, server.http, plan, SEED, (quiet, quiet + plan.quiet_seconds), begin + minutes * 60.0
        )
        with SoakClient(job) as client:
            _watch(server, client, job, result, begin, say)
        result.verified = _recovered(server, repository)
        result.workers_left = len(server.groups()["workers"])
    return result


def _watch(
    server: Server, client: SoakClient, job: SoakJob, result: SoakResult, begin: float, say: Progress
) -> None:
    """Read memory every second until the callers are done; kill a worker when it is time."""
    plan = job.plan
    # In the first half of warming up: a new worker loads some of its sessions only when they are asked for.
    killing = (job.end - begin) * plan.warmup / 2
    due = [begin + killing * (turn + 0.5) / plan.kills for turn in range(plan.kills)]
    source = random.Random(SEED)  # noqa: S311
    tally = Tally()
    while not client.done:
        now = time.monotonic()
        if now > job.end + plan.patience + LATE_SECONDS:
            raise TimeoutError("the callers did not come to an end")
        tally = client.latest() or tally
        memory = _memory(server)
        if now < job.end:
            result.seconds.append(now - begin)
            for name, size in memory.items():
                result.rss.setdefault(name, []).append(size)
        say(now - begin, tally, memory)
        if due and now >= due[0]:
            due.pop(0)
            if workers := server.groups()["workers"]:
                source.choice(workers).send_signal(signal.SIGKILL)
                result.kills.append(now - begin)
        time.sleep(READ_SECONDS)
    _fill(result, tally)


def _fill(result: SoakResult, tally: Tally) -> None:
    result.counts = {
        "answered": tally.answered, "refused": tally.refused.total(), "left": tally.left,
        "failed": tally.failed.total(), "unanswered": tally.unanswered,
    }  # fmt: skip
    result.refused = dict(tally.refused)
    result.errors = tally.errors
    result.unanswered = tally.unanswered
    result.failed = tally.failed.total()


def _memory(server: Server) -> dict[str, float]:
    """Return the MiB that each group of processes has in memory; one that has just ended has none."""
    sizes = {}
    for name, processes in server.groups().items():
        sizes[name] = 0.0
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes[name] += process.memory_info().rss / _MIB
    return sizes


def _verify(server: Server, repository: Path) -> str:
    """Compare the first answers with the bare model's."""
    scenario = next(each for each in SCENARIOS if each.name == _REFERENCE)
    work = WORKLOADS[scenario.workload](repository / scenario.model)
    payload = BUILDERS[scenario.routes[0].payload](scenario, work)
    found = verify.check(server.grpc, server.http, payload, work, scenario.items)
    return f"answers differ from the bare model's by at most {found.difference:.1e}"


def _recovered(server: Server, repository: Path) -> str:
    """Compare once more; the queue may still be full for a moment.

    Raises:
        WrongAnswerError: answers are not the model's, or there are none for a minute.
    """
    deadline = time.monotonic() + RECOVER_SECONDS
    while True:
        try:
            return _verify(server, repository) + ", at the end, too"
        except verify.WrongAnswerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(READ_SECONDS)
