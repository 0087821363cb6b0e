"""Models for tests of tasks and families (real batchers, in-test instances), and a way to call facades."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody
from numpy.typing import NDArray
from raw_tensors import to_raw
from rest_call import Context
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.datatypes import to_array
from headrace.runtimes.wire import Executed, Tensor
from headrace.server.errors import ExecutionFailedError, HeadraceError
from headrace.server.interceptors import Interceptors
from headrace.server.repository import lookup
from headrace.server.repository.lifecycle import Entry, Generation, VersionStatus
from headrace.server.repository.model import Model, ModelTensor, Task, TextSettings
from headrace.server.scheduling.batch import Batch
from headrace.server.scheduling.batcher import Batcher
from headrace.server.scheduling.policy import BatchingPolicy
from headrace.server.scheduling.work import Part
from headrace.server.services.call import Call
from headrace.server.tasks.tokenization import Tokenizing
from headrace.server.telemetry.requests import RequestMetrics
from headrace.server.telemetry.statistics import ModelStatistics

Arrays = dict[str, NDArray[Any]]
Compute = Callable[[Arrays], Arrays]

WORDS = [
    "what", "is", "deep", "learning", "good", "bad", "a", "b", "c", "paris", "the", "capital", "of", "france",
    "berlin", "germany", "banana",
]  # fmt: skip
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,?!"]
VOCABULARY = dict.fromkeys(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
)
DIMENSIONS = 16


def wordpiece() -> Tokenizer:
    """A small tokenizer of BERT's kind."""
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    return tokenizer


@cache
def token_vectors() -> NDArray[np.float32]:
    """The vector of every token of the vocabulary."""
    return np.random.default_rng(7).standard_normal((len(VOCABULARY), DIMENSIONS)).astype(np.float32)


def encode_part(part: Part) -> Arrays:
    """What the in-test text model computes for one text."""
    inputs = {tensor.name: np.frombuffer(tensor.data, "<i4") for tensor in part.inputs}
    ids = inputs["token_ids"]
    assert part.tokens == len(ids) == inputs["lengths"][0]
    vectors = token_vectors()[ids]
    if "type_ids" in inputs:
        vectors = vectors + inputs["type_ids"][:, None].astype(np.float32)
    logits = vectors.mean(0, keepdims=True)[:, :3] * 4
    return {"embedding": vectors.mean(0, keepdims=True), "token_embeddings": vectors, "logits": logits}


class Instance:
    """A worker instance that computes part by part; while ``open`` is False its batches wait."""

    slots = 1
    lone_capable = False

    def __init__(self, batcher: Batcher, compute: Callable[[Part], Arrays]) -> None:
        self.batcher = batcher
        self.compute = compute
        self.open = True
        self.held: list[Batch] = []
        self.requests: list[int] = []
        batcher.attach(self)

    @property
    def batches(self) -> int:
        return len(self.held)

    def send(self, batch: Batch) -> None:
        self.held.append(batch)
        if self.open:
            asyncio.get_running_loop().call_soon(self.finish, batch)

    def cancel(self, batch: Batch) -> None:
        """Let the batch run on: what it computes is thrown away."""

    def finish(self, batch: Batch) -> None:
        self.held.remove(batch)
        self.requests.append(len(batch.parts))
        try:
            results = [self.compute(part) for part in batch.parts]
        except HeadraceError as error:
            self.batcher.failed(batch, error)
            return
        described, content = [], bytearray()
        for name in batch.parts[0].outputs or tuple(results[0]):
            array = np.concatenate([result[name] for result in results])
            datatype, raw = to_raw(array)
            ends = None
            if datatype == "BYTES":
                ends = tuple(
                    np.cumsum([len(to_raw(row)[1]) for row in array.reshape(len(array), -1)]).tolist()
                )
            described.append(Tensor(name, datatype, array.shape, len(content), len(raw), ends))
            content += raw
        reply = Executed(batch.id, tuple(described), len(content), None, 10, 20, 30)
        self.batcher.executed(batch, reply, memoryview(bytes(content)))


