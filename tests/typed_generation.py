"""``headrace.v1.GenerationService`` over a scripted engine."""

from __future__ import annotations

from typing import Any

from scripted_generation import OneModel, ScriptedGenerator, plain_tokenizer, scripted_model

from headrace.server.services.generation import GenerationService
from headrace.server.tasks.generate import Generating
from headrace.v1 import generation_pb2 as pb

USER = pb.ChatMessage(role="user", content="hello")
WEATHER = pb.Tool(name="weather", description="d", parameters_json_schema='{"type": "object"}')


def service(generating: Generating, generator: ScriptedGenerator, **settings: Any) -> GenerationService:
    """The service over one model with this engine; ``settings`` are those of the model."""
    model = scripted_model(generator, plain_tokenizer(), **settings)
    return GenerationService(OneModel(model), generating)  # type: ignore[arg-type]


def parameters(**values: Any) -> pb.GenerationParameters:
    """Parameters, greedy unless told otherwise."""
    return pb.GenerationParameters(**({"temperature": 0} | values))
