"""What the fronts know of the repository: states by name, and models as bytes."""

from __future__ import annotations

import copyreg
import dataclasses
import io
import pickle
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.server.fronts.messages import ModelEntry, VersionEntry
from headrace.server.fronts.remote import RemoteBatcher, Requests
from headrace.server.fronts.remote_generator import RemoteGenerator
from headrace.server.repository.lifecycle import Entry, Generation, VersionStatus
from headrace.server.repository.model import Model, State
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.statistics import ModelStatistics

if TYPE_CHECKING:
    from headrace.server.scheduling.policy import BatchingPolicy


class _Packed(NamedTuple):
    """A model without what runs it, and the policy of its batcher."""

    model: Model
    policy: BatchingPolicy | None


def _frozen(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


def _reduce(mapping: MappingProxyType[Any, Any]) -> tuple[Callable[..., Any], tuple[dict[Any, Any]]]:
    return _frozen, (dict(mapping),)


def pack_model(model: Model) -> bytes:
    """Return a loaded model as bytes; slow where its tokeniser is large."""
    policy = model.batcher.policy if model.batcher is not None else None
    bare = dataclasses.replace(model, batcher=None, generator=None, statistics=ModelStatistics(), plans={})
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    reducers: dict[type, Any] = {**copyreg.dispatch_table, MappingProxyType: _reduce}  # unknown to pickle
    pickler.dispatch_table = reducers
    pickler.dump(_Packed(bare, policy))
    return buffer.getvalue()


def unpack_model(number: int, data: bytes, requests: Requests) -> Model:
    """Return the model that :func:`pack_model` was given, run by way of ``requests``; slow as that.

    Args:
        number: by which the core knows it.
        data: its bytes.
        requests: the way to the core.
    """
    packed: _Packed = pickle.loads(data)  # noqa: S301 - from the core of this server, over a socket it made
    model = packed.model
    if packed.policy is not None:
        model.batcher = RemoteBatcher(number, packed.policy, requests)
    if model.generation is not None:
        # Blocks of tokens are the engines'; 0 of them is nothing to add.
        counted = GenerationStatistics(model.statistics, model.generation.max_tokens, block_tokens=0)
        model.generator = RemoteGenerator(number, counted, requests)
    return model


def counters(model: Model) -> ModelStatistics | GenerationStatistics:
    """Return all counters of a model."""
    return model.generator.statistics if model.generator is not None else model.statistics


def describe(entries: Mapping[str, Entry], number: Callable[[Model], int]) -> tuple[ModelEntry, ...]:
    """Write the states of all names; ``number`` tells by which a model is known."""
    return tuple([_describe(entry, number) for entry in entries.values()])


def read(entries: tuple[ModelEntry, ...], models: Mapping[int, Model]) -> dict[str, Entry]:
    """Return what :func:`describe` was given, with these models; one that is missing is not ready."""
    return {entry.name: _read(entry, models) for entry in entries}


def _describe(entry: Entry, number: Callable[[Model], int]) -> ModelEntry:
    versions = tuple(
        [
            VersionEntry(
                version, status.state, status.reason, 0 if (model := status.model) is None else number(model)
            )
            for version, status in entry.versions.items()
        ]
    )
    whole = entry.whole
    return ModelEntry(entry.name, versions, None if whole is None else (whole.state, whole.reason))


def _read(entry: ModelEntry, models: Mapping[int, Model]) -> Entry:
    read = Entry(entry.name)
    if entry.versions:
        versions = {
            version.version: VersionStatus(State(version.state), version.reason, models.get(version.model))
            for version in entry.versions
        }
        read.generation = Generation(versions=versions)
    if entry.whole is not None:
        state, reason = entry.whole
        read.whole = VersionStatus(State(state), reason)
    return read
