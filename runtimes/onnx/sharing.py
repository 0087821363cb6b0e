"""Graphs whose weights all sessions of a machine have in memory once.

ONNX Runtime optimises a graph and repacks its weights for each session, in memory of that session's own. So
that is done once, in a process of its own, and kept: the graph, and the weights as the kernels of this
processor want them, in a file that sessions map. Instances, the sessions of lone batches and restarted
workers then read the same memory, and find in the processor's cache what another has just read. Whatever
goes wrong, a session has weights of its own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import onnxruntime as ort

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.onnx import child
from headrace.runtimes.onnx.cache_files import digest, files_beside, holds, locked, remove_abandoned, state
from headrace.runtimes.onnx.options import CPU, THREADS, Provider, optimises
from headrace.runtimes.onnx.preparing import GRAPH, WEIGHTS

SMALLEST: Final = 4 << 20
"""Bytes of a model: there is little to share of smaller ones."""

LARGEST: Final = 2 << 30
"""Bytes of a model: a larger one takes long to prepare."""

REVISION: Final = 2
"""Of how graphs are prepared: a higher one has all of them made again."""

_CHILD: Final = "headrace.runtimes.onnx.preparing"
_ROOM: Final = 3
"""A prepared model takes up to so many times its size on the disk."""

_RECORD: Final = "outcome.json"
_CPU_INFO: Final = Path("/proc/cpuinfo")


class Outcome(msgspec.Struct, frozen=True):
    """What came of preparing a graph: why nothing was shared, if so, and the bytes of each file, else 0.

    ``passing`` is true where that may not be so another time.
    """

    text: str
    model: str
    graph: int = 0
    weights: int = 0
    passing: bool = False


class SharedGraph:
    """Where the prepared form of a graph is kept: a folder for each state of it.

    Args:
        cache: the folder of all of them; it need not exist.
        model: the model file.
        graph: ``model`` itself, or a form of it that was made (``fusion``).
        options: of its sessions.
        mixed: whether it is the form of a decoder that decodes beside prompts (``mixed_graph``).

    Raises:
        OSError: a file cannot be looked at.
    """

    def __init__(
        self, cache: Path, model: Path, graph: Path, options: Mapping[str, str], *, mixed: bool = False
    ) -> None:
        self._cache = cache
        self._graph = graph
        self._mixed = mixed
        self._model = str(model.resolve())
        self._options = {key: value for key, value in options.items() if key != THREADS}
        form = "mixed" if mixed else "" if graph == model else "".join(graph.suffixes)
        # machines that share the folder may have different processors, and replace only what is theirs
        self._source = digest(self._model, form, _processor())
        files = files_beside(graph) if graph == model else [graph]
        states = [state(file) for file in files]
        self.size = sum(size for _, size, _ in states)
        key = digest(REVISION, ort.__version__, sorted(self._options.items()), states)
        self._folder = cache / f"{self._source}-{key}"

    @property
    def file(self) -> Path:
        """The graph to load, with its optimisations switched off: it has them."""
        return self._folder / GRAPH

    def read(self) -> Outcome | None:
        """Return what came of it; None when it is to be tried, or a file is not as it was written."""
        record = self._folder / _RECORD
        try:
            found = msgspec.json.decode(record.read_bytes(), type=Outcome)
            for name, size in ((GRAPH, found.graph), (WEIGHTS, found.weights)):
                if size and (self._folder / name).stat().st_size != size:
                    return None
            return found if holds(record, passing=found.passing) else None
        except (OSError, msgspec.DecodeError):
            return None

    def make(self) -> Outcome:
        """Return what came of it, once it was tried; of several processes one tries and the others wait.

        Raises:
            OSError: the folder cannot be written to, or the disk is nearly full.
        """
        with locked(self._cache / f"{self._source}.lock"):
            if (outcome := self.read()) is not None:
                return outcome
            remove_abandoned(self._cache, f"*/{_RECORD}")
            if shutil.disk_usage(self._cache).free < self.size * _ROOM:
                raise OSError(f"there are less than {self.size * _ROOM} bytes left in {self._cache}")
            making = self._cache / f"{self._source}-{os.getpid()}.making"
            for old in self._cache.glob(f"{self._source}-*"):
                shutil.rmtree(old, ignore_errors=True)
            making.mkdir()
            arguments = [str(self._graph), str(making), "--options", json.dumps(self._options)]
            end = child.run(_CHILD, [*arguments, "--mixed"] if self._mixed else arguments)
            graph, weights = ((making / name).stat().st_size if end.done else 0 for name in (GRAPH, WEIGHTS))
            if not end.done:
                shutil.rmtree(making)
                making.mkdir()
            outcome = Outcome(end.text, self._model, graph, weights, end.passing)
            (making / _RECORD).write_bytes(msgspec.json.encode(outcome))
            making.replace(self._folder)
        if not end.done:
            _say(self._model, end.text, mixed=self._mixed)
        return outcome

    def discard(self) -> None:
        """Forget it, so that the next load makes it again; sessions that have it mapped keep it."""
        shutil.rmtree(self._folder, ignore_errors=True)


def wants_sharing(instance: InstanceSpec, chosen: Sequence[Provider]) -> bool:
    """Whether an instance runs on the CPU, with optimisation and sharing not switched off."""
    return bool(instance.weight_cache) and list(chosen) == [CPU] and optimises(instance.options)


def shared_graph(
    cache: Path, model: Path, graph: Path, options: Mapping[str, str], *, mixed: bool = False
) -> SharedGraph | None:
    """Return the prepared form of a graph, made now if it was never tried; None to load it as it is.

    Args:
        cache: folder that keeps prepared graphs.
        model: the model file.
        graph: the form of it that is loaded.
        options: of the session.
        mixed: whether to prepare the form that decodes beside prompts; it is made of small graphs too.
    """
    try:
        shared = SharedGraph(cache, model, graph, options, mixed=mixed)
        if not (0 if mixed else SMALLEST) <= shared.size <= LARGEST:
            return None
        outcome = shared.read() or shared.make()
    except OSError as error:
        _say(str(model), str(error), mixed=mixed)
        return None
    return shared if outcome.graph else None


def _processor() -> str:
    """Return what decides which kernels ONNX Runtime uses: architecture, model and instruction sets."""
    found = {"architecture": platform.machine()}
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().split("\n\n", 1)[0].splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("vendor_id", "cpu family", "model", "flags", "Features"):
                found[key.strip()] = value.strip()
    return json.dumps(found)


def _say(model: str, text: str, *, mixed: bool) -> None:
    what = "prompts are computed apart from decodes" if mixed else "instances do not share weights"
    sys.stderr.write(f"{model}: {what}: {text}\n")
