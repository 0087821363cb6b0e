"""Envoy in front of the gRPC server: started, watched, started again, and gone when the server is gone."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
from google.protobuf.descriptor import ServiceDescriptor

from headrace.envoy.bootstrap import render, to_json
from headrace.envoy.options import MAX_SOCKET_PATH, BootstrapOptions
from headrace.server.ports import answers, free_port
from headrace.server.proxy_admin import drain
from headrace.server.proxy_process import EnvoyError, EnvoyRun, validate

__all__ = ["EnvoyError", "EnvoyProcess", "validate"]

log = structlog.get_logger(__name__)

START_SECONDS: Final = 30.0

#: A crashed Envoy is started again after 0.1 s, 0.2 s … 5 s, until it has crashed this often in this time.
FAILURES: Final = 5
FAILURES_SECONDS: Final = 60.0
FIRST_DELAY_SECONDS: Final = 0.1
LONGEST_DELAY_SECONDS: Final = 5.0

_POLL_SECONDS: Final = 0.02


class EnvoyProcess:
    """Runs Envoy in front of the gRPC server.

    Start it from the thread that lives as long as the server: Envoy dies with that thread.

    Args:
        options: what a deployment chooses; ports that are 0 are chosen by the system when Envoy starts.
        services: the server's gRPC services.
        runtime_dir: folder for Envoy's configuration, made with mode 0700 where it does not exist.
        on_failure: called once with the reason when Envoy has crashed too often and is given up.
        concurrency: worker threads. One takes thousands of requests per second; the models need the cores.
    """

    def __init__(
        self,
        options: BootstrapOptions,
        services: Sequence[ServiceDescriptor],
        *,
        runtime_dir: Path,
        on_failure: Callable[[str], None],
        concurrency: int = 1,
    ) -> None:
        admin = str(runtime_dir / "admin.sock")
        if options.admin_socket is None and len(admin.encode()) <= MAX_SOCKET_PATH:
            options = dataclasses.replace(options, admin_socket=admin)
        self.options = options
        self._services = services
        self._config = runtime_dir / "envoy.json"
        self._on_failure = on_failure
        self._concurrency = concurrency
        self._run: EnvoyRun | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running Envoy, 0 while there is none."""
        return self._run.pid if self._run else 0

    @property
    def port(self) -> int:
        """Port of REST and gRPC; after :meth:`start` the real one."""
        return self.options.listen_port

    @property
    def metrics_port(self) -> int | None:
        """Port of the metrics, None where none was asked for; after :meth:`start` the real one."""
        return self.options.metrics_port

    async def start(self) -> None:
        """Start Envoy and return when its ports answer.

        Raises:
            EnvoyError: a port is taken, or Envoy ended or did not answer in time.
            ValueError: the options and services make no configuration.
        """
        self._check_ports()
        _write(self._config, to_json(render(self.options, self._services)))
        run = await self._launch()
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(run))

    async def stop(self, grace_s: float = 5.0) -> None:
        """End Envoy: no new connections, SIGTERM, after ``grace_s`` seconds SIGKILL. May be repeated.

        Stop the server first: Envoy refuses its requests at once then, and clients that are told to leave do
        so before it ends. What still runs is cut.
        """
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        if self._run is not None:
            if self._run.running and self.options.admin_socket is not None:
                await drain(self.options.admin_socket)
            await self._run.end(grace_s)
        self._config.unlink(missing_ok=True)

    async def _supervise(self, run: EnvoyRun) -> None:
        """Start Envoy again whenever it ends by itself; give up when it does so too often."""
        loop = asyncio.get_running_loop()
        failures: deque[float] = deque()
        reason = await run.ended()
        while True:
            now = loop.time()
            failures.append(now)
            while failures[0] < now - FAILURES_SECONDS:
                failures.popleft()
            if len(failures) >= FAILURES:
                break
            delay = min(FIRST_DELAY_SECONDS * 2 ** (len(failures) - 1), LONGEST_DELAY_SECONDS)
            log.error("envoy ended and is started again", reason=reason, delay_s=delay)
            await asyncio.sleep(delay)
            try:
                run = await self._launch()
            except EnvoyError as error:
                reason = str(error)
                continue
            log.info("envoy runs again", pid=run.pid)
            reason = await run.ended()
        log.critical("envoy is given up", reason=reason)
        self._on_failure(f"Envoy failed {FAILURES} times within {FAILURES_SECONDS:g} s, at last: {reason}")

    async def _launch(self) -> EnvoyRun:
        """Start one Envoy and wait until its ports answer; leave no process behind on failure."""
        self._check_ports()
        run = self._run = await EnvoyRun.spawn(self._config, concurrency=self._concurrency)
        try:
            async with asyncio.timeout(START_SECONDS):
                listening = await self._listens(run)
        except TimeoutError:
            await run.end(0)
            raise EnvoyError(f"Envoy did not listen within {START_SECONDS:g} s") from None
        except BaseException:
            await run.end(0)
            raise
        if not listening:
            raise EnvoyError(await run.ended())
        return run

    async def _listens(self, run: EnvoyRun) -> bool:
        """Wait until all ports answer, or the process has ended."""
        ports = ((self.options.listen_port, self.options.tls is not None), (self.options.metrics_port, False))
        for port, tls in ports:
            while port and run.running and not await answers(self.options.address, port, tls=tls):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)  # the kernel tells nobody that a port answers
        return run.running

    def _check_ports(self) -> None:
        """Choose ports that are 0, and make sure that all can be bound.

        Asked before Envoy starts because a foreign process on the port would also answer the question whether
        Envoy is up, and because Envoy's own message does not say what to do.
        """
        options = self.options
        port = _bindable(options.address, options.listen_port, "--http-port")
        metrics_port = options.metrics_port
        if metrics_port is not None:
            metrics_port = _bindable(options.address, metrics_port, "--metrics-port")
        self.options = dataclasses.replace(options, listen_port=port, metrics_port=metrics_port)


def _bindable(address: str, port: int, flag: str) -> int:
    try:
        return free_port(address, port)
    except OSError as error:
        raise EnvoyError(
            f"cannot listen on {address} port {port} for HTTP: {error.strerror}; {flag} chooses another port"
        ) from None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
