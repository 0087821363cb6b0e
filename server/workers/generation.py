"""One instance of a generation engine: a worker process that takes requests at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from headrace.runtimes import wire
from headrace.runtimes.generation.messages import Abort, Add, EngineStats, Outputs
from headrace.server.workers.supervised import RestartPolicy, SupervisedWorker

if TYPE_CHECKING:
    from headrace.runtimes.base import InstanceSpec
    from headrace.runtimes.generation.base import GenerationSpec
    from headrace.server.errors import WorkerCrashedError

_REPLIES: Final = msgspec.msgpack.Decoder(wire.Loaded | wire.LoadFailed | Outputs)
_TOTALS: Final = (
    "preemptions",
    "prefix_queries",
    "prefix_hits",
    "prompt_tokens",
    "generated_tokens",
    "steps",
)
"""Fields of the statistics that a worker counts from its start."""


class EngineSink(Protocol):
    """Where outcomes go: the generator."""

    def outputs(self, engine: GenerationInstance, outputs: Outputs) -> None:
        """Take what happened in a step."""

    def ready(self) -> None:
        """Note that an engine takes requests (again)."""

    def died(self, engine: GenerationInstance) -> int:
        """Note that the engine has forgotten its requests; return how many there were."""


class GenerationInstance:
    """Runs an engine in a worker process and restarts the process when it dies.

    Args:
        spec: what the worker loads; ``generation`` is set.
        restarts: when a dead worker is started again.
        on_restart: called at every restart.
        on_failed: called with the reason when the instance is given up.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        restarts: RestartPolicy,
        *,
        on_restart: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        if spec.generation is None:
            msg = f"instance of model '{spec.model}' has no generation settings"
            raise ValueError(msg)
        self.spec = spec
        self._limits = spec.generation
        self.slots = self._limits.max_sequences
        self._sink: EngineSink | None = None
        self._latest = _idle(self._limits)
        self._earlier = dict.fromkeys(_TOTALS, 0)  # of workers that have died
        self._worker: SupervisedWorker[Outputs] = SupervisedWorker(
            spec,
            restarts,
            _REPLIES,
            on_reply=self._reply,
            on_ready=self._ready,
            on_death=self._died,
            on_restart=on_restart,
            on_failed=on_failed,
        )

    @property
    def ready(self) -> bool:
        """Whether the worker takes requests."""
        return self._worker.ready

    @property
    def pid(self) -> int:
        """Process id of the worker, 0 when there is none."""
        return self._worker.pid

    @property
    def stats(self) -> EngineStats:
        """The engine's latest statistics, with totals over all its workers."""
        totals = {name: getattr(self._latest, name) + count for name, count in self._earlier.items()}
        return msgspec.structs.replace(self._latest, **totals)

    async def start(self) -> wire.Loaded:
        """Spawn the worker and load the model.

        Raises:
            LoadFailedError: with the worker's reason.
        """
        return await self._worker.start()

    async def stop(self) -> None:
        """End the worker and do not restart it; what it still runs is lost."""
        await self._worker.stop()

    def attach(self, sink: EngineSink) -> None:
        """Let ``sink`` feed this instance."""
        self._sink = sink

    # For the generator.

    def add(self, message: Add) -> None:
        """Send a request to the engine, which must be ready."""
        if self._worker.process is None or not self._worker.ready:
            msg = "a request was sent to an engine without a worker"
            raise RuntimeError(msg)
        self._worker.process.send(message)

    def abort(self, request: int, sample: int = -1) -> None:
        """Tell the engine to forget a request, or a sample of it; one that it does not know is no error."""
        if self._worker.process is not None and self._worker.ready:
            self._worker.process.send(Abort(request, sample))

    def crashed(self) -> WorkerCrashedError:
        """Return what callers are told whose requests died with the worker."""
        return self._worker.crashed()

    # Callbacks of the worker.

    def _reply(self, outputs: Outputs) -> None:
        before, self._latest = self._latest, outputs.stats
        if outputs.stats.generated_tokens > before.generated_tokens:
            self._worker.worked()
        if self._sink is not None:
            self._sink.outputs(self, outputs)

    def _ready(self) -> None:
        if self._sink is not None:
            self._sink.ready()

    def _died(self) -> int:
        for name in _TOTALS:
            self._earlier[name] += getattr(self._latest, name)
        self._latest = _idle(self._limits)
        return self._sink.died(self) if self._sink is not None else 0


def _idle(limits: GenerationSpec) -> EngineStats:
    """Return the statistics of an engine that has not done anything yet."""
    blocks = limits.kv_tokens // limits.block_tokens
    return EngineStats(free_slots=limits.max_sequences, free_blocks=blocks, total_blocks=blocks)
