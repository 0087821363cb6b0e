"""The repository: the models there are, and the ones that are loaded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import structlog

from headrace.server.errors import HeadraceError, ModelControlDisabledError, ServerDrainingError
from headrace.server.repository import lookup
from headrace.server.repository.definition import ModelFactory
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import has_model, model_names, open_model
from headrace.server.repository.lifecycle import Entry, IndexEntry
from headrace.server.repository.loading import Loading
from headrace.server.repository.model import Model, Task
from headrace.server.repository.names import check_model_name, parse_version
from headrace.server.repository.override import Override, parse_override

log = structlog.get_logger(__name__)

ControlMode = Literal["explicit", "none"]
ALL = "*"


def _ignore() -> None:
    """Do nothing about a change."""


class Repository:
    """Everything that is known by model name. All methods run on the event loop.

    Args:
        roots: the repositories; a model that is in two of them is unavailable.
        factory: starts and stops models.
        machine: what models are planned for.
        control_mode: ``none`` refuses :meth:`load` and :meth:`unload`.
        load_models: what :meth:`start` loads, in order; ``*`` stands for all models.
        on_change: called after every change of a model's state.
        created: when the models were there, Unix seconds; None for now.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        factory: ModelFactory,
        machine: Machine,
        *,
        control_mode: ControlMode = "explicit",
        load_models: Sequence[str] = (ALL,),
        on_change: Callable[[], None] = _ignore,
        created: int | None = None,
    ) -> None:
        self.created = int(time.time()) if created is None else created
        self._roots = list(roots)
        self._explicit = control_mode == "explicit"
        self._load_models = list(load_models)
        self._loading = Loading(self._roots, factory, machine, on_change)
        self._entries: dict[str, Entry] = {}
        self._started = False
        self._stopped = False

    async def start(self) -> None:
        """Load the models of the configuration; one that fails is noted and stops nothing."""
        found = await asyncio.to_thread(model_names, self._roots)
        names: dict[str, None] = {}
        for wanted in self._load_models:
            names |= dict.fromkeys(found if wanted == ALL else [wanted])
        entries = [self._entry(name) for name in names]
        log.info("loading models", count=len(entries), found=len(found))
        await asyncio.gather(*(self._start_one(entry, len(entries)) for entry in entries))
        self._started = True

    async def stop(self) -> None:
        """End all models; nothing can be loaded afterwards."""
        self._stopped = True
        await self._loading.stop(list(self._entries.values()))

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All names that were ever asked for, in the order of the configuration."""
        return self._entries

    @property
    def started(self) -> bool:
        """Whether the models of the configuration were loaded, or have failed to."""
        return self._started

    def follow(self, entries: Mapping[str, Entry], *, started: bool) -> None:
        """Show what another process's repository has, which loads for this one."""
        self._entries, self._started = dict(entries), started

    def get(self, name: str, version: str = "") -> Model:
        """Return a ready model: see :func:`lookup.find`."""
        return lookup.find(self._entries, name, version)

    def resolve(self, name: str, *tasks: Task) -> Model:
        """Return the model that a wire with one field for it means: see :func:`lookup.resolve`."""
        return lookup.resolve(self._entries, name, tasks)

    def statistics(self, name: str, version: str) -> list[Model]:
        """Return the models whose counters are asked for: see :func:`lookup.statistics`."""
        return lookup.statistics(self._entries, name, version)

    def ready_models(self) -> list[Model]:
        """Return all ready models, by name and version."""
        return lookup.ready(self._entries)

    def versions(self, name: str) -> list[int]:
        """Return the ready versions of a model, ascending."""
        entry = self._entries.get(name)
        return (
            [] if entry is None else [n for n, status in entry.versions.items() if status.model is not None]
        )

    def is_ready(self, name: str, version: str) -> bool:
        """Whether a version (any, when it is "") is ready; false for whatever does not exist.

        Raises:
            InvalidArgumentError: the version is no integer, or negative.
        """
        number = parse_version(version)
        ready = self.versions(name)
        return bool(ready) if number is None else number in ready

    def all_ready(self) -> bool:
        """Whether everything that was to be loaded is served.

        Models that were unloaded, and loads of new models after the start, do not count against the server.
        """
        statuses = (status for entry in self._entries.values() for status in entry.statuses)
        return self._started and not self._stopped and not any(status.failed for status in statuses)

    def states(self) -> dict[str, bool]:
        """Return name → whether a version is ready, of every model that was ever asked for."""
        return {name: entry.serving for name, entry in self._entries.items()}

    def index(self, *, ready: bool) -> list[IndexEntry]:
        """List every model folder and every loaded model by name; only READY versions with ``ready``.

        Reads the names of the folders in the repositories (not the folders), for new ones can be loaded.
        """
        names = {*self._entries, *([] if ready else model_names(self._roots))}
        lines = [line for name in sorted(names) for line in self._index_of(name)]
        return [line for line in lines if line.state == "READY"] if ready else lines

    async def load(
        self, name: str, *, config: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Load a model, or load it anew if its files or the overrides have changed.

        The new versions are started before the old ones are let go, so that no request fails. After a failure
        the old ones go on serving.

        Args:
            name: of the model's folder.
            config: JSON of ModelConfig, in place of config.pbtxt.
            files: ``<version>/<path>`` → content, in place of the model's folder; needs ``config``.

        Raises:
            ModelControlDisabledError: the mode does not allow it.
            InvalidArgumentError: the name or an override is wrong.
            ModelNotFoundError: there is no such folder.
            LoadFailedError: the model cannot be served; the text has the reason.
            ServerDrainingError: the server is stopping.
        """
        self._check_control()
        check_model_name(name)
        override = await asyncio.to_thread(self._checked_override, name, config, files)
        await self._loading.load(self._entry(name), override)

    async def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """Stop serving a model. Its running requests finish, then its workers end and give their memory back.

        Returns as soon as no new request gets the model. Names that are not loaded are no error.

        Args:
            name: of the model.
            unload_dependents: unload what depends on it as well; nothing does without ensembles.

        Raises:
            ModelControlDisabledError: the mode does not allow it.
            ServerDrainingError: the server is stopping.
        """
        del unload_dependents
        self._check_control()
        entry = self._entries.get(name)
        if entry is not None:
            await self._loading.unload(entry)

    def _checked_override(
        self, name: str, config: str | None, files: Mapping[str, bytes] | None
    ) -> Override | None:
        """Check what a load request brings along, and that there is something to load; blocking."""
        override = parse_override(name, config, files)
        if name not in self._entries and not has_model(name, self._roots) and not files:
            open_model(name, self._roots)  # refuses, and the name leaves no trace
        return override

    def _check_control(self) -> None:
        if not self._explicit:
            raise ModelControlDisabledError(
                "explicit model load / unload is not allowed if polling is enabled"
            )
        if self._stopped:
            raise ServerDrainingError("the server is stopping: models are neither loaded nor unloaded")

    def _entry(self, name: str) -> Entry:
        return self._entries.setdefault(name, Entry(name))

    async def _start_one(self, entry: Entry, total: int) -> None:
        with contextlib.suppress(HeadraceError):  # noted in the entry and in the log
            await self._loading.load(entry)
        done = sum(not entry.loading for entry in self._entries.values())
        log.info("models loaded", done=done, of=total)

    def _index_of(self, name: str) -> list[IndexEntry]:
        entry = self._entries.get(name)
        return list(entry.index()) if entry is not None else [IndexEntry(name)]
