"""The server under test as processes: starting, stopping, and what each of them costs."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import psutil

START_SECONDS: Final = 180.0
STOP_SECONDS: Final = 30.0
_SCHEDULER_CLOCK: Final = 2
"""The kernel's CPUCLOCK_SCHED: all time that a process has run."""


class Server:
    """A running ``headrace serve`` on free ports of the loopback interface. Use as a context manager."""

    def __init__(self, repository: Path, model: str, log: Path, arguments: Iterable[str] = ()) -> None:
        """Serve ``model`` out of ``repository``; the server's log goes to ``log``.

        Raises:
            RuntimeError: the server ended, or did not become ready; the text has the end of its log.
        """
        command = [
            sys.executable, "-m", "headrace.server.cli", "serve", "--grpc-port", "0", "--http-port", "0",
            "--log-format", "json", "--model-repository", str(repository), "--load-models", model, *arguments,
        ]  # fmt: skip
        with log.open("w") as stream:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
        entry = self._wait(log)
        self.grpc: str = entry["grpc"]
        self.http: str = entry["rest"]

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drain and end the server."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Process id of the server itself."""
        return self._process.pid

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return its processes now: the server itself, Envoy, and the workers."""
        server = psutil.Process(self._process.pid)
        groups: dict[str, list[psutil.Process]] = {"server": [server], "envoy": [], "workers": []}
        for child in server.children(recursive=True):
            groups["envoy" if child.name().startswith("envoy") else "workers"].append(child)
        return groups

    def _wait(self, log: Path) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for line in log.read_text().splitlines():
                if '"server ready"' in line:
                    entry: dict[str, Any] = json.loads(line)
                    return entry
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()
        raise RuntimeError(f"the server did not become ready:\n{log.read_text()[-2000:]}")


class CpuMeter:
    """Processor time of groups of processes between two moments."""

    def __init__(self, groups: Mapping[str, Iterable[psutil.Process]]) -> None:
        """Watch ``groups``; nothing is read yet."""
        self._groups = {name: list(processes) for name, processes in groups.items()}
        self._before: dict[str, float] = {}
        self._busy = 0.0

    def start(self) -> None:
        """Read the clocks for the first time."""
        self._busy = _machine_busy()
        self._before = self._read()

    def stop(self) -> dict[str, float]:
        """Return the CPU-seconds of each group since :meth:`start`, and of everything else as ``other``.

        The kernel counts the whole machine in steps of 10 ms, so ``other`` is rough on short spans.
        """
        spent = {name: seconds - self._before[name] for name, seconds in self._read().items()}
        spent["other"] = max(0.0, _machine_busy() - self._busy - sum(spent.values()))
        return spent

    def _read(self) -> dict[str, float]:
        return {name: sum(map(_cpu_seconds, group)) for name, group in self._groups.items()}


def _cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process; a process that ended counts as nothing.

    This is Linux' CPU clock of another process, as clock_getcpuclockid(3) makes it: /proc has the same
    number, but in steps of 10 ms, which is more than a server needs for a few tokens.
    """
    with contextlib.suppress(OSError):
        return time.clock_gettime(~process.pid << 3 | _SCHEDULER_CLOCK)
    return 0.0


def _machine_busy() -> float:
    """Seconds that all cores together have worked since boot."""
    times = psutil.cpu_times()
    return float(sum(times)) - times.idle - getattr(times, "iowait", 0.0)
