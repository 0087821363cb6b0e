"""The composition root: builds every object, starts, drains and stops the server.

Start: repository (models load concurrently) → gRPC port and Envoy's Unix socket → Envoy → ready.
Stop (SIGTERM, SIGINT): readiness off → no new RPCs, running ones finish within ``drain_seconds`` → Envoy →
workers. A second signal stops at once, and so does the first one during the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
from prometheus_client.core import Metric

from headrace.envoy.options import BootstrapOptions
from headrace.server.access import Access
from headrace.server.certificates import listen, server_certificates
from headrace.server.config import Settings, require_repositories
from headrace.server.fronts.forwarding import Around
from headrace.server.fronts.hub import Fronts
from headrace.server.fronts.process import FrontError
from headrace.server.interceptors import Interceptors
from headrace.server.proxy import EnvoyError, EnvoyProcess
from headrace.server.repository.definition import ModelFactory
from headrace.server.repository.factory import RunningModels
from headrace.server.repository.instances import Machine
from headrace.server.repository.registry import Repository
from headrace.server.services import registry
from headrace.server.services.health import Health
from headrace.server.serving import add_services, grpc_server, service_health, settle_memory
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.metrics import Metrics
from headrace.server.telemetry.requests import RequestMetrics
from headrace.server.tuning.cache import TuningCache
from headrace.server.tuning.fingerprint import machine_facts
from headrace.server.tuning.models import TunedModels, tuning_mode
from headrace.server.workers.supervised import RestartPolicy

log = structlog.get_logger(__name__)

SHUTDOWN_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
FRONTS_PER_ENVOY_THREAD: Final = 4
"""A thread of Envoy passes on what several processes of Python answer."""


class App:
    """A Headrace server.

    Args:
        settings: everything that can be set.

    Raises:
        ConfigError: the files of a certificate, or a model repository, cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._certificates = server_certificates(settings)
        require_repositories(settings.model_repository)
        self.grpc_port = settings.grpc_port
        self.http_port = settings.http_port
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._failure: str | None = None
        self._serving = False
        self._changed = asyncio.Event()
        self._runtime_dir = Path(tempfile.mkdtemp(prefix="headrace-"))
        self.repository = Repository(
            settings.model_repository,
            _factory(settings),
            _machine(settings),
            control_mode=settings.model_control_mode,
            load_models=settings.load_models,
            on_change=self._note_change,
        )
        self._socket = self._runtime_dir / "grpc.sock"
        self._requests = RequestMetrics()
        self._fronts = self._front_processes() if settings.front_processes > 1 else None
        self._tokenizing = Tokenizing(threads=min(2, settings.cores))
        self._access = Access(key.get_secret_value() for key in settings.api_keys)
        self._generating = Generating(
            self._tokenizing, None if self._fronts is None else self._fronts.abort, self._access.tenant
        )
        self._metrics = Metrics(
            self._requests,
            self.repository.ready_models,
            _nothing if self._fronts is None else self._fronts.families,
        )
        self._health = Health(service_health())
        self._server = grpc_server(settings.grpc_transport, tls=self._certificates is not None)
        self._add_services()
        self._envoy: EnvoyProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def run(self, *, on_ready: asyncio.Event | None = None) -> int:
        """Serve until a signal or a fatal failure; return the process's exit status."""
        loop = asyncio.get_running_loop()
        for number in SHUTDOWN_SIGNALS:
            loop.add_signal_handler(number, self.request_stop)
        try:
            if await self._start_unless_stopped():
                if on_ready is not None:
                    on_ready.set()
                await self._stop.wait()
                await self._drain()
        finally:
            await self._close()
            for number in SHUTDOWN_SIGNALS:
                loop.remove_signal_handler(number)
        if self._failure is not None:
            log.error("server stopped", reason=self._failure)
            return 1
        log.info("server stopped")
        return 0

    def failed(self) -> list[str]:
        """Return the names of the models that ought to be served and are not, or not in every version."""
        entries = self.repository.entries.values()
        return [entry.name for entry in entries if any(status.failed for status in entry.statuses)]

    def request_stop(self) -> None:
        """Begin to drain; asked a second time, stop at once."""
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    def _front_processes(self) -> Fronts:
        """Return the processes that take RPCs in this one's place."""
        return Fronts(
            self.settings,
            self._runtime_dir,
            self._socket,
            self.repository,
            self._requests,
            lambda: self._serving,
            self._fail,
            RestartPolicy(),
        )

    def _add_services(self) -> None:
        dependencies = registry.Dependencies(
            self.settings,
            self.repository,
            self._tokenizing,
            self._generating,
            self._metrics,
            lambda: self._serving,
        )
        handlers = registry.handlers(dependencies, Interceptors(self._requests, self._access))
        if self._fronts is not None:
            handlers = (Around(handler, self._fronts.collect, self._fronts.settled) for handler in handlers)
        add_services(self._server, handlers, self._health)

    async def _start_unless_stopped(self) -> bool:
        """Start, until something asks to stop; whether all is started. What was begun is left to close."""
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not starting.done():
                log.info("the start is given up")
                starting.cancel()
            await asyncio.wait({starting})
        if starting.cancelled():
            return False
        starting.result()
        return True

    async def _start(self) -> None:
        settings = self.settings
        if self._fronts is None:
            address = f"{_bracketed(settings.grpc_host)}:{settings.grpc_port}"
            try:
                self.grpc_port = listen(self._server, address, self._certificates)
            except RuntimeError:
                msg = (
                    f"cannot listen on {address} for gRPC: is another server running? Try another --grpc-port"
                )
                raise StartError(msg) from None
        self._server.add_insecure_port(f"unix:{self._socket}")
        self._health.live(alive=True)
        self._health.update(ready=False, models={})
        await self._server.start()
        sockets = [self._socket]
        if self._fronts is not None:
            try:
                await self._fronts.start()
            except FrontError as error:
                raise StartError(str(error)) from None
            self.grpc_port, sockets = self._fronts.port, list(self._fronts.sockets)
        if settings.envoy:
            self._envoy = EnvoyProcess(
                BootstrapOptions(
                    upstream_sockets=tuple(map(str, sockets)),
                    listen_host=settings.http_host,
                    listen_port=settings.http_port,
                    metrics_port=settings.metrics_port,
                    max_body_bytes=settings.max_body_bytes,
                    cors_allow_origins=tuple(settings.cors_allow_origins),
                    tls=None
                    if self._certificates is None
                    else self._certificates.publish(self._runtime_dir / "tls"),
                ),
                registry.descriptors(),
                runtime_dir=self._runtime_dir / "envoy",
                on_failure=self._fail,
                concurrency=-(-len(sockets) // FRONTS_PER_ENVOY_THREAD),
            )
            try:
                await self._envoy.start()
            except (EnvoyError, ValueError) as error:
                raise StartError(str(error)) from None
            self.http_port = self._envoy.port
        await self.repository.start()
        self._serving = True
        settle_memory()
        self._watcher = asyncio.get_running_loop().create_task(self._follow_models())
        if self._certificates is not None:
            self._renewing = asyncio.get_running_loop().create_task(self._certificates.watch())
        self._note_change()
        if self._fronts is not None:
            await self._fronts.settled()
        log.info(
            "server ready",
            grpc=f"{_bracketed(settings.grpc_host)}:{self.grpc_port}",
            rest=f"{_bracketed(settings.http_host)}:{self.http_port}" if settings.envoy else None,
            models=[model.name for model in self.repository.ready_models()],
            failed=self.failed(),
        )

    def _note_change(self) -> None:
        self._changed.set()
        if self._fronts is not None:
            self._fronts.changed()

    async def _follow_models(self) -> None:
        """Keep the health service in step with the models."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            ready = self._serving and self.repository.all_ready()
            self._health.update(
                ready=ready, models=self.repository.states(), loaded=self.repository.ready_models()
            )

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self.request_stop()

    async def _drain(self) -> None:
        """Finish what runs: readiness goes first, then no new RPCs, then everything ends."""
        log.info("draining", seconds=self.settings.drain_seconds, active=self._requests.active)
        self._serving = False
        if self._watcher is not None:
            self._watcher.cancel()
        self._note_change()
        self._health.update(ready=False, models=dict.fromkeys(self.repository.states(), False))
        stopping = asyncio.ensure_future(self._finish(self.settings.drain_seconds))
        hurry = asyncio.ensure_future(self._now.wait())
        await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            if self._fronts is not None:
                await self._fronts.stop()
            await self._server.stop(0)
        await stopping
        hurry.cancel()

    async def _finish(self, seconds: float) -> None:
        """Take no new RPCs, and let those that run finish; what fronts have forwarded runs here."""
        if self._fronts is not None:
            await self._fronts.settled()  # readiness first
            await self._fronts.drain(seconds)
        await self._server.stop(seconds)

    async def _close(self) -> None:
        self._serving = False
        if self._renewing is not None:
            self._renewing.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._fronts is not None:
            await self._fronts.stop()
        await self._server.stop(0)
        if self._envoy is not None:
            await self._envoy.stop()
        await self.repository.stop()
        self._tokenizing.close()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)


def _nothing() -> Iterator[Metric]:
    """Yield no further metrics."""
    return iter(())


def _machine(settings: Settings) -> Machine:
    """Return what models are planned for."""
    return Machine(settings.cores, settings.gpus, settings.fused_graphs, settings.shared_weights)


def _factory(settings: Settings) -> ModelFactory:
    """Return what starts models: with the layouts that were measured for them, if the settings say so."""
    models = RunningModels(settings.max_queue_size, RestartPolicy(attempts=settings.worker_restart_attempts))
    machine = _machine(settings)
    mode = tuning_mode(settings.tuning, machine)
    if mode is None:
        return models
    cache = TuningCache(settings.tuning_cache, machine_facts(machine))
    return TunedModels(
        models,
        machine,
        cache,
        mode,
        seconds=settings.tuning_seconds,
        tolerance=settings.tuning_tolerance,
    )


class StartError(Exception):
    """The server cannot start; the text says what to do."""


def _bracketed(host: str) -> str:
    """Write an IPv6 address as URLs do."""
    return f"[{host}]" if ":" in host else host
