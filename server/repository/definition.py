"""A model version that is ready to be started, and the contract of who starts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import InstanceSpec, Padding
from headrace.runtimes.wire import Loaded
from headrace.server.repository.comparison import check_fit
from headrace.server.repository.completion import complete_tensors, fill_defaults
from headrace.server.repository.generation import GenerationModel
from headrace.server.repository.generation_tensors import add_optional
from headrace.server.repository.model import GenerationSettings, Model, ModelTensor, Task, TextSettings
from headrace.server.repository.signature import model_inputs, model_outputs
from headrace.server.repository.text import TOKEN_EMBEDDINGS, TextModel
from headrace.server.repository.validation import check_completed


@dataclass(frozen=True, slots=True)
class CompletedModel:
    """What is known of a model once a worker has loaded it.

    Attributes:
        config: normalised, as ModelConfig answers it.
        inputs: that callers see.
        outputs: that callers see, with their labels.
        max_batch_size: rows in one batch; 0 when the tensors have no batch dimension.
        platform: as ModelMetadata answers it.
        dimensions: width of an embedding; 0 when the model has none.
        token_vectors: whether it gives a vector for each token too.
        padding: what is computed for the padding of a batch of texts.
    """

    config: ModelConfig
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    max_batch_size: int
    platform: str
    dimensions: int
    token_vectors: bool
    padding: Padding


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """One version of a model, read and checked as far as its files tell.

    Attributes:
        name: of the model.
        version: positive.
        task: what it does.
        config: what the user wrote, with name, runtime, file and instances filled in.
        written: what the user wrote, and the name.
        label: what messages call that configuration.
        folder: the version's folder.
        specs: one for each instance, at least one.
        parameters: of the configuration: key → text.
        labels: class names by output.
        text_model: set when callers send texts.
        generation_model: set when the model generates text.
        default: marked as the default model of its task.
        dynamic_batching: the parameter of that name; None when it is not set.
        warnings: for the user; the model is served all the same.
    """

    name: str
    version: int
    task: Task
    config: ModelConfig
    written: ModelConfig
    label: str
    folder: Path
    specs: tuple[InstanceSpec, ...]
    parameters: dict[str, str]
    labels: Mapping[str, tuple[str, ...]]
    text_model: TextModel | None = None
    generation_model: GenerationModel | None = None
    default: bool = False
    dynamic_batching: bool | None = None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> TextSettings | None:
        """How texts become tokens; None for a model of tensors."""
        return self.text_model.settings if self.text_model is not None else None

    @property
    def generation(self) -> GenerationSettings | None:
        """What the server knows of a model that generates; None for every other."""
        return self.generation_model.settings if self.generation_model is not None else None

    def complete(self, loaded: Loaded) -> CompletedModel:
        """Fill in what only the loaded model tells.

        Raises:
            LoadFailedError: the configuration does not fit the model; the text has one that does.
        """
        text, generation = self.text_model, self.generation_model
        seen = loaded if text is None else text.signature(loaded, self.label)
        if generation is not None:
            seen = generation.signature(loaded, self.config)
        config = complete_tensors(self.config, seen, dynamic=self.dynamic_batching, text=text is not None)
        check_fit(config, seen, self.written, self.label)
        check_completed(config, self.label)
        config.platform = config.platform or loaded.platform
        if generation is not None:  # one request has any number of answers
            config.model_transaction_policy.decoupled = True
            add_optional(config)
        fill_defaults(config)
        outputs = model_outputs(config, self.labels)
        embeds = self.task is Task.EMBED and text is not None
        return CompletedModel(
            config=config,
            inputs=model_inputs(config),
            outputs=outputs,
            max_batch_size=config.max_batch_size,
            platform=loaded.platform,
            dimensions=max(outputs[0].dims[0], 0) if embeds else 0,
            token_vectors=embeds and any(spec.name == TOKEN_EMBEDDINGS for spec in loaded.outputs),
            padding=loaded.padding,
        )


class ModelFactory(Protocol):
    """Starts and stops models; the repository's only way to do so."""

    async def build(self, definition: ModelDefinition, on_failed: Callable[[Model, str], None]) -> Model:
        """Start the workers of ``definition`` and return the model that they serve.

        Args:
            definition: what to start.
            on_failed: to be called, with the model and the reason, when its workers were given up.

        Raises:
            LoadFailedError: with the reason; nothing is left running. The same when it is cancelled.
        """

    async def dispose(self, model: Model) -> None:
        """Let the admitted requests of a built model finish, then end its workers."""
