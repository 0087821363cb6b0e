"""The composition root: builds every object, starts, drains and stops the server.

Start: repository (models load concurrently) → gRPC port and Envoy's Unix socket → Envoy → ready.
Stop (SIGTERM, SIGINT): readiness off → no new RPCs, running ones finish within ``drain_seconds`` → Envoy →
workers. A second signal stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Final

import grpc
import structlog
from grpc_reflection.v1alpha import reflection

from headrace.envoy.options import BootstrapOptions
from headrace.server.access import Access
from headrace.server.config import Settings
from headrace.server.interceptors import Interceptors
from headrace.server.proxy import EnvoyError, EnvoyProcess
from headrace.server.repository.definition import ModelFactory
from headrace.server.repository.factory import RunningModels
from headrace.server.repository.instances import Machine
from headrace.server.repository.registry import Repository
from headrace.server.services import registry
from headrace.server.services.health import Health
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.metrics import Metrics
from headrace.server.telemetry.requests import RequestMetrics
from headrace.server.tuning.cache import TuningCache
from headrace.server.tuning.fingerprint import machine_facts
from headrace.server.tuning.models import TunedModels
from headrace.server.workers.supervised import RestartPolicy

log = structlog.get_logger(__name__)

GRPC_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 128 * 1024),  # Envoy admits 60 KiB of headers; grpc's own default is 8 KiB
    ("grpc.absolute_max_metadata_size", 256 * 1024),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 300_000),
    ("grpc.max_concurrent_streams", 1_000_000),
)
GC_THRESHOLDS: Final = (20_000, 20, 50)
"""Objects between collections: requests leave few cycles, and the default of 700 costs more than it frees."""
SHUTDOWN_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class App:
    """A Headrace server.

    Args:
        settings: everything that can be set.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
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
            control_mode=settings.model_control_mode,
            load_models=settings.load_models,
            cores=settings.cores,
            gpus=settings.gpus,
            on_change=self._changed.set,
        )
        self._tokenizing = Tokenizing(threads=min(2, settings.cores))
        self._generating = Generating(self._tokenizing)
        self._requests = RequestMetrics()
        self._metrics = Metrics(self._requests, self.repository.ready_models)
        names = [descriptor.full_name for descriptor in registry.descriptors()]
        self._health = Health(names)
        self._server = grpc.aio.server(options=GRPC_OPTIONS)
        self._add_services(names)
        self._envoy: EnvoyProcess | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, *, on_ready: asyncio.Event | None = None) -> int:
        """Serve until a signal or a fatal failure; return the process's exit status."""
        loop = asyncio.get_running_loop()
        for number in SHUTDOWN_SIGNALS:
            loop.add_signal_handler(number, self.request_stop)
        try:
            await self._start()
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

    def request_stop(self) -> None:
        """Begin to drain; asked a second time, stop at once."""
        if self._stop.is_set():
            self._now.set()
        self._stop.set()

    def _add_services(self, names: list[str]) -> None:
        dependencies = registry.Dependencies(
            self.settings,
            self.repository,
            self._tokenizing,
            self._generating,
            self._metrics,
            lambda: self._serving,
        )
        access = Access(key.get_secret_value() for key in self.settings.api_keys)
        self._server.add_generic_rpc_handlers(
            tuple(registry.handlers(dependencies, Interceptors(self._requests, access)))
        )
        self._health.register(self._server)
        reflected = [*names, "grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflection.enable_server_reflection(reflected, self._server)

    async def _start(self) -> None:
        settings = self.settings
        socket_path = self._runtime_dir / "grpc.sock"
        address = f"{_bracketed(settings.grpc_host)}:{settings.grpc_port}"
        try:
            self.grpc_port = self._server.add_insecure_port(address)
        except RuntimeError:
            msg = f"cannot listen on {address} for gRPC: is another server running? Try another --grpc-port"
            raise StartError(msg) from None
        self._server.add_insecure_port(f"unix:{socket_path}")
        await self._health.live(alive=True)
        await self._health.update(ready=False, models={})
        await self._server.start()
        if settings.envoy:
            self._envoy = EnvoyProcess(
                BootstrapOptions(
                    upstream_socket=str(socket_path),
                    listen_host=settings.http_host,
                    listen_port=settings.http_port,
                    metrics_port=settings.metrics_port,
                    max_body_bytes=settings.max_body_bytes,
                    cors_allow_origins=tuple(settings.cors_allow_origins),
                ),
                registry.descriptors(),
                runtime_dir=self._runtime_dir / "envoy",
                on_failure=self._fail,
            )
            try:
                await self._envoy.start()
            except (EnvoyError, ValueError) as error:
                raise StartError(str(error)) from None
            self.http_port = self._envoy.port
        await self.repository.start()
        self._serving = True
        # What lives from here on lives until the end: collections need not walk it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._watcher = asyncio.get_running_loop().create_task(self._follow_models())
        self._changed.set()
        log.info(
            "server ready",
            grpc=f"{_bracketed(settings.grpc_host)}:{self.grpc_port}",
            rest=f"{_bracketed(settings.http_host)}:{self.http_port}" if settings.envoy else None,
            models=[model.name for model in self.repository.ready_models()],
        )

    async def _follow_models(self) -> None:
        """Keep the health service in step with the models."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            ready = self._serving and self.repository.all_ready()
            await self._health.update(ready=ready, models=self.repository.states())

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self.request_stop()

    async def _drain(self) -> None:
        """Finish what runs: readiness goes first, then no new RPCs, then everything ends."""
        log.info("draining", seconds=self.settings.drain_seconds, active=self._requests.active)
        self._serving = False
        if self._watcher is not None:
            self._watcher.cancel()
        await self._health.update(ready=False, models=dict.fromkeys(self.repository.states(), False))
        stopping = asyncio.ensure_future(self._server.stop(self.settings.drain_seconds))
        hurry = asyncio.ensure_future(self._now.wait())
        await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await self._server.stop(0)
        await stopping
        hurry.cancel()

    async def _close(self) -> None:
        self._serving = False
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._server.stop(0)
        if self._envoy is not None:
            await self._envoy.stop()
        await self.repository.stop()
        self._tokenizing.close()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)


def _factory(settings: Settings) -> ModelFactory:
    """Return what starts models: with the layouts that were measured for them, if the settings say so."""
    models = RunningModels(settings.max_queue_size, RestartPolicy(attempts=settings.worker_restart_attempts))
    if settings.tuning == "off":
        return models
    machine = Machine(settings.cores, settings.gpus)
    cache = TuningCache(settings.tuning_cache, machine_facts(machine))
    return TunedModels(
        models,
        machine,
        cache,
        settings.tuning,
        seconds=settings.tuning_seconds,
        tolerance=settings.tuning_tolerance,
    )


class StartError(Exception):
    """The server cannot start; the text says what to do."""


def _bracketed(host: str) -> str:
    """Write an IPv6 address as URLs do."""
    return f"[{host}]" if ":" in host else host
