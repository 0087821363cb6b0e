"""A worker process that is started again when it dies; what instances of every kind have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog

from headrace.server.errors import LoadFailedError, WorkerCrashedError
from headrace.server.workers.process import WorkerProcess

if TYPE_CHECKING:
    import msgspec

    from headrace.runtimes import wire
    from headrace.runtimes.base import InstanceSpec

log = structlog.get_logger(__name__)

ReplyT = TypeVar("ReplyT")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a dead worker is started again.

    Attributes:
        initial_seconds: wait before the first restart; doubles with each further one.
        max_seconds: longest wait between restarts.
        attempts: restarts in a row that may fail before the instance is given up.
        healthy_seconds: a worker that lived this long counts as recovered.
    """

    initial_seconds: float = 0.1
    max_seconds: float = 10.0
    attempts: int = 5
    healthy_seconds: float = 30.0


class SupervisedWorker(Generic[ReplyT]):
    """Keeps one worker process running.

    Args:
        spec: what the worker loads.
        restarts: when a dead worker is started again.
        replies: decodes what the worker sends, its answer to the load included.
        on_reply: called with every message after the worker has loaded.
        on_ready: called whenever the worker can take work.
        on_death: called when it has ended, whether or not it is started again; returns how many requests
            were with it.
        on_restart: called at every restart.
        on_failed: called with the reason when the worker is given up.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        restarts: RestartPolicy,
        replies: msgspec.msgpack.Decoder[Any],
        *,
        on_reply: Callable[[ReplyT], None],
        on_ready: Callable[[], None],
        on_death: Callable[[], int],
        on_restart: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.ready = False
        self.process: WorkerProcess[ReplyT] | None = None
        self._restarts = restarts
        self._replies = replies
        self._on_reply = on_reply
        self._on_ready = on_ready
        self._on_death = on_death
        self._on_restart = on_restart
        self._on_failed = on_failed
        self._stopping = False
        self._restart: asyncio.Task[None] | None = None
        self._started = 0.0
        self._failures = 0

    @property
    def pid(self) -> int:
        """Process id of the worker, 0 when there is none."""
        return self.process.pid if self.process else 0

    async def start(self) -> wire.Loaded:
        """Spawn the worker and load the model.

        Raises:
            LoadFailedError: with the worker's reason.
        """
        self.process = WorkerProcess(self._replies, self._on_reply, self._exited)
        loaded = await self.process.start(self.spec)
        self.ready = True
        self._started = time.monotonic()
        self._on_ready()
        return loaded

    async def stop(self) -> None:
        """End the worker after what it has in hand, and do not restart it."""
        self._stopping = True
        self.ready = False
        if self._restart is not None:
            self._restart.cancel()
        if self.process is not None:
            await self.process.stop()

    def worked(self) -> None:
        """Note that the worker did what it is for: its deaths are not counted as a row any more."""
        self._failures = 0

    def crashed(self) -> WorkerCrashedError:
        """Return what callers are told whose requests died with the worker."""
        return WorkerCrashedError(
            f"the worker process of model '{self.spec.model}' ended while it ran this request; "
            "it is being restarted, the request may be sent again",
            model=self.spec.model,
        )

    def _exited(self, reason: str) -> None:
        was_ready, self.ready = self.ready, False
        in_flight = self._on_death()
        report = log.debug if self._stopping else log.error
        report("worker ended", model=self.spec.model, pid=self.pid, reason=reason, in_flight=in_flight)
        if was_ready and not self._stopping:
            if time.monotonic() - self._started > self._restarts.healthy_seconds:
                self._failures = 0
            self._restart = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        while True:
            policy = self._restarts
            await asyncio.sleep(min(policy.max_seconds, policy.initial_seconds * 2**self._failures))
            self._failures += 1
            if self._failures > policy.attempts:
                self._on_failed(f"the worker process died {self._failures} times in a row")
                return
            self._on_restart()
            try:
                await self.start()
            except LoadFailedError as error:
                log.warning("worker restart failed", model=self.spec.model, reason=error.message)
            except Exception:  # whatever the machine is short of, it may have it again later
                log.exception("worker restart failed", model=self.spec.model)
            else:
                log.info("worker restarted", model=self.spec.model, pid=self.pid)
                return
