"""Keeps all fronts in step with the core's repository."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog

from headrace.server.fronts.catalogue import describe, pack_model
from headrace.server.fronts.messages import Catalogue, ModelEntry

if TYPE_CHECKING:
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository

log = structlog.get_logger(__name__)


class Snapshot(NamedTuple):
    """The repository at one moment; ``models`` has number → (model, its bytes)."""

    number: int
    serving: bool
    started: bool
    entries: tuple[ModelEntry, ...]
    models: dict[int, tuple[Model, bytes]]


class Follower(Protocol):
    """A front, as the publisher sees it."""

    @property
    def applied(self) -> int | None:
        """Number of the last catalogue that its requests see; None while it has no requests."""

    def show(self, snapshot: Snapshot) -> None:
        """Send a catalogue."""


class Publisher:
    """Takes snapshots of the repository and shows them to the fronts.

    Args:
        repository: of the core.
        serving: whether the server takes requests.
        followers: returns the fronts that run now.
    """

    def __init__(
        self, repository: Repository, serving: Callable[[], bool], followers: Callable[[], Iterable[Follower]]
    ) -> None:
        self._repository = repository
        self._serving = serving
        self._followers = followers
        self._wanted = 0
        self._next_model = 0
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()
        self._snapshot = Snapshot(0, serving(), repository.started, (), {})

    @property
    def snapshot(self) -> Snapshot:
        """The latest snapshot, which a new front begins with."""
        return self._snapshot

    def changed(self) -> None:
        """Note that the repository, or whether the server takes requests, has changed."""
        self._wanted += 1
        self._changed.set()

    def moved(self) -> None:
        """Note that a front has applied a catalogue, or has gone."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def settled(self) -> None:
        """Wait until the new requests of all fronts see what has changed up to now."""
        wanted = self._wanted
        while self._snapshot.number < wanted or any(
            follower.applied is not None and follower.applied < wanted for follower in self._followers()
        ):
            await self._moved.wait()

    async def run(self) -> None:
        """Publish every change; several that come together go together."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._snapshot = await self._take(self._wanted)
            for follower in self._followers():
                follower.show(self._snapshot)
            self.moved()

    async def _take(self, number: int) -> Snapshot:
        """Take a snapshot; models that no front has seen are packed in a thread."""
        known = {model: (index, data) for index, (model, data) in self._snapshot.models.items()}
        models: dict[int, tuple[Model, bytes]] = {}
        numbers: dict[Model, int] = {}
        for model in self._repository.ready_models():
            found = known.get(model)
            if found is None:
                try:
                    data = await asyncio.to_thread(pack_model, model)
                except Exception:
                    log.exception("model cannot be shown to the fronts", model=model.name)
                    continue
                self._next_model += 1
                found = (self._next_model, data)
            numbers[model], models[found[0]] = found[0], (model, found[1])
        # What became ready meanwhile has no number yet; its change is published next.
        entries = describe(self._repository.entries, lambda model: numbers.get(model, 0))
        return Snapshot(number, self._serving(), self._repository.started, entries, models)


def catalogue(snapshot: Snapshot, known: Iterable[int]) -> Catalogue:
    """Return the message that shows a snapshot to a front which has the models ``known``."""
    seen = set(known)
    new = tuple([(number, data) for number, (_, data) in snapshot.models.items() if number not in seen])
    return Catalogue(snapshot.number, snapshot.serving, snapshot.started, snapshot.entries, new)