@dataclass
class Models:
    """A repository of in-test models; ``instances`` has each one's worker."""

    tokenizer: Tokenizer = field(default_factory=wordpiece)
    entries: dict[str, Entry] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    created = 1_700_000_000

    def text(
        self,
        name: str,
        task: Task,
        *,
        labels: Sequence[str] = (),
        max_tokens: int = 24,
        max_queue: int = 1024,
        fail: bool = False,
        policy: Mapping[str, Any] = MappingProxyType({}),
        pooling: str = "mean",
        pools_inside: bool = False,
        **settings: Any,
    ) -> Model:
        """A text model: ``embed`` has DIMENSIONS values, the others a logit for each of at most 3 labels.

        ``pools_inside`` is an embedder whose graph gives no vectors of tokens.
        """

        def compute(part: Part) -> Arrays:
            if fail:
                raise ExecutionFailedError("model says no")
            result = encode_part(part)
            result["logits"] = result["logits"][:, : len(labels) or 3]
            return result

        usual: dict[str, Any] = {"max_rows": 64, "max_tokens": 4096, "join": True, "max_queue": max_queue}
        return self._model(
            name,
            task,
            BatchingPolicy(**{**usual, **policy}),
            compute,
            text=TextSettings(self.tokenizer, max_tokens, labels=tuple(labels), pooling=pooling, **settings),
            dimensions=DIMENSIONS if task is Task.EMBED else 0,
            token_vectors=task is Task.EMBED and pooling != "splade" and not pools_inside,
        )

    def tensors(
        self,
        name: str,
        inputs: Sequence[ModelTensor],
        outputs: Sequence[ModelTensor],
        compute: Compute,
        *,
        task: Task = Task.PREDICT,
        max_batch_size: int = 8,
        **options: Any,
    ) -> Model:
        """A tensor model that runs ``compute`` on its arrays."""

        def run(part: Part) -> Arrays:
            return compute(
                {tensor.name: to_array(tensor.datatype, tensor.shape, tensor.data) for tensor in part.inputs}
            )

        policy = BatchingPolicy(max_rows=max(1, max_batch_size), join=max_batch_size > 0, max_queue=1024)
        options |= {"inputs": tuple(inputs), "outputs": tuple(outputs), "max_batch_size": max_batch_size}
        return self._model(name, task, policy, run, **options)

    def _model(
        self, name: str, task: Task, policy: BatchingPolicy, compute: Callable[[Part], Arrays], **fields: Any
    ) -> Model:
        statistics = ModelStatistics()
        batcher = Batcher(policy, statistics)
        self.instances[name] = Instance(batcher, compute)
        values = {"version": 1, "max_batch_size": policy.max_rows, "inputs": (), "outputs": (), **fields}
        model = Model(
            name=name,
            task=task,
            platform="python",
            config=ModelConfig(name=name, max_batch_size=values["max_batch_size"]),
            batcher=batcher,
            statistics=statistics,
            **values,
        )
        self.entries[name] = Entry(name, generation=Generation(versions={1: VersionStatus.ready(model)}))
        return model

    def resolve(self, name: str, *tasks: Task) -> Model:
        return lookup.resolve(self.entries, name, tasks)

    def ready_models(self) -> list[Model]:
        return lookup.ready(self.entries)


@dataclass
class Answer:
    """What a REST client would see."""

    status: int
    body: bytes
    headers: dict[str, str]
    content_type: str = "application/json"

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Rest:
    """Calls a facade's methods through the interceptor that surrounds them in the server."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self._interceptors = Interceptors(RequestMetrics())

    async def call(self, rpc: str, request: Any, headers: dict[str, str] | None = None) -> Answer:
        context: Any = Context(headers)
        handle = self._interceptors.facade("test", rpc, getattr(self.service, rpc), self.service)
        reply = await handle(request, context)
        status = context.status()
        assert status == 200 or reply.content_type == "application/json"
        return Answer(status, reply.data, context.sent, reply.content_type)

    async def post(self, rpc: str, message: Any, body: Any, headers: dict[str, str] | None = None) -> Answer:
        """Call with a JSON body: bytes as they are, anything else encoded."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.call(rpc, message(body=HttpBody(data=data)), headers)


@pytest.fixture
def rest() -> type[Rest]:
    return Rest


@pytest.fixture
def tokenizer() -> Tokenizer:
    return wordpiece()


@pytest.fixture
async def repository() -> Models:
    return Models()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """An event loop for tests that are not coroutines themselves."""
    with asyncio.Runner() as own:
        yield own


@pytest.fixture
def own_repository(runner: asyncio.Runner) -> Models:
    """A repository in the loop of ``runner``."""

    async def build() -> Models:
        models = Models()
        models.text("e", Task.EMBED)
        models.text("c", Task.CLASSIFY, labels=("yes", "no"))
        models.tensors(
            "r", [ModelTensor("x", "FP32", (2,))], [ModelTensor("y", "FP32", ())],
            lambda arrays: {"y": arrays["x"].sum(1)},
        )  # fmt: skip
        return models

    return runner.run(build())


@pytest.fixture
def call() -> Call:
    return Call(Context({}), "test")  # type: ignore[arg-type]


@pytest.fixture
def tokenizing() -> Iterator[Tokenizing]:
    pool = Tokenizing(2)
    yield pool
    pool.close()


@pytest.fixture
def reference() -> Callable[[str | tuple[str, str]], Arrays]:
    """What the in-test text model answers for one input, computed straight from its tokens."""
    own = wordpiece()

    def compute(text: str | tuple[str, str]) -> Arrays:
        encoding = own.encode(*((text,) if isinstance(text, str) else text))
        vectors = token_vectors()[encoding.ids] + np.array(encoding.type_ids, np.float32)[:, None]
        return {
            "ids": np.array(encoding.ids),
            "embedding": vectors.mean(0),
            "token_embeddings": vectors,
            "logits": vectors.mean(0)[:3] * 4,
        }

    return compute
