"""Loading and unloading: one operation at a time for each name, several names at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from headrace.server.errors import HeadraceError, LoadFailedError, ModelNotFoundError
from headrace.server.repository.definition import ModelDefinition, ModelFactory
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.lifecycle import UNLOADED, Entry, Generation, VersionStatus, released
from headrace.server.repository.model import Model, State
from headrace.server.repository.override import Override, fingerprint, remove_folder, write_folder
from headrace.server.repository.preparation import prepare
from headrace.server.repository.starting import Starter

log = structlog.get_logger(__name__)

RELEASE_SECONDS: Final = 30.0
"""How long requests may still use a model that was replaced or unloaded before its workers are ended."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model read from its files: the versions to start, and what tells whether the files have changed."""

    definitions: tuple[ModelDefinition, ...]
    fingerprint: str
    scratch: Path | None


class Loading:
    """Carries out loads and unloads on entries.

    Args:
        roots: the repositories.
        factory: starts and stops models.
        machine: what instances are planned for.
        changed: called whenever a state has changed.
    """

    def __init__(
        self, roots: Sequence[Path], factory: ModelFactory, machine: Machine, changed: Callable[[], None]
    ) -> None:
        self._roots = roots
        self._starter = Starter(factory)
        self._machine = machine
        self._changed = changed
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self, entry: Entry, override: Override | None = None) -> None:
        """Load or reload; the work goes on when the caller is cancelled.

        Raises:
            LoadFailedError: with the reason; what was serving goes on serving.
            ModelNotFoundError: no repository has the model.
        """
        await asyncio.shield(self._begin(self._load(entry, override)))

    async def unload(self, entry: Entry) -> None:
        """Withdraw the model; its workers end in the background, after the requests they have."""
        await asyncio.shield(self._begin(self._unload(entry)))

    async def stop(self, entries: Sequence[Entry]) -> None:
        """Give up what is under way and end all models."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        generations = [entry.generation for entry in entries if entry.generation is not None]
        for generation in generations:
            generation.withdraw()
        await asyncio.gather(*(self._end(generation) for generation in generations))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("operation failed", reason=str(task.exception()))

    async def _load(self, entry: Entry, override: Override | None) -> None:
        async with entry.lock:
            started = time.monotonic()
            if not entry.serving:
                entry.generation, entry.whole = None, VersionStatus(State.LOADING)
                self._changed()
            current = entry.generation
            source = await self._source(entry, override)
            if current is not None and current.complete and current.fingerprint == source.fingerprint:
                await asyncio.to_thread(remove_folder, source.scratch)
                return
            if current is None:
                statuses = {item.version: VersionStatus(State.LOADING) for item in source.definitions}
                entry.generation, entry.whole = Generation(versions=statuses), None
                self._changed()
            # Nothing is awaited after this, so that a model that is given up is found in the entry.
            versions = await self._start(entry, source)
            entry.generation = Generation(source.fingerprint, source.scratch, versions)
            if current is not None:
                self._begin(self._retire(current, current.withdraw()))
            seconds = round(time.monotonic() - started, 2)
            log.info("model loaded", model=entry.name, versions=sorted(versions), seconds=seconds)
            for warning in source.definitions[0].warnings:
                log.warning("model configuration", model=entry.name, warning=warning)
            self._changed()

    async def _source(self, entry: Entry, override: Override | None) -> Source:
        """Read the model's files in a thread."""
        reading = asyncio.get_running_loop().run_in_executor(None, self._read, entry.name, override)
        try:
            return await asyncio.shield(reading)
        except HeadraceError as error:
            self._fail(entry, VersionStatus(State.UNAVAILABLE, error.message))
            raise
        except asyncio.CancelledError:
            # A thread cannot be stopped, and what it has written must not stay.
            with contextlib.suppress(HeadraceError):
                remove_folder((await reading).scratch)
            raise

    def _read(self, name: str, override: Override | None) -> Source:
        """Read the model's files; blocking."""
        scratch = write_folder(name, override.files) if override is not None and override.files else None
        try:
            folder = open_model(name, [scratch] if scratch is not None else self._roots)
            mark = fingerprint(folder, override)
            machine = self._machine
            if scratch is not None:
                # What is kept for files of a temporary folder would never be found again.
                machine = dataclasses.replace(machine, graph_cache="", weight_cache="")
            definitions = prepare(folder, machine, override.config if override is not None else None)
        except ModelNotFoundError:
            remove_folder(scratch)
            raise
        except Exception as error:
            remove_folder(scratch)
            if not isinstance(error, HeadraceError):
                log.exception("unexpected error while reading a model", model=name)
            reason = error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
            raise LoadFailedError(
                f"failed to load '{name}', failed to poll from model repository: {reason}", model=name
            ) from error
        return Source(definitions, mark, scratch)

    async def _start(self, entry: Entry, source: Source) -> dict[int, VersionStatus]:
        """Start all versions, or none.

        Raises:
            LoadFailedError: with the reason of each version that failed; the text is Triton's.
        """

        def given_up(model: Model, reason: str) -> bool:
            return self._given_up(entry, model, reason)

        try:
            built, failures = await self._starter.start(source.definitions, given_up)
        except asyncio.CancelledError:
            remove_folder(source.scratch)
            raise
        if not failures:
            return {version: VersionStatus.ready(model) for version, model in sorted(built.items())}
        await asyncio.to_thread(remove_folder, source.scratch)
        self._fail(entry, Generation(versions=_failed(source, failures)))
        text = "".join(
            f"version {version} is at UNAVAILABLE state: Internal: {reason};\n"
            for version, reason in sorted(failures.items())
        )
        raise LoadFailedError(f"load failed for model '{entry.name}': {text}", model=entry.name)

    def _fail(self, entry: Entry, outcome: VersionStatus | Generation) -> None:
        """Note a failed load: of the whole model, or of its versions. A model that serves goes on serving."""
        failed = [outcome] if isinstance(outcome, VersionStatus) else list(outcome.versions.values())
        reason = "; ".join(status.reason for status in failed)
        log.error("model not loaded", model=entry.name, reason=reason, still_serving=entry.serving)
        if not entry.serving:
            entry.generation = outcome if isinstance(outcome, Generation) else None
            entry.whole = outcome if isinstance(outcome, VersionStatus) else None
        self._changed()

    def _given_up(self, entry: Entry, model: Model, reason: str) -> bool:
        """Withdraw a model whose workers died; whether the entry has it."""
        status = next((status for status in entry.versions.values() if status.built is model), None)
        if status is None:
            return False
        log.error("model failed", model=entry.name, version=model.version, reason=reason)
        status.state, status.reason = State.UNAVAILABLE, f"Internal: {reason}"
        status.model = status.built = None
        self._begin(self._starter.dispose([model]))
        self._changed()
        return True

    async def _unload(self, entry: Entry) -> None:
        async with entry.lock:
            generation, serving = entry.generation, entry.serving
            for status in entry.statuses:
                if status.state is State.READY:
                    status.state = State.UNLOADING
                elif status.state is not State.UNLOADING:
                    status.state, status.reason = State.UNAVAILABLE, UNLOADED
            if generation is not None and serving:
                self._begin(self._retire(generation, generation.withdraw()))
                log.info("model unloading", model=entry.name)
            self._changed()

    async def _retire(self, generation: Generation, references: Sequence[weakref.ref[Model]]) -> None:
        try:
            await released(references, RELEASE_SECONDS)
        finally:
            await self._end(generation)

    async def _end(self, generation: Generation) -> None:
        """Dispose of the models that are left in a withdrawn generation."""
        statuses = [status for status in generation.versions.values() if status.built is not None]
        models = [status.built for status in statuses if status.built is not None]
        for status in statuses:
            status.built = None
        await self._starter.dispose(models)
        for status in statuses:
            status.state, status.reason = State.UNAVAILABLE, UNLOADED
        await asyncio.to_thread(remove_folder, generation.scratch)
        self._changed()


def _failed(source: Source, failures: Mapping[int, str]) -> dict[int, VersionStatus]:
    """Say how the versions of a failed load stand; those that did not fail are not served either."""
    return {
        item.version: VersionStatus(
            State.UNAVAILABLE,
            f"Internal: {failures[item.version]}"
            if item.version in failures
            else "not served because another version failed to load",
        )
        for item in source.definitions
    }
