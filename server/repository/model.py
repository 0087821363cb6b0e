"""A loaded model version, as tasks and services see it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from headrace.runtimes.pooling import SPLADES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from headrace.kserve.v2.model_config_pb2 import ModelConfig
    from headrace.server.scheduling.generator import Generator
    from headrace.server.scheduling.runner import BatchRunner
    from headrace.server.telemetry.statistics import ModelStatistics


class Task(StrEnum):
    """What a model does; the value of the ``task`` parameter in config.pbtxt."""

    TENSORS = "tensors"
    EMBED = "embed"
    CLASSIFY = "classify"
    RERANK = "rerank"
    PREDICT = "predict"
    GENERATE = "generate"


class State(StrEnum):
    """Life of a model version, as RepositoryIndex names it."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """One input or output of the configuration.

    Attributes:
        name: as in config.pbtxt.
        datatype: KServe name.
        dims: shape without the batch dimension; -1 varies.
        optional: an input that a request may leave out.
        labels: class names of an output, by index; empty when it has none.
        reshape: what the model itself has in place of ``dims``, with as many elements; None when they agree.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    labels: tuple[str, ...] = ()
    reshape: tuple[int, ...] | None = None

    def model_shape(self, shape: Sequence[int], *, batching: bool) -> tuple[int, ...]:
        """Return the shape that the model takes for an input that a caller gave as ``shape`` (checked)."""
        return _reshaped(shape, self.dims, self.reshape, batching=batching)

    def caller_shape(self, shape: Sequence[int], *, batching: bool) -> tuple[int, ...]:
        """Return the shape that callers see for an output that the model gave as ``shape``."""
        if self.reshape is None:
            return tuple(shape)
        return _reshaped(shape, self.reshape, self.dims, batching=batching)


def _reshaped(
    shape: Sequence[int], old: tuple[int, ...], new: tuple[int, ...] | None, *, batching: bool
) -> tuple[int, ...]:
    """Put ``new`` in place of ``old``: the n-th varying dimension keeps its size, the batch stays first."""
    if new is None:
        return tuple(shape)
    batch, own = (shape[:1], shape[1:]) if batching else ((), shape)
    if len(own) != len(old):
        return tuple(shape)
    sizes = iter([size for size, dim in zip(own, old, strict=True) if dim == -1])
    return (*batch, *(next(sizes) if dim == -1 else dim for dim in new))


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request that does not say gets: the model's own ``generation_config.json``; None is unset."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """What the server needs to know of a model that generates text.

    Attributes:
        tokenizer: without padding and truncation set.
        max_tokens: longest sequence, prompt and output together.
        vocabulary_size: ids from 0 to this, exclusive, exist.
        eos_ids: ids that end a text.
        special_tokens: ``bos_token``, ``eos_token``, … → text, for chat templates.
        chat_templates: name → Jinja text; the model's own is ``default``. Empty for a base model.
        defaults: for requests that do not choose.
        tool_parser: how the model writes tool calls, a key of the tool parsers' table; "" when it has no way.
        max_samples: largest ``n`` and ``best_of``.
    """

    tokenizer: Tokenizer
    max_tokens: int
    vocabulary_size: int
    eos_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    chat_templates: Mapping[str, str]
    defaults: SamplingDefaults
    tool_parser: str = ""
    max_samples: int = 128


@dataclass(frozen=True, slots=True)
class TextSettings:
    """What the server needs to know to feed a text encoder.

    Attributes:
        tokenizer: without padding and truncation set.
        max_tokens: longest sequence the model takes, special tokens included.
        prompts: prompt name → text put before an input.
        default_prompt: the prompt used when a request names none, "" for no prompt.
        normalize: whether embeddings are scaled to unit length unless the request says otherwise.
        labels: class names by index; for ``classify`` and ``rerank``.
        multi_label: scores are independent (sigmoid) instead of exclusive (softmax).
        pooling: how token vectors become one, a name of ``runtimes.pooling``; for ``embed``.
        special_tokens: ``bos_token``, ``cls_token``, … → text, for chat templates.
        chat_templates: name → Jinja text, for inputs that are conversations; the model's own is ``default``.
        logits: the model's own scores are its logits; for families that follow the model in that.
    """

    tokenizer: Tokenizer
    max_tokens: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    normalize: bool = True
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    pooling: str = "mean"
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    logits: bool = False

    @property
    def sparse(self) -> bool:
        """Whether an embedding has one weight, mostly 0, for each token of the vocabulary."""
        return self.pooling in SPLADES


Form = tuple[tuple[Hashable, ...], ...]
"""What the checks of a tensor request depend on: names, datatypes, shapes and sizes."""


class Plan(NamedTuple):
    """What all tensor requests of one form have in common, found when the first of them was checked.

    Attributes:
        inputs: for each of the model's inputs that is given, its place in the request and the model's shape.
        rows: batch rows.
        key: what parts that may share a batch have in common.
        outputs: names to ask the model for; empty for all.
        answer: outputs of the response, in its order.
    """

    inputs: tuple[tuple[int, tuple[int, ...]], ...]
    rows: int
    key: Hashable
    outputs: tuple[str, ...]
    answer: tuple[ModelTensor, ...]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Model:
    """One loaded version of one model.

    ``inputs`` and ``outputs`` are what the configuration (completed from the file) promises to callers. Those
    of a text model are ``text`` → ``embedding`` or ``scores``; then ``text`` is set and the batcher takes
    token ids.
    """

    name: str
    version: int
    task: Task
    platform: str
    config: ModelConfig
    max_batch_size: int
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    batcher: BatchRunner | None  # None exactly when the model generates
    statistics: ModelStatistics
    text: TextSettings | None = None
    generation: GenerationSettings | None = None  # set together with ``generator`` for a model that generates
    generator: Generator | None = None
    dimensions: int = 0  # width of an embedding; 0 when the model has none
    token_vectors: bool = False  # whether it gives a vector for each token, beside one of the whole text
    default: bool = False  # marked as the default model of its task
    plans: dict[Form, Plan] = field(default_factory=dict)  # written by tensor inference

    @property
    def active(self) -> int:
        """Requests that wait or run."""
        if self.generator is not None:
            return self.generator.active
        return self.batcher.active if self.batcher is not None else 0

    @property
    def waiting(self) -> int:
        """Parts, or requests for text, that wait in the queue."""
        if self.generator is not None:
            return self.generator.waiting
        return self.batcher.waiting if self.batcher is not None else 0

    @property
    def batching(self) -> bool:
        """Whether the first dimension of every tensor is the batch."""
        return self.max_batch_size > 0
