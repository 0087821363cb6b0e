"""Real model folders, and a factory that loads them in this process with the real runtime and batcher."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from headrace.runtimes.base import InstanceSpec, ModelError
from headrace.runtimes.registry import loader
from headrace.runtimes.text import TextEncoder
from headrace.runtimes.wire import Loaded
from headrace.server.errors import LoadFailedError, ModelNotReadyError
from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.instances import Machine
from headrace.server.repository.model import Model
from headrace.server.repository.registry import Repository
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.telemetry.statistics import ModelStatistics

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "query:")


def save(path: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def add_graph(shape: list[Any]) -> onnx.GraphProto:
    """SUM = LEFT + RIGHT, FP32 of this shape."""
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name in ("LEFT", "RIGHT", "SUM")
    }
    nodes = [helper.make_node("Add", ["LEFT", "RIGHT"], ["SUM"])]
    return helper.make_graph(nodes, "add", [values["LEFT"], values["RIGHT"]], [values["SUM"]])


def encoder_graph(output: str, width: int) -> onnx.GraphProto:
    """Token ids to hidden states [batch, sequence, width], or to logits [batch, width]."""
    table = np.arange(len(WORDS) * width, dtype=np.float32).reshape(len(WORDS), width)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden"])]
    rank3 = output == "last_hidden_state"
    if rank3:
        nodes.append(helper.make_node("Identity", ["hidden"], [output]))
    else:
        nodes.append(helper.make_node("ReduceMean", ["hidden"], [output], axes=[1], keepdims=0))
    shape: list[str | int | None] = ["batch", "sequence", width] if rank3 else ["batch", width]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    return helper.make_graph(nodes, "encoder", inputs, [result], [numpy_helper.from_array(table, "table")])


@dataclass
class Writer:
    """Writes model folders below one repository."""

    root: Path

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def config(self, name: str, text: str) -> None:
        (self.folder(name) / "config.pbtxt").write_text(text)

    def add(
        self, name: str, *, version: int = 1, shape: list[Any] | None = None, config: str | None = None
    ) -> Path:
        """A model that adds; ``shape`` is [batch, 4] by default. Returns its file."""
        path = self.root / name / str(version) / "model.onnx"
        save(path, add_graph(shape or ["batch", 4]))
        if config is not None:
            self.config(name, config)
        return path

    def text(
        self,
        name: str,
        files: Mapping[str, Any] | None = None,
        *,
        head: str = "last_hidden_state",
        width: int = 8,
        version: str = "",
        config: str | None = None,
    ) -> Path:
        """A text model as a Hugging Face folder: ``files`` are JSON contents beside the model's own."""
        folder = self.folder(name) / version if version else self.folder(name)
        save(folder / "model.onnx", encoder_graph(head, width))
        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, "[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
        tokenizer.save(str(folder / "tokenizer.json"))
        contents = {"config.json": {"hidden_size": width, "max_position_embeddings": 64}, **(files or {})}
        for path, content in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(json.dumps(content))
        if config is not None:
            self.config(name, config)
        return folder


@dataclass(eq=False)
class InProcessModels:
    """Loads models in this process. Records what was built and disposed of, and can be made to wait."""

    built: list[Model] = field(default_factory=list)
    disposed: list[Model] = field(default_factory=list)
    definitions: list[ModelDefinition] = field(default_factory=list)
    gate: asyncio.Event | None = None
    waiting: int = 0
    given_up: dict[Model, Callable[[Model, str], None]] = field(default_factory=dict)

    async def build(self, definition: ModelDefinition, on_failed: Callable[[Model, str], None]) -> Model:
        self.waiting += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.waiting -= 1
        try:
            loaded = await asyncio.to_thread(load_once, definition.specs[0])
        except ModelError as error:
            raise LoadFailedError(str(error)) from error
        completed = definition.complete(loaded)
        statistics = ModelStatistics()
        model = Model(
            name=definition.name,
            version=definition.version,
            task=definition.task,
            platform=completed.platform,
            config=completed.config,
            max_batch_size=completed.max_batch_size,
            inputs=completed.inputs,
            outputs=completed.outputs,
            batcher=Batcher(BatchingPolicy(max_rows=max(1, completed.max_batch_size)), statistics),
            statistics=statistics,
            text=definition.text,
            dimensions=completed.dimensions,
            token_vectors=completed.token_vectors,
            default=definition.default,
        )
        self.built.append(model)
        self.definitions.append(definition)
        self.given_up[model] = on_failed
        return model

    async def dispose(self, model: Model) -> None:
        assert isinstance(model.batcher, Batcher)
        await model.batcher.drain(ModelNotReadyError("gone"))
        self.disposed.append(model)


def load_once(spec: InstanceSpec) -> Loaded:
    """What a worker would answer."""
    model = loader(spec.runtime)(spec)
    served = model if spec.text is None else TextEncoder(model, spec.text)
    loaded = Loaded(tuple(served.inputs), tuple(served.outputs), served.platform)
    model.close()
    return loaded


@pytest.fixture
def models_of(tmp_path: Path) -> Writer:
    """A writer of model folders in the repository ``models``."""
    root = tmp_path / "models"
    root.mkdir()
    return Writer(root)


@pytest.fixture
def factory() -> InProcessModels:
    return InProcessModels()


@pytest.fixture
async def open_repository(factory: InProcessModels) -> Any:
    """Make and start repositories; they are stopped after the test, and all that was built must be ended."""
    opened: list[Repository] = []

    async def make(
        *roots: Path, start: bool = True, machine: Machine | None = None, **settings: Any
    ) -> Repository:
        repository = Repository(list(roots), factory, machine or Machine(2), **settings)
        opened.append(repository)
        if start:
            await repository.start()
        return repository

    yield make
    for repository in opened:
        await repository.stop()
    assert sorted(map(id, factory.built)) == sorted(map(id, factory.disposed))
