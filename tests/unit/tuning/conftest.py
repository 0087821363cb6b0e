"""Definitions of models as the repository reads them; nothing here starts a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.preparation import prepare

Define = Callable[..., ModelDefinition]


@pytest.fixture
def define(tmp_path: Path) -> Define:
    """Write a model folder with this config.pbtxt and read it; ``texts`` gives it a tokeniser."""

    def make(config: str = "", *, cores: int = 8, gpus: int = 0, texts: bool = False) -> ModelDefinition:
        folder = tmp_path / "models" / "m"
        version = folder / "1"
        version.mkdir(parents=True, exist_ok=True)
        (version / "model.onnx").write_bytes(b"only its name is read")
        (folder / "config.pbtxt").write_text(config)
        if texts:
            tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, "[UNK]"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.save(str(version / "tokenizer.json"))
            (version / "config.json").write_text('{"max_position_embeddings": 200, "hidden_size": 8}')
            (folder / "config.pbtxt").write_text(
                f'{config} parameters {{ key: "task" value {{ string_value: "embed" }} }}'
            )
        (definition,) = prepare(open_model("m", [folder.parent]), Machine(cores, gpus))
        return definition

    return make
