"""The ONNX runtime: a session for batches under load, and one for batches that run alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
from numpy.typing import NDArray

from headrace.runtimes.base import (
    InstanceSpec,
    InvalidInputError,
    ModelError,
    Padding,
    Run,
    RunCancelledError,
    TensorSpec,
)
from headrace.runtimes.datatypes import BYTES, datatype_of
from headrace.runtimes.onnx.errors import load_error, run_error
from headrace.runtimes.onnx.files import find_model
from headrace.runtimes.onnx.fusion import fused_entry, wants_fusion
from headrace.runtimes.onnx.fusion_cache import Entry
from headrace.runtimes.onnx.kept import load_kept, load_shared
from headrace.runtimes.onnx.options import (
    LONE_SPINNING,
    THREADS,
    Provider,
    check_providers,
    providers,
    session_options,
)
from headrace.runtimes.onnx.types import tensor_spec
from headrace.runtimes.onnx.values import as_text, row_major, run_with_bfloat16

_FATAL_ONLY: Final = 4
_SHRINKAGE: Final = "memory.enable_memory_arena_shrinkage"


def load(instance: InstanceSpec) -> OnnxModel:
    """Load the ONNX model of an instance.

    ``instance.path`` is the model file or the folder with it (``files.find_model``); the options are those of
    ``options.session_options`` and ``options.providers``. A text encoder runs with fused attention where
    that was possible (``fusion``), packed if it can be (``packing``) and with operators of our own where
    these run (``encoder_graph``); weights are shared where they can be (``sharing``).

    Raises:
        ModelError: there is no model, it cannot be loaded, or it has inputs or outputs that cannot be served.
    """
    file = find_model(Path(instance.path))
    chosen = providers(instance)
    given = instance.options.get(THREADS, str(instance.threads))
    entry = None
    if instance.text is not None and wants_fusion(instance, chosen):
        entry = fused_entry(file, Path(instance.graph_cache), pad_id=instance.text.pad_id)

    def session(
        threads: str, defaults: Mapping[str, str], graph: Path | None
    ) -> tuple[ort.InferenceSession, bool]:
        """Load ``graph``, or else the plain one, and say whether it is ``graph``."""
        options = {**defaults, **instance.options, THREADS: threads}
        made = _from_caches(instance, file, graph, entry, options, chosen)
        kept = made is not None and graph is not None
        try:
            made = made or ort.InferenceSession(str(file), session_options(options), providers=chosen)
        except Exception as error:
            raise load_error(error, file) from error
        check_providers(chosen, made.get_providers())
        return made, kept

    batches, alone, padding = _forms(entry)
    first, kept = session(given, {}, batches)
    lone = str(instance.lone_threads or given)
    load_lone = None if lone == given else lambda: session(lone, LONE_SPINNING, alone)[0]
    return OnnxModel(first, load_lone, instance.options, padding if kept else "all")


def _forms(entry: Entry | None) -> tuple[Path | None, Path | None, Padding]:
    """Return the best forms of a graph for batches and for what runs alone, and what the first pays for."""
    if entry is None:
        return None, None, "all"
    if entry.operators.is_file():
        return entry.operators, entry.operators, "none"
    # Laying tokens out is done by one thread, which all the others of a lone batch would wait for.
    if entry.packed.is_file():
        return entry.packed, entry.graph, "attention"
    return entry.graph, entry.graph, "all"


def _from_caches(
    instance: InstanceSpec,
    file: Path,
    graph: Path | None,
    entry: Entry | None,
    options: Mapping[str, str],
    chosen: Sequence[Provider],
) -> ort.InferenceSession | None:
    """Load the best form of ``graph``, or of ``file`` without one, that is kept; None if there is none."""
    if (made := load_shared(instance, file, graph or file, options, chosen)) is not None:
        return made
    return None if graph is None or entry is None else load_kept(graph, entry, options, chosen)


class OnnxModel:
    """A :class:`~headrace.runtimes.base.TensorModel` on ONNX Runtime.

    A batch that runs alone (``Run.lone``) uses a second session with ``lone_threads`` threads. Where weights
    are not shared (``sharing``) it costs the model's memory again. So it is only loaded when the first lone
    batch comes, on a thread of its own; until it is there, lone batches use the first session.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        lone_session: Callable[[], ort.InferenceSession] | None,
        options: Mapping[str, str],
        padding: Padding = "all",
    ) -> None:
        """Serve ``session``, which pays for ``padding``; ``lone_session`` loads the second one.

        Raises:
            ModelError: an input or output cannot be served.
        """
        self._session = session
        self._padding: Padding = padding
        self._load_lone = lone_session
        self._lone: ort.InferenceSession | None = None
        self._shrinkage = options.get(_SHRINKAGE)
        self._inputs = tuple(tensor_spec(node) for node in session.get_inputs())
        self._outputs = tuple(tensor_spec(node) for node in session.get_outputs())
        self._input_types = {spec.name: spec.datatype for spec in self._inputs}
        self._output_names = [spec.name for spec in self._outputs]
        self._has_bfloat16 = any(spec.datatype == "BF16" for spec in (*self._inputs, *self._outputs))

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The graph's inputs."""
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The graph's outputs."""
        return self._outputs

    @property
    def platform(self) -> str:
        """Triton's name for models that ONNX Runtime executes."""
        return "onnxruntime_onnx"

    @property
    def padding(self) -> Padding:
        """What of the padding of a batch of texts is computed, unless the batch runs alone."""
        return self._padding

    def execute(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Run
    ) -> dict[str, NDArray[Any]]:
        """Run one batch; arrays in row-major order are not copied.

        Raises:
            InvalidInputError: names, datatypes or shapes are not those of the graph.
            RunCancelledError: the run was cancelled; ONNX Runtime stops before its next node.
            ModelError: ONNX Runtime failed.
        """
        feed = self._feed(inputs)
        names = self._selected(outputs)
        run.check()
        options = ort.RunOptions()
        # What goes wrong is in the exception; the log would only say it twice.
        options.log_severity_level = _FATAL_ONLY
        if self._shrinkage:
            options.add_run_config_entry(_SHRINKAGE, self._shrinkage)
        session = self._lone_session() if run.lone else self._session
        run.on_cancel(lambda: setattr(options, "terminate", True))
        try:
            if self._has_bfloat16:
                arrays = run_with_bfloat16(session, feed, names, options)
            else:
                arrays = session.run(names, feed, options)
        except Exception as error:
            if run.cancelled:
                raise RunCancelledError from error
            raise run_error(error) from error
        finally:
            run.on_cancel(None)
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Drop the sessions."""
        self._load_lone = None
        self._lone = None
        del self._session

    def _feed(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name in self._input_types:
            if name not in inputs:
                msg = f"missing input '{name}'; the model expects {', '.join(self._input_types)}"
                raise InvalidInputError(msg)
        feed: dict[str, NDArray[Any]] = {}
        for name, array in inputs.items():
            expected = self._input_types.get(name)
            if expected is None:
                msg = f"unknown input '{name}'; the model expects {', '.join(self._input_types)}"
                raise InvalidInputError(msg)
            if (actual := datatype_of(array)) != expected:
                msg = f"input '{name}' is {actual}, the model expects {expected}"
                raise InvalidInputError(msg)
            feed[name] = as_text(name, array) if expected == BYTES else row_major(array)
        return feed

    def _selected(self, outputs: Sequence[str]) -> list[str]:
        for name in outputs:
            if name not in self._output_names:
                msg = f"unknown output '{name}'; the model has {', '.join(self._output_names)}"
                raise InvalidInputError(msg)
        return list(outputs) or self._output_names

    def _lone_session(self) -> ort.InferenceSession:
        if self._load_lone is not None:
            load_lone, self._load_lone = self._load_lone, None
            threading.Thread(
                target=self._prepare_lone, args=(load_lone,), name="lone-session", daemon=True
            ).start()
        return self._lone or self._session

    def _prepare_lone(self, load_lone: Callable[[], ort.InferenceSession]) -> None:
        try:
            self._lone = load_lone()
        except ModelError as error:
            # The first session serves lone batches as well, only with fewer threads.
            sys.stderr.write(f"no session for lone batches: {error}\n")
