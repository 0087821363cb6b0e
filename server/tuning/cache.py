"""Measurements that are kept, one file for each model, machine and version."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.server.tuning.choice import Measurement
from headrace.server.tuning.fingerprint import digest

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition

_DIGITS: Final = 16


class Record(msgspec.Struct, frozen=True):
    """What is kept.

    Attributes:
        model: name.
        version: of the model.
        chosen: what to serve with.
        measured: all candidates, the one before tuning first.
        complete: no candidate was left out.
        disturbance: share of the processors that other programs used meanwhile.
        facts: of the machine, for people.
    """

    model: str
    version: int
    chosen: Measurement
    measured: tuple[Measurement, ...]
    complete: bool
    disturbance: float
    facts: dict[str, str]


class TuningCache:
    """Reads and writes records; blocking.

    Args:
        folder: made when the first record is written.
        facts: of this machine; records of another one are not found.
    """

    def __init__(self, folder: Path, facts: dict[str, str]) -> None:
        self._folder = folder
        self.facts = facts

    def path(self, definition: ModelDefinition) -> Path:
        """Return where the record of a model is; reads the model's files."""
        key = digest(definition, self.facts)[:_DIGITS]
        return self._folder / f"{definition.name}-{definition.version}-{key}.json"

    def read(self, definition: ModelDefinition) -> Record | None:
        """Return what was measured; None if nothing was, or the file does not say."""
        if not any(self._folder.glob(f"{glob.escape(definition.name)}-*.json")):
            return None  # without reading a model that may be large
        try:
            return msgspec.json.decode(self.path(definition).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, definition: ModelDefinition, record: Record) -> Path:
        """Keep a record, whole or not at all.

        Raises:
            OSError: the folder cannot be written to.
        """
        path = self.path(definition)
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        return path
