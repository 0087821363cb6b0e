"""A generation worker over its real sockets: a decoder is loaded and run by the engine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import transformers
from tiny_decoders import SIZES, Oracle, build
from worker_process import REPLY_TIMEOUT_S, WorkerProcess

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.generation.messages import Abort, Add, Event, Outputs, PromptLogprobs, Tokens
from headrace.runtimes.generation.parameters import Grammar, Sampling
from headrace.runtimes.wire import Load, Loaded, LoadFailed, Reply

GREEDY = Sampling(max_tokens=12, temperature=0)


class Worker:
    """A worker that generates."""

    def __init__(self) -> None:
        # it gets regions as every worker does, and has no use for them
        self.own = WorkerProcess()

    def load(self, folder: Path) -> Reply:
        spec = GenerationSpec(max_tokens=96, max_sequences=4, kv_tokens=384, block_tokens=4)
        self.own.send(Load(InstanceSpec("tiny", "torch", str(folder), generation=spec)))
        replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
        return self.own.receive(replies)

    def add(self, request: int, prompt: list[int], sampling: Sampling) -> None:
        self.own.send(Add(request, np.array(prompt, "<i4").tobytes(), sampling))

    def events(self) -> tuple[Event, ...]:
        return self.own.receive(msgspec.msgpack.Decoder(Outputs)).events


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("llama"), transformers.LlamaConfig(**SIZES))


@pytest.fixture
def start() -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def starter() -> Worker:
        workers.append(Worker())
        return workers[-1]

    yield starter
    for worker in workers:
        worker.own.close()


@pytest.fixture(scope="module")
def served(llama: Path) -> Iterator[Worker]:
    """A worker that has the model, for tests that only ask it: each request's number is used once."""
    worker = Worker()
    assert isinstance(worker.load(llama), Loaded)
    yield worker
    assert worker.own.close() == 0


def collect(worker: Worker, requests: set[int]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {request: [] for request in requests}
    while requests:
        for event in worker.events():
            found[event.request].append(event)
            if isinstance(event, Tokens) and event.finish is not None:
                requests = requests - {event.request}
    return found


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.token_ids]


def test_requests_of_any_arrival_get_the_tokens_of_transformers(llama: Path, served: Worker) -> None:
    worker, oracle = served, Oracle(llama)
    prompts = {number: [(7 * number + place) % 97 for place in range(3 + 9 * number)] for number in range(6)}
    for request, prompt in prompts.items():
        worker.add(request, prompt, GREEDY)
    found = collect(worker, set(prompts))
    for request, prompt in prompts.items():
        assert tokens_of(found[request]) == oracle.generate(prompt, 12)
    # the same again, with what the cache holds now, and the prompt's logprobs
    worker.add(7, prompts[5], msgspec.structs.replace(GREEDY, prompt_logprobs=0, n=2, best_of=2))
    events = collect(worker, {7})[7]
    (scored,) = (event for event in events if isinstance(event, PromptLogprobs))
    logits = oracle.logits(prompts[5])[:-1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = logprobs[np.arange(len(logits)), prompts[5][1:]]
    got = [entry.logprob for entry in scored.logprobs if entry is not None]
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_an_abort_is_not_answered_and_leaves_room(served: Worker) -> None:
    for request in range(10, 14):
        served.add(request, [5, 6, request], msgspec.structs.replace(GREEDY, max_tokens=90))
    served.add(19, [5, 6, 9], GREEDY)
    for request in range(10, 14):
        served.own.send(Abort(request))
    events: list[Event] = []
    while not any(isinstance(event, Tokens) and event.finish and event.request == 19 for event in events):
        events += served.events()


def test_a_grammar_without_a_tokenizer_is_refused(served: Worker) -> None:
    served.add(20, [5, 6], msgspec.structs.replace(GREEDY, grammar=Grammar("json_object")))
    assert "tokenizer" in str(served.events())


def test_ctrl_c_is_the_servers_affair(served: Worker) -> None:
    served.own.process.send_signal(signal.SIGINT)
    served.add(21, [5, 6], GREEDY)
    assert len(tokens_of(collect(served, {21})[21])) == 12


def test_the_worker_ends_in_the_middle_of_a_step(llama: Path, start: Callable[[], Worker]) -> None:
    worker = start()
    loaded = worker.load(llama)
    assert isinstance(loaded, Loaded)
    assert (loaded.inputs, loaded.outputs) == ((), ())
    worker.add(1, [5, 6], msgspec.structs.replace(GREEDY, max_tokens=90))
    worker.events()
    assert worker.own.close() == 0


def test_what_cannot_be_loaded_is_told(tmp_path: Path, start: Callable[[], Worker]) -> None:
    worker = start()
    reply = worker.load(tmp_path)
    assert isinstance(reply, LoadFailed)
    assert "config.json" in reply.message
    assert worker.own.process.wait(REPLY_TIMEOUT_S) == 1
