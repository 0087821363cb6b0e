"""All front processes of a server: started, told, counted, drained; each is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog
from prometheus_client.core import CounterMetricFamily, Metric

from headrace.server.fronts.messages import Begin
from headrace.server.fronts.process import FrontError, FrontProcess
from headrace.server.fronts.publishing import Publisher
from headrace.server.ports import free_port
from headrace.server.workers.supervised import RestartPolicy

if TYPE_CHECKING:
    from headrace.server.config import Settings
    from headrace.server.repository.registry import Repository
    from headrace.server.telemetry.requests import RequestMetrics

log = structlog.get_logger(__name__)

START_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 2.0
"""How long the answer of a front is waited for that is not about a request."""
KILL_SECONDS: Final = 5.0
"""How much longer than they may drain the fronts are waited for."""


class Fronts:
    """The front processes.

    Args:
        settings: of the server.
        folder: for their Unix sockets.
        core: path of the Unix socket of the core's gRPC server.
        repository: of the core.
        requests: where all RPCs are counted.
        serving: whether the server takes requests.
        on_failure: called with the reason when fronts die again and again, and none is left.
        restarts: when a dead front is started again.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        core: Path,
        repository: Repository,
        requests: RequestMetrics,
        serving: Callable[[], bool],
        on_failure: Callable[[str], None],
        restarts: RestartPolicy,
    ) -> None:
        self._settings = settings
        self._core = core
        self._created = repository.created
        self._requests = requests
        self._on_failure = on_failure
        self._restarts = restarts
        self.sockets = tuple(folder / f"front-{index}.sock" for index in range(settings.front_processes))
        self._publisher = Publisher(repository, serving, self._running)
        self._fronts: list[FrontProcess | None] = [None] * len(self.sockets)
        self._answered = [0] * len(self.sockets)  # by processes that have ended
        self._deaths = [0] * len(self.sockets)
        self._reserved: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.port = settings.grpc_port

    async def start(self) -> None:
        """Start all fronts and return when they listen; then :attr:`port` is the real one.

        Raises:
            FrontError: a front could not start, or the port is taken.
        """
        self._reserved = _reserve(self._settings.grpc_host, self._settings.grpc_port)
        self.port = int(self._reserved.getsockname()[1])
        loop = asyncio.get_running_loop()
        self._publishing = loop.create_task(self._publisher.run())
        first = [await self._spawn(index) for index in range(len(self.sockets))]
        self._tasks = [loop.create_task(self._supervise(index, front)) for index, front in enumerate(first)]
        try:
            async with asyncio.timeout(START_SECONDS):
                outcomes = await asyncio.gather(*(front.listening for front in first), return_exceptions=True)
        except TimeoutError:
            raise FrontError(f"the front processes did not listen within {START_SECONDS:g} s") from None
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        log.info("fronts listen", count=len(first), pids=[front.pid for front in first])

    def changed(self) -> None:
        """Tell the fronts what has changed."""
        self._publisher.changed()

    async def settled(self) -> None:
        """Wait until all fronts know what has changed up to now; not for ever, for one may be stuck."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._publisher.settled()
        except TimeoutError:
            log.warning("a front does not take in what has changed")

    async def collect(self) -> None:
        """Add up what all fronts have counted up to now; one that is stuck counts as it last reported."""
        await _answers([front.collect() for front in self._running()])

    async def abort(self, name: str) -> int:
        """End the requests of this name in all fronts, and return how many there were."""
        return sum(await _answers([front.abort(name) for front in self._running()]))

    async def drain(self, seconds: float) -> None:
        """Have the fronts take no new RPCs and end within ``seconds``; return when all have ended."""
        self._stopping.set()
        for front in self._running():
            front.drain(seconds)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds + KILL_SECONDS)

    async def stop(self) -> None:
        """End all fronts at once. May be repeated."""
        self._stopping.set()
        for front in self._running():
            front.close()
        sleeping = [task for index, task in enumerate(self._tasks) if self._fronts[index] is None]
        for task in [*sleeping, *([self._publishing] if self._publishing is not None else [])]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._publishing is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._publishing
        if self._reserved is not None:
            self._reserved.close()

    def families(self) -> Iterator[Metric]:
        """Yield what tells the fronts apart (for the metrics)."""
        requests = CounterMetricFamily(
            "headrace_front_requests", "RPCs that a front process has answered", labels=("front",)
        )
        deaths = CounterMetricFamily(
            "headrace_front_restarts", "Front processes started again", labels=("front",)
        )
        for index, front in enumerate(self._fronts):
            now = front.requests if front is not None else 0
            requests.add_metric((str(index),), self._answered[index] + now)
            deaths.add_metric((str(index),), self._deaths[index])
        yield from (requests, deaths)

    def _running(self) -> list[FrontProcess]:
        return [front for front in self._fronts if front is not None]

    async def _spawn(self, index: int) -> FrontProcess:
        host = self._settings.grpc_host
        values = {name: getattr(self._settings, name) for name in type(self._settings).model_fields}
        begin = Begin(
            index,
            f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}",
            str(self.sockets[index]),
            str(self._core),
            self._created,
            pickle.dumps(values),
        )
        front = FrontProcess(begin, self._requests, self._publisher.moved)
        await front.spawn()
        # Nothing is awaited between the two, so that it misses no snapshot.
        front.introduce(self._publisher.snapshot)
        self._fronts[index] = front
        return front

    async def _supervise(self, index: int, front: FrontProcess) -> None:
        """Start a front again whenever it ends."""
        failures = 0
        policy = self._restarts
        started = time.monotonic()
        while True:
            status = await front.ended()
            self._answered[index] += front.requests
            self._fronts[index] = None
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - started > policy.healthy_seconds else failures
            delay = min(policy.max_seconds, policy.initial_seconds * 2**failures)
            failures += 1
            log.error("front ended and is started again", front=index, status=status, delay_s=delay)
            if failures > policy.attempts and not self._running():
                self._on_failure(f"the front processes died {failures} times in a row")
                return
            await asyncio.sleep(delay)
            if self._stopping.is_set():
                return
            self._deaths[index] += 1
            started = time.monotonic()
            front = await self._spawn(index)
            if self._stopping.is_set():
                front.close()
            try:
                await front.listening
            except FrontError as error:
                log.warning("front does not start", front=index, reason=str(error))
            else:
                log.info("front runs again", front=index, pid=front.pid)


async def _answers(questions: Sequence[Coroutine[Any, Any, int]]) -> list[int]:
    """Return what the fronts answer in time."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    if not tasks:
        return []
    done, late = await asyncio.wait(tasks, timeout=ANSWER_SECONDS)
    for task in late:
        task.cancel()
    return [task.result() for task in done]


def _reserve(host: str, port: int) -> socket.socket:
    """Bind the port that the fronts share, without listening, so that it is theirs.

    Raises:
        FrontError: another server has it.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        free_port(str(address[0]), port)  # sharing would be granted where another server shares the port too
        reserved = socket.socket(family, kind, protocol)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(address)
    except OSError as error:
        raise FrontError(
            f"cannot listen on {host}:{port} for gRPC ({error.strerror}): is another server running? "
            "Try another --grpc-port"
        ) from None
    return reserved
