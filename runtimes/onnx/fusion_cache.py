"""The folder that keeps fused graphs: one entry for each state of a model file.

An entry is ``<source>-<key>.json``, which says what came of it, and, if the graph was fused,
``<source>-<key>.onnx`` and, where texts can be packed, ``<source>-<key>.packed.onnx``, and that with our own
operators, where these run, ``<source>-<key>.operators.onnx``. ``source`` is a digest of the model file's path
and of whether operators run, ``key`` of everything that the fused graph depends on. ``<source>.lock`` is held
by the process that makes an entry.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort

from headrace.runtimes.onnx.cache_files import digest, files_beside, holds, locked, remove_abandoned, state

REVISION: Final = 3
"""Of how graphs are fused: a higher one has all of them made again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of fusing a graph.

    Attributes:
        size: bytes of the fused graph; 0 when there is none.
        packed: bytes of the one that packs texts as well; 0 when there is none.
        operators: bytes of that with our own operators; 0 when there is none.
        text: what was fused, or why nothing was.
        model: the file, for people.
        passing: whether nothing was fused for a reason that may have passed another time.
    """

    size: int
    packed: int
    operators: int
    text: str
    model: str
    passing: bool = False


class Entry:
    """Where the fused graph of a model file is kept.

    Args:
        cache: the folder; it need not exist.
        model: the model file.
        beside: other files and numbers that the fused graph depends on.
        operators: whether our own run here.

    Raises:
        OSError: a file cannot be looked at.
    """

    def __init__(
        self, cache: Path, model: Path, beside: Sequence[Path | int] = (), *, operators: bool = False
    ) -> None:
        self._cache = cache
        self._model = model.resolve()
        # machines that share the folder, and have them or not, replace only what is theirs
        self._source = digest(str(self._model), *["operators"] * operators)
        found: list[object] = [REVISION, ort.__version__, *map(state, files_beside(self._model))]
        found += [state(item) if isinstance(item, Path) else item for item in beside]
        stem = f"{self._source}-{digest(*found)}"
        self.graph = cache / f"{stem}.onnx"
        self.packed = cache / f"{stem}.packed.onnx"
        self.operators = cache / f"{stem}.operators.onnx"
        self._record = cache / f"{stem}.json"

    def read(self) -> Outcome | None:
        """Return what came of it; None when it is to be tried, or a graph is not as it was written."""
        try:
            found = Outcome(**json.loads(self._record.read_bytes()))
            sizes = (found.size, found.packed, found.operators)
            for file, size in zip(self._forms, sizes, strict=True):
                if size and file.stat().st_size != size:
                    return None
            return found if holds(self._record, passing=found.passing) else None
        except (OSError, ValueError, TypeError):
            return None

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Wait until no other process makes an entry for this file; makes the folder.

        Raises:
            OSError: the folder cannot be written to.
        """
        return locked(self._cache / f"{self._source}.lock")

    def temporary(self) -> Path:
        """Return the file that a graph is written to before :meth:`keep`."""
        return self._cache / f"{self._source}-{os.getpid()}.making"

    def keep(self, text: str, graph: Path | None, *, passing: bool = False) -> None:
        """Write down what came of it, and remove what older states of the file have left; call when locked.

        What was made of models that are gone goes as well, a while after they were loaded last.

        Args:
            text: what was fused, or why nothing was.
            graph: the temporary file, which is taken over with the other forms beside it.
            passing: whether it is to be tried again some time.

        Raises:
            OSError: the folder cannot be written to.
        """
        remove_abandoned(self._cache, "*.json")
        made = {} if graph is None else dict(zip(forms_of(graph), self._forms, strict=True))
        for old in self._cache.glob(f"{self._source}-*"):
            if old not in made:
                old.unlink(missing_ok=True)
        sizes = dict.fromkeys(self._forms, 0)
        for file, target in made.items():
            if file.exists():
                sizes[target] = file.stat().st_size
                file.replace(target)
        size, packed, operators = sizes.values()
        outcome = Outcome(size, packed, operators, text, str(self._model), passing)
        written = self._record.with_suffix(".writing")
        written.write_text(json.dumps(asdict(outcome)))
        written.replace(self._record)

    def discard(self) -> None:
        """Forget the entry, so that the next load makes it again."""
        with contextlib.suppress(OSError):
            self._record.unlink(missing_ok=True)
            for file in self._forms:
                file.unlink(missing_ok=True)

    @property
    def _forms(self) -> tuple[Path, Path, Path]:
        return self.graph, self.packed, self.operators


def forms_of(graph: Path) -> tuple[Path, Path, Path]:
    """Return where the forms of a graph that is being made are written: fused, packed, with our operators."""
    return graph, graph.with_name(f"{graph.name}-packed"), graph.with_name(f"{graph.name}-operators")
