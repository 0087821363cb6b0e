"""Model ``llm`` of the Triton tests: generates text, and its engine says what a test scripts."""

from __future__ import annotations

from typing import Any

from scripted_generation import ScriptedGenerator, plain_tokenizer, scripted_model, token_id

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.server.repository.generation_tensors import INPUTS, add_optional
from headrace.server.repository.lifecycle import Entry, Generation, VersionStatus
from headrace.server.repository.registry import Repository
from headrace.server.repository.signature import fill_tensor, model_inputs, model_outputs

TOKENIZER = plain_tokenizer()
WORDS = [token_id(TOKENIZER, token) for token in ("hello", "Ġworld", "Ġthe")]


def put_text_model(
    repository: Repository, script: list[int] | None = None, **settings: Any
) -> ScriptedGenerator:
    """Put the model into the repository and return its engine; it says "hello world the" if not told."""
    generator = ScriptedGenerator(WORDS if script is None else script)
    model = scripted_model(generator, TOKENIZER, **settings)
    config = ModelConfig(name="llm")
    fill_tensor(config.input.add(), INPUTS[0], batching=False)
    add_optional(config)
    model.inputs, model.outputs = model_inputs(config), model_outputs(config, {})
    repository._entries["llm"] = Entry("llm", generation=Generation(versions={1: VersionStatus.ready(model)}))
    return generator
