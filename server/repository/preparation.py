"""From a model folder to the definitions of the versions to serve: everything that needs no worker.

Blocking: it reads files and builds tokenisers, so it runs in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import InstanceSpec, TensorSpec
from headrace.server.errors import LoadFailedError
from headrace.server.repository.config import read_config
from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.files import BACKEND_OF, ModelFile, find_model_file
from headrace.server.repository.generation import GenerationModel, generates, load_generation
from headrace.server.repository.huggingface import HuggingFaceFolder
from headrace.server.repository.instances import CPU, Machine, fill_instance_group, plan_instances
from headrace.server.repository.labels import read_label_file
from headrace.server.repository.layout import ModelFolder
from headrace.server.repository.model import Task
from headrace.server.repository.parameters import ModelParameters, read_parameters
from headrace.server.repository.signature import declared
from headrace.server.repository.text import SCORES, TextModel, load_text, text_task
from headrace.server.repository.validation import check_config, check_one_answer, ineffective

_DECLARED_BY: frozenset[str] = frozenset({".pt", ".pt2", ".pth"})
"""Files that do not name their tensors, so that the configuration's go along."""


def prepare(
    folder: ModelFolder, machine: Machine, override: ModelConfig | None = None
) -> tuple[ModelDefinition, ...]:
    """Read and check a model's configuration and files.

    Args:
        folder: the model.
        machine: what instances are planned for.
        override: the configuration of a load request, in place of config.pbtxt.

    Returns:
        A definition for each version that the version policy chooses, ascending.

    Raises:
        LoadFailedError: with the file, the field, and what to do.
    """
    config, label = _configuration(folder, override)
    if config.name and config.name != folder.name:
        raise LoadFailedError(
            f"{label}: name: unexpected directory name '{folder.name}' for model '{config.name}', directory "
            "name must equal model name",
            model=folder.name,
        )
    config.name = folder.name
    check_config(config, label)
    parameters = read_parameters(config, label)
    warnings = (*parameters.warnings, *ineffective(config, label))
    written = ModelConfig()
    written.CopyFrom(config)
    versions = _chosen(config, folder, label)
    single = any(generates(HuggingFaceFolder(folder, path), config, parameters) for path in versions.values())
    fill_instance_group(config, machine, single=single)
    given = single or bool(written.instance_group)
    instances = plan_instances(config, parameters, machine, given=given)
    cuda = any(instance.device != CPU for instance in instances)
    labels = _labels(folder, config, label)
    definitions: list[ModelDefinition] = []
    for number, path in versions.items():
        files = HuggingFaceFolder(folder, path)
        own = ModelConfig()
        own.CopyFrom(config)
        generation = _generation_model(files, own, parameters, label, cuda=cuda)
        preferred = "torch" if cuda and generation is not None else ""
        file = find_model_file(folder, path, own, label, preferred=preferred)
        own.backend = own.backend or BACKEND_OF.get(file.runtime, file.runtime)
        own.default_model_filename = file.filename
        text = None if generation is not None else _text_model(files, own, parameters, labels, label)
        options = _options(own, parameters, file, has_tensors=text is None and generation is None)
        definitions.append(
            ModelDefinition(
                name=folder.name,
                version=number,
                task=_task(parameters, text, generation),
                config=own,
                written=written,
                label=label,
                folder=path,
                specs=tuple(
                    InstanceSpec(
                        model=folder.name,
                        runtime=file.runtime,
                        path=str(file.path),
                        device=instance.device,
                        threads=instance.threads,
                        lone_threads=instance.lone_threads,
                        options=options,
                        text=text.spec if text is not None else None,
                        generation=generation.spec if generation is not None else None,
                        graph_cache="" if parameters.fuse_attention is False else machine.graph_cache,
                        weight_cache="" if parameters.share_weights is False else machine.weight_cache,
                    )
                    for instance in instances
                ),
                parameters={key: value.string_value for key, value in config.parameters.items()},
                labels=_output_labels(own, labels, parameters, text),
                text_model=text,
                generation_model=generation,
                default=parameters.default,
                dynamic_batching=parameters.dynamic_batching,
                warnings=warnings,
            )
        )
    return tuple(definitions)


