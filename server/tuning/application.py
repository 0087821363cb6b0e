"""Giving a model the layout that was chosen, without touching what its configuration says."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.server.repository.instances import fill_instance_group
from headrace.server.repository.policies import ROWS
from headrace.server.tuning.candidates import LONE_THREADS, THREADS, TOKENS, free_fields

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition
    from headrace.server.repository.instances import Machine
    from headrace.server.tuning.candidates import Candidate


def chosen_parameters(definition: ModelDefinition, candidate: Candidate) -> dict[str, str]:
    """Return the parameters of config.pbtxt that say what ``candidate`` is, as far as they are open."""
    free, layout = free_fields(definition), candidate.layout
    found: dict[str, str] = {}
    if free.threads:
        found[THREADS] = str(layout.threads)
    if free.lone_threads:
        found[LONE_THREADS] = str(layout.lone_threads)
    if free.limit and candidate.limit:
        found[TOKENS if definition.text_model is not None else ROWS] = str(candidate.limit)
    return found


def apply(definition: ModelDefinition, candidate: Candidate, machine: Machine) -> ModelDefinition:
    """Return ``definition`` with the instances, threads and limit of ``candidate``.

    ``ModelConfig`` shows all of it as if it had been written by hand; ``written`` stays what it was.
    """
    free, layout = free_fields(definition), candidate.layout
    parameters = chosen_parameters(definition, candidate)
    config = ModelConfig()
    config.CopyFrom(definition.config)
    if free.instances:
        del config.instance_group[:]
        config.instance_group.add(count=layout.instances)
        fill_instance_group(config, machine)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    specs = definition.specs
    if free.instances or free.threads or free.lone_threads:
        narrow = dataclasses.replace(specs[0], threads=layout.threads, lone_threads=0)
        first = dataclasses.replace(narrow, lone_threads=layout.lone_threads)
        specs = (first, *[narrow] * (layout.instances - 1))
    return dataclasses.replace(
        definition, config=config, specs=specs, parameters={**definition.parameters, **parameters}
    )
