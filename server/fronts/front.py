"""The composition root of a front process: the same services as the core's, over schedulers in the core."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
from typing import Any, Final

import grpc
import structlog

from headrace.server.access import Access
from headrace.server.certificates import listen, server_certificates
from headrace.server.config import ConfigError, Settings
from headrace.server.fronts.counting import take_totals
from headrace.server.fronts.following import Following
from headrace.server.fronts.forwarding import forwarding
from headrace.server.fronts.link import Link
from headrace.server.fronts.messages import (
    TO_FRONT,
    Abort,
    Aborted,
    Applied,
    Begin,
    Catalogue,
    Counted,
    Drain,
    Listening,
    Released,
    Report,
    StartFailed,
    ToFront,
)
from headrace.server.fronts.remote import Requests
from headrace.server.interceptors import Interceptors
from headrace.server.repository.factory import RunningModels
from headrace.server.repository.instances import Machine
from headrace.server.repository.registry import Repository
from headrace.server.services.health import Health
from headrace.server.services.registry import Dependencies, handlers
from headrace.server.serving import GRPC_OPTIONS, add_services, grpc_server, service_health, settle_memory
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry import logs
from headrace.server.telemetry.metrics import Metrics
from headrace.server.telemetry.requests import RequestMetrics
from headrace.server.workers.supervised import RestartPolicy

log = structlog.get_logger(__name__)

REPORT_SECONDS: Final = 5.0
"""Between reports that nobody asked for: so much is lost of the counts when a front is killed."""


class Front:
    """A front process.

    Args:
        begin: what the core told it.
        settings: of the server.
        link: to the core.

    Raises:
        ConfigError: the files of a certificate cannot be used any more.
    """

    def __init__(self, begin: Begin, settings: Settings, link: Link[ToFront]) -> None:
        self._begin = begin
        self._settings = settings
        self._link = link
        self._requests = Requests(link.send)
        self._metrics = RequestMetrics()
        self._tokenizing = Tokenizing(threads=min(2, settings.cores))
        access = Access(key.get_secret_value() for key in settings.api_keys)
        self._generating = Generating(self._tokenizing, tenant=access.tenant)
        # The core loads models, and load and unload are forwarded to it: this one only looks them up.
        self._repository = Repository(
            settings.model_repository,
            RunningModels(settings.max_queue_size, RestartPolicy()),
            Machine(settings.cores),
            control_mode="none",
            created=begin.created,
        )
        self._following = Following(self._repository, self._requests, self._show, self._release)
        self._catalogues: asyncio.Queue[Catalogue] = asyncio.Queue()
        self._settled = False
        self._drain: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._health = Health(service_health())
        self._channel = grpc.aio.insecure_channel(f"unix:{begin.core}", options=GRPC_OPTIONS)
        self._certificates = server_certificates(settings)
        self._server = grpc_server(
            settings.grpc_transport, tls=self._certificates is not None, shared_port=True
        )
        dependencies = Dependencies(
            settings,
            self._repository,
            self._tokenizing,
            self._generating,
            Metrics(self._metrics, self._repository.ready_models),
            lambda: self._following.serving,
        )
        services = handlers(dependencies, Interceptors(self._metrics, access))
        add_services(self._server, (*forwarding(self._channel), *services), self._health)

    async def run(self) -> int:
        """Serve until the core has it drain; return the exit status."""
        tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        try:
            self._health.live(alive=True)
            await self._apply()
            while not self._catalogues.empty():
                await self._apply()
            try:
                await self._listen()
            except RuntimeError as error:
                self._link.send(StartFailed(str(error)))
                return 1
            tasks = [loop.create_task(self._follow()), loop.create_task(self._report())]
            if self._certificates is not None:
                tasks.append(loop.create_task(self._certificates.watch()))
            await self._server.stop(await self._drain)
            return 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._server.stop(0)
            await self._channel.close(None)
            self._tokenizing.close()

    def take(self, message: ToFront) -> None:
        """Take a message of the core."""
        if isinstance(message, Catalogue):
            self._catalogues.put_nowait(message)
        elif isinstance(message, Report):
            self._count(message.number)
        elif isinstance(message, Abort):
            count = self._generating.running.abort(message.name)
            self._link.send(Aborted(message.number, count))
        elif isinstance(message, Drain):
            if not self._drain.done():
                self._drain.set_result(message.seconds)
        elif not isinstance(message, Begin):
            self._requests.answer(message)

    async def _listen(self) -> None:
        """Listen and say so.

        Raises:
            RuntimeError: an address cannot be bound.
        """
        listen(self._server, self._begin.address, self._certificates)
        self._server.add_insecure_port(f"unix:{self._begin.socket}")
        await self._server.start()
        self._link.send(Listening())

    async def _follow(self) -> None:
        while True:
            await self._apply()

    async def _apply(self) -> None:
        """Wait for the next catalogue, and let new requests see it."""
        catalogue = await self._catalogues.get()
        await self._following.apply(catalogue)
        self._link.send(Applied(catalogue.number))
        if catalogue.serving and not self._settled:
            self._settled = True
            settle_memory()

    async def _show(self, catalogue: Catalogue) -> None:
        """Bring the health service up to date."""
        ready = catalogue.serving and self._repository.all_ready()
        states, loaded = self._repository.states(), self._repository.ready_models()
        if not catalogue.serving and self._settled:  # it drains
            states, loaded = dict.fromkeys(states, False), []
        self._health.update(ready=ready, models=states, loaded=loaded)

    def _release(self, number: int) -> None:
        self._count(0)
        self._link.send(Released(number))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._count(0)

    def _count(self, number: int) -> None:
        totals = take_totals(self._metrics, self._following.counters)
        self._link.send(Counted(number, self._metrics.active, pickle.dumps(totals)))


async def serve(sock: socket.socket) -> int:
    """Run a front over its socket to the core; return the process's exit status."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    begun: asyncio.Future[Begin] = loop.create_future()
    early: list[ToFront] = []
    take = early.append

    def receive(message: ToFront) -> None:
        if isinstance(message, Begin):
            begun.set_result(message)
        else:
            take(message)

    link = await Link.over(sock, TO_FRONT, receive, gone.set)
    ending = asyncio.ensure_future(gone.wait())
    first: set[asyncio.Future[Any]] = {begun, ending}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    if not begun.done():
        return 1
    begin = begun.result()
    # Read and checked by the core; the environment is not asked again.
    values = pickle.loads(begin.settings)  # noqa: S301 - from the core of this server, over a socket it made
    settings = Settings.model_construct(**values)
    logs.configure(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(front=begin.index)
    try:
        front = Front(begin, settings, link)
    except ConfigError as error:
        link.send(StartFailed(str(error)))
        link.close()
        return 1
    take = front.take
    for message in early:
        front.take(message)
    running = asyncio.ensure_future(front.run())
    both: set[asyncio.Future[Any]] = {running, ending}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        ending.cancel()
        link.close()
        return running.result()
    running.cancel()  # the core has gone
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return 1