def _configuration(folder: ModelFolder, override: ModelConfig | None) -> tuple[ModelConfig, str]:
    if override is not None:
        config = ModelConfig()
        config.CopyFrom(override)
        return config, f"{folder.name}: config override"
    if folder.config_file.exists():
        label = folder.label(folder.config_file)
        return read_config(folder.file(folder.path, folder.config_file.name, label), label), label
    return ModelConfig(), f"{folder.name} (no config.pbtxt)"


def _chosen(config: ModelConfig, folder: ModelFolder, label: str) -> Mapping[int, Path]:
    """Return the versions that the version policy chooses."""
    policy, available = config.version_policy, folder.versions
    if policy.HasField("all"):
        return available
    if policy.HasField("specific"):
        chosen = {number: path for number, path in available.items() if number in policy.specific.versions}
    else:
        newest = sorted(available)[-(policy.latest.num_versions or 1) :]
        chosen = {number: available[number] for number in newest}
    if not chosen:
        raise LoadFailedError(
            f"{label}: version_policy: no version of '{folder.name}' matches; "
            f"there are {', '.join(map(str, available))}",
            model=folder.name,
        )
    return chosen


def _labels(folder: ModelFolder, config: ModelConfig, label: str) -> dict[str, tuple[str, ...]]:
    """Read the label files of the outputs."""
    labels: dict[str, tuple[str, ...]] = {}
    for output in config.output:
        if output.label_filename:
            field = f"{label}: output '{output.name}'.label_filename"
            path = folder.file(folder.path, output.label_filename, field)
            labels[output.name] = read_label_file(path, folder.label(path))
    return labels


def _task(parameters: ModelParameters, text: TextModel | None, generation: GenerationModel | None) -> Task:
    if generation is not None:
        return Task.GENERATE
    return text.task if text is not None else parameters.task or Task.TENSORS


def _generation_model(
    files: HuggingFaceFolder, config: ModelConfig, parameters: ModelParameters, label: str, *, cuda: bool
) -> GenerationModel | None:
    if generates(files, config, parameters):
        return load_generation(files, parameters, label, cuda=cuda)
    check_one_answer(config, label)
    return None


def _text_model(
    files: HuggingFaceFolder,
    config: ModelConfig,
    parameters: ModelParameters,
    labels: Mapping[str, tuple[str, ...]],
    label: str,
) -> TextModel | None:
    task = text_task(files, config, parameters)
    return load_text(files, parameters, task, labels.get(SCORES, ()), label) if task is not None else None


def _output_labels(
    config: ModelConfig,
    labels: Mapping[str, tuple[str, ...]],
    parameters: ModelParameters,
    text: TextModel | None,
) -> dict[str, tuple[str, ...]]:
    """Give names to the outputs: those of their files, else the parameter's where the number fits."""
    if text is not None:
        return {SCORES: text.settings.labels}
    named = parameters.labels or ()
    fitting = {
        output.name: named for output in config.output if named and list(output.dims[-1:]) == [len(named)]
    }
    return {**fitting, **labels}


def _options(
    config: ModelConfig, parameters: ModelParameters, file: ModelFile, *, has_tensors: bool
) -> dict[str, str]:
    """Return what the runtime gets: its own parameters, and the fields of the configuration it asks for.

    ``has_tensors`` says that the configured tensors are the model's own, not those of texts.
    """
    options = dict(parameters.options)
    if config.optimization.HasField("graph"):
        options.setdefault("optimization.graph.level", str(config.optimization.graph.level))
    if has_tensors and file.path.suffix in _DECLARED_BY:
        batching = config.max_batch_size > 0
        if config.input:
            options.setdefault("inputs", _json(declared(config.input, batching=batching)))
        if config.output:
            options.setdefault("outputs", _json(declared(config.output, batching=batching)))
    return options


def _json(specs: Sequence[TensorSpec]) -> str:
    return json.dumps([{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs])
