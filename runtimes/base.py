"""The contract between a worker process and a runtime: plain dataclasses and one protocol.

Everything here is blocking and single-threaded: a worker runs one batch at a time. The only thing that may
happen beside a running batch is :meth:`Run.cancel`, called from the worker's control thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from numpy.typing import NDArray

from headrace.runtimes.generation.base import GenerationSpec

Padding = Literal["all", "attention", "none"]
"""What a text encoder computes for the padding of a batch: as much as for tokens, attention only, nothing."""


class ModelError(Exception):
    """The model, its folder or its options are wrong; the text is meant for the user."""


class InvalidInputError(ModelError):
    """This batch's inputs are wrong for the model; the model itself is fine."""


class RunCancelledError(Exception):
    """The batch was given up because nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: name, KServe datatype, full shape with -1 for a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A dense layer behind the pooling: its safetensors file, and one of ``dense.ACTIVATIONS``."""

    path: str
    activation: str = "Identity"


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How a text encoder turns token ids into its outputs.

    ``head`` is ``embed`` (pool the hidden states) or ``classify`` (the graph's logits are the output).
    ``pooling``, only used by ``embed``, is a name that ``pooling.parts`` knows; ``dense`` are layers that its
    vectors go through, unless the graph has pooled them itself. ``pad_id`` fills rows.
    ``padding_position`` is the padding id that RoBERTa and its kin count positions behind: the first token is
    at ``padding_position + 1``, and tokens of that id are not counted; -1 counts all from 0.
    """

    head: str
    pooling: str = "mean"
    pad_id: int = 0
    dense: tuple[DenseLayer, ...] = ()
    padding_position: int = -1


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Everything a worker needs to load one instance of one model version.

    Attributes:
        model: model name, for messages only.
        runtime: key of ``headrace.runtimes.registry.RUNTIMES``.
        path: the version folder, or the model file inside it.
        device: ``cpu`` or ``cuda:N``.
        threads: intra-op threads of a batch under load, at least 1.
        lone_threads: intra-op threads of a batch that runs alone; 0 means the same as ``threads``.
        options: the runtime's own options (``config.pbtxt`` parameters), all strings.
        text: set when the model is addressed by token ids instead of its own tensors.
        generation: set when the model is a decoder that the generation engine runs.
        graph_cache: folder that keeps fused graphs of text encoders; empty to run graphs as they are.
        weight_cache: folder that keeps weights which sessions share; empty for weights of their own.
        number: of the instance, from 0; whoever starts several says so, and how many ``instances`` there are.
    """

    model: str
    runtime: str
    path: str
    device: str = "cpu"
    threads: int = 1
    lone_threads: int = 0
    options: dict[str, str] = field(default_factory=dict)
    text: TextSpec | None = None
    generation: GenerationSpec | None = None
    graph_cache: str = ""
    weight_cache: str = ""
    number: int = 0
    instances: int = 1


class Run:
    """One execution: whether it has the machine to itself, and how to stop it."""

    def __init__(self, *, lone: bool = False) -> None:
        """Prepare a run; ``lone`` asks for the all-threads form of the model where there is one."""
        self.lone = lone
        self._lock = threading.Lock()
        self._terminate: Callable[[], None] | None = None
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this run any more."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the run to stop as soon as it can; called from another thread."""
        with self._lock:
            self._cancelled = True
            if self._terminate is not None:
                self._terminate()

    def on_cancel(self, terminate: Callable[[], None] | None) -> None:
        """Register what stops the native call that is about to start (None once it is over)."""
        with self._lock:
            self._terminate = terminate
            if terminate is not None and self._cancelled:
                terminate()

    def check(self) -> None:
        """Raise :class:`RunCancelledError` if the run was cancelled; for loops in Python."""
        if self._cancelled:
            raise RunCancelledError


class TensorModel(Protocol):
    """A loaded model: named arrays in, named arrays out."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The inputs, in the model's own order."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The outputs, in the model's own order."""

    @property
    def platform(self) -> str:
        """What executes the model, as Triton names it (``onnxruntime_onnx``, ``pytorch_libtorch``)."""

    def execute(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], run: Run
    ) -> dict[str, NDArray[Any]]:
        """Run one batch and return the arrays named in ``outputs`` (all of them when it is empty).

        Raises:
            InvalidInputError: the arrays do not fit the model.
            RunCancelledError: the run was cancelled before it finished.
            ModelError: the model failed; the text says how.
        """

    def close(self) -> None:
        """Free what the model holds; it is not used afterwards."""


@runtime_checkable
class SparesPadding(Protocol):
    """What a :class:`TensorModel` has besides when it computes less for padding than for tokens."""

    @property
    def padding(self) -> Padding:
        """What is computed for the padding of a batch."""


def padding_of(model: TensorModel) -> Padding:
    """Return what ``model`` computes for the padding of a batch of texts."""
    return model.padding if isinstance(model, SparesPadding) else "all"


Loader = Callable[[InstanceSpec], TensorModel]
"""What a runtime registers: loads one instance or raises :class:`ModelError` with a text for the user."""
