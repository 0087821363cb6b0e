"""Starting the versions of a model together, and ending models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from headrace.server.errors import HeadraceError
from headrace.server.repository.definition import ModelDefinition, ModelFactory
from headrace.server.repository.model import Model

log = structlog.get_logger(__name__)

CONCURRENT_LOADS = 4
"""Model versions that are started at once, whatever their names."""


class Starter:
    """Uses the factory for several models at once.

    Args:
        factory: starts and stops single models.
    """

    def __init__(self, factory: ModelFactory) -> None:
        self._factory = factory
        self._slots = asyncio.Semaphore(CONCURRENT_LOADS)

    async def start(
        self, definitions: Sequence[ModelDefinition], given_up: Callable[[Model, str], bool]
    ) -> tuple[dict[int, Model], dict[int, str]]:
        """Start all versions or none; when it is cancelled, none.

        Args:
            definitions: of one model.
            given_up: called with the reason when the workers of a started model are given up later; it
                returns whether it knows the model.

        Returns:
            Version → model, and version → why it failed; one of them is empty.
        """
        built: dict[int, Model] = {}
        failures: dict[int, str] = {}

        def failed(model: Model, reason: str) -> None:
            if not given_up(model, reason):
                failures[model.version] = reason

        async def start(definition: ModelDefinition) -> None:
            try:
                async with self._slots:
                    built[definition.version] = await self._factory.build(definition, failed)
            except HeadraceError as error:
                failures[definition.version] = error.message
            except Exception as error:
                log.exception("unexpected error while starting a model", model=definition.name)
                failures[definition.version] = f"{type(error).__name__}: {error}"

        try:
            async with asyncio.TaskGroup() as group:
                for definition in definitions:
                    group.create_task(start(definition))
        except BaseException:
            await self.dispose(list(built.values()))
            raise
        if not failures:
            return built, {}
        await self.dispose(list(built.values()))
        return {}, failures

    async def dispose(self, models: Sequence[Model]) -> None:
        """End models; what goes wrong is logged."""
        endings = (self._factory.dispose(model) for model in models)
        results = await asyncio.gather(*endings, return_exceptions=True)
        for model, result in zip(models, results, strict=True):
            if isinstance(result, Exception):
                log.error("model not ended cleanly", model=model.name, reason=str(result))
