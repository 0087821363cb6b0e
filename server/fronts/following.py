"""A front's copy of the core's repository."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from headrace.server.fronts.catalogue import counters, read, unpack_model
from headrace.server.repository.lifecycle import released
from headrace.server.repository.loading import RELEASE_SECONDS

if TYPE_CHECKING:
    from headrace.server.fronts.messages import Catalogue
    from headrace.server.fronts.remote import Requests
    from headrace.server.repository.model import Model
    from headrace.server.repository.registry import Repository
    from headrace.server.telemetry.generation import GenerationStatistics
    from headrace.server.telemetry.statistics import ModelStatistics

log = structlog.get_logger(__name__)


class Following:
    """Takes catalogues in, one after the other.

    Args:
        repository: what services look models up in.
        requests: the way to the core.
        changed: awaited when new requests see a catalogue.
        released: called with the number of a model that was withdrawn and that no request uses any more.

    Attributes:
        counters: by number, those of all models that requests may still use.
        serving: whether the server takes requests.
    """

    def __init__(
        self,
        repository: Repository,
        requests: Requests,
        changed: Callable[[Catalogue], Awaitable[None]],
        released: Callable[[int], None],
    ) -> None:
        self._repository = repository
        self._requests = requests
        self._changed = changed
        self._released = released
        self._models: dict[int, Model] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self.counters: dict[int, ModelStatistics | GenerationStatistics] = {}
        self.serving = False

    async def apply(self, catalogue: Catalogue) -> None:
        """Build the models that are new, show the catalogue, and let go of models that it has not."""
        for number, data in catalogue.models:
            try:
                model = await asyncio.to_thread(unpack_model, number, data, self._requests)
            except Exception:  # it is not ready here, and everything else is
                log.exception("model cannot be read", model=number)
                continue
            self._models[number] = model
            self.counters[number] = counters(model)
        self._repository.follow(read(catalogue.entries, self._models), started=catalogue.started)
        self.serving = catalogue.serving
        await self._changed(catalogue)
        named = {version.model for entry in catalogue.entries for version in entry.versions}
        for number in self._models.keys() - named:
            # No name holds the model here, or the wait for its end would never end.
            reference = weakref.ref(self._models.pop(number))
            release = asyncio.get_running_loop().create_task(self._release(number, reference))
            self._releases.add(release)
            release.add_done_callback(self._releases.discard)

    async def _release(self, number: int, reference: weakref.ref[Model]) -> None:
        await released([reference], RELEASE_SECONDS)
        self._released(number)
        self.counters.pop(number, None)
