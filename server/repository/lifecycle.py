"""The life of one model: what is loaded under its name now, and how its versions stand."""

from __future__ import annotations

import asyncio
import copy
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from headrace.server.repository.model import Model, State

UNLOADED: Final = "unloaded"
"""Reason of a version that was unloaded on request, as Triton words it."""

_LOOK_SECONDS: Final = 0.02
IDLE_SECONDS: Final = 2.0
"""A model without a request in its queue or workers for this long is not used any more, whoever still holds
it: a request takes far less from choosing its model to queueing, and a failed one may leave a reference in
garbage."""


class IndexEntry(NamedTuple):
    """A line of the repository's index; all but the name are "" for a model that was never loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(slots=True)
class VersionStatus:
    """How one version stands.

    Attributes:
        state: READY exactly when ``model`` is set.
        reason: why it is UNAVAILABLE.
        model: what callers get: a copy of ``built`` that shares everything with it. It is let go when the
            version is withdrawn, so that its death tells that no request has it any more.
        built: what the factory built and will dispose of.
    """

    state: State
    reason: str = ""
    model: Model | None = None
    built: Model | None = None

    @classmethod
    def ready(cls, built: Model) -> VersionStatus:
        """Return the status of a model that has just been built."""
        return cls(State.READY, model=copy.copy(built), built=built)

    @property
    def failed(self) -> bool:
        """Whether the version ought to be served and is not; one that was unloaded has not failed."""
        return self.state is State.UNAVAILABLE and self.reason != UNLOADED


@dataclass(slots=True)
class Generation:
    """The versions of one load; ``scratch`` is the private folder of its file overrides."""

    fingerprint: str = ""
    scratch: Path | None = None
    versions: dict[int, VersionStatus] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every version is ready."""
        return bool(self.versions) and all(status.state is State.READY for status in self.versions.values())

    def withdraw(self) -> list[weakref.ref[Model]]:
        """Hand the models out no more; the references die with the last request that has one."""
        references: list[weakref.ref[Model]] = []
        for status in self.versions.values():
            if status.model is not None:
                references.append(weakref.ref(status.model))
                status.model = None
        return references


@dataclass(slots=True)
class Entry:
    """One name in the repository.

    Attributes:
        name: of the model.
        lock: held by whatever changes the entry.
        generation: what is loaded, or was; None before the first load that got as far as versions.
        whole: how the model stands as long as its versions are not known; None otherwise.
    """

    name: str
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    generation: Generation | None = None
    whole: VersionStatus | None = None

    @property
    def versions(self) -> dict[int, VersionStatus]:
        """The versions of the generation, ascending."""
        return self.generation.versions if self.generation is not None else {}

    @property
    def statuses(self) -> Iterator[VersionStatus]:
        """Everything that has a state."""
        yield from self.versions.values()
        if self.whole is not None:
            yield self.whole

    @property
    def newest(self) -> Model | None:
        """The newest ready version."""
        ready = [status.model for status in self.versions.values() if status.model is not None]
        return ready[-1] if ready else None

    @property
    def serving(self) -> bool:
        """Whether any version is ready."""
        return self.newest is not None

    @property
    def loading(self) -> bool:
        """Whether a version is on its way for the first time."""
        return any(status.state is State.LOADING for status in self.statuses)

    def index(self) -> Iterator[IndexEntry]:
        """Yield the lines of the index."""
        if self.whole is not None:
            yield IndexEntry(self.name, "", self.whole.state, self.whole.reason)
        for number, status in self.versions.items():
            yield IndexEntry(self.name, str(number), status.state, status.reason)


async def released(references: Sequence[weakref.ref[Model]], seconds: float) -> None:
    """Wait until no request uses any of the models, at most ``seconds``."""
    loop = asyncio.get_running_loop()
    started = used = loop.time()
    # The end of an object is no event that could be awaited.
    while alive := [model for reference in references if (model := reference()) is not None]:
        now = loop.time()
        if any(model.active for model in alive):
            used = now
        if now - used >= IDLE_SECONDS or now - started >= seconds:
            return
        del alive  # or this wait would be what holds the models
        await asyncio.sleep(_LOOK_SECONDS)
