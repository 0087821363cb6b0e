"""The loop of a generation worker, over a real socket and with a real engine."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest
from generation_engines import VOCABULARY, encode, expected, make_spec
from hash_decoder import HashDecoder
from waiting import block_until

from headrace.runtimes.base import InvalidInputError
from headrace.runtimes.frames import FrameReader
from headrace.runtimes.generation.base import Chunk
from headrace.runtimes.generation.engine import Engine
from headrace.runtimes.generation.loop import Loop, serve
from headrace.runtimes.generation.messages import (
    Abort,
    Accepted,
    Add,
    Event,
    Outputs,
    Rejected,
    Started,
    Tokens,
)
from headrace.runtimes.generation.parameters import Grammar, Sampling
from headrace.runtimes.generation.sampling import Sampler
from headrace.runtimes.wire import frame

GREEDY = Sampling(max_tokens=8, temperature=0, ignore_eos=True)
SPEC = make_spec()


class Gate:
    """A decoder whose steps wait until they are let through."""

    def __init__(self) -> None:
        self.decoder = HashDecoder(SPEC, VOCABULARY)
        self.steps = threading.Semaphore(0)
        self.platform, self.together = self.decoder.platform, self.decoder.together
        self.vocabulary_size = VOCABULARY
        self.copy, self.release = self.decoder.copy, self.decoder.release
        self.prepare, self.close = self.decoder.prepare, self.decoder.close

    def step(self, chunks: Sequence[Chunk]) -> object:
        self.steps.acquire()
        return self.decoder.step(chunks)


class Even:
    """A compiled grammar: every token is even, and there are three."""

    def __init__(self, length: int = 0) -> None:
        self.length = length

    def matcher(self) -> Even:
        return Even()

    def mask(self, row: object) -> None:
        row[1::2] = -float("inf")  # type: ignore[index]

    def accept(self, token: int) -> None:
        self.length += 1

    def copy(self) -> Even:
        return Even(self.length)

    @property
    def terminated(self) -> bool:
        return self.length >= 3


class Client:
    """The server's end of a loop that runs in a thread."""

    def __init__(self, decoder: object, compile_grammar: Callable[[Grammar], object] | None = None) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.socket.settimeout(30)
        self.reader = FrameReader(self.socket)
        self.engine = Engine(decoder, Sampler(VOCABULARY, SPEC.eos_ids), SPEC)  # type: ignore[arg-type]
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        loop = Loop(FrameReader(self.theirs), self.theirs, self.engine, compile_grammar, self.wake)  # type: ignore[arg-type]
        self.thread = threading.Thread(target=loop.run)
        self.thread.start()

    def send(self, *messages: Add | Abort) -> None:
        self.socket.sendall(b"".join(frame(message) for message in messages))

    def read(self) -> Outputs:
        message = self.reader.read(msgspec.msgpack.Decoder(Outputs))
        assert message is not None
        return message

    def until(self, ends: Callable[[Event], bool]) -> list[Event]:
        events: list[Event] = []
        while not any(map(ends, events)):
            events += self.read().events
        return events

    def close(self) -> None:
        self.socket.close()
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.theirs.close()
        os.close(self.wake)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def start() -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def starter(*arguments: object) -> Client:
        clients.append(Client(*arguments))  # type: ignore[arg-type]
        return clients[-1]

    yield starter
    for client in clients:
        client.close()


def finished(request: int) -> Callable[[Event], bool]:
    return lambda event: (
        event.request == request
        and (isinstance(event, Rejected) or (isinstance(event, Tokens) and event.finish is not None))
    )


def tokens_of(events: list[Event], request: int) -> list[int]:
    return [
        token
        for event in events
        if isinstance(event, Tokens) and event.request == request
        for token in event.token_ids
    ]


def test_a_loop_with_nothing_to_run_prepares(start: Callable[..., Client]) -> None:
    """Until nothing is left to prepare; requests are served before, in between and after."""
    decoder = HashDecoder(SPEC, VOCABULARY)
    client = start(decoder)
    for number in range(3):
        client.send(Add(number, encode([5, 6, 7]), GREEDY))
        client.until(finished(number))
        block_until(lambda: decoder.prepared == 3)


def test_requests_in_one_write_are_all_served(start: Callable[..., Client]) -> None:
    client = start(HashDecoder(SPEC, VOCABULARY))
    prompts = [[5, 6, 7 + number] for number in range(6)]
    client.send(*(Add(number, encode(prompt), GREEDY) for number, prompt in enumerate(prompts)))
    events: list[Event] = []
    while sum(finished(request)(event) for event in events for request in range(6)) < 6:
        events += client.read().events
    for request, prompt in enumerate(prompts):
        assert tokens_of(events, request) == expected(prompt, GREEDY, SPEC).samples[0]


def test_a_message_that_comes_in_pieces_holds_up_nobody(start: Callable[..., Client]) -> None:
    client = start(HashDecoder(SPEC, VOCABULARY))
    late = frame(Add(2, encode([7, 8, 9]), GREEDY))
    client.send(Add(1, encode([5, 6]), GREEDY))
    client.socket.sendall(late[:7])
    client.until(finished(1))
    client.socket.sendall(late[7:])
    events = client.until(finished(2))
    assert tokens_of(events, 2) == expected([7, 8, 9], GREEDY, SPEC).samples[0]


def test_started_is_sent_before_the_first_step(gate: Gate, start: Callable[..., Client]) -> None:
    client = start(gate)
    client.send(Add(1, encode([5, 6]), GREEDY))
    assert client.read().events == (Started(1, 0),)
    gate.steps.release(100)
    client.until(finished(1))


def test_an_abort_frees_its_slot_and_blocks_before_the_next_step(
    gate: Gate, start: Callable[..., Client]
) -> None:
    client = start(gate)
    client.send(*(Add(request, encode([5, 6, request]), GREEDY) for request in range(5)))
    # four slots are taken, one request waits; the step is held
    assert len(client.read().events) == 4
    client.send(Abort(1))
    gate.steps.release()
    outputs = client.read()
    assert {event.request for event in outputs.events} >= {0, 2, 3}
    outputs = client.read()
    assert outputs.events == (Started(4, 0),)
    assert outputs.stats.running == 4
    gate.steps.release(100)
    client.until(finished(4))


def test_one_sample_is_ended_before_the_next_step(gate: Gate, start: Callable[..., Client]) -> None:
    client = start(gate)
    client.send(Add(1, encode([5, 6]), msgspec.structs.replace(GREEDY, n=3, best_of=3)))
    gate.steps.release()
    assert client.read().events == (Started(1, 0),)
    assert [event.sample for event in client.read().events if isinstance(event, Tokens)] == [0, 1, 2]
    client.send(Abort(1, 1))
    gate.steps.release(2)
    client.read()  # of the step that may have begun before the message came
    outputs = client.read()
    assert [event.sample for event in outputs.events if isinstance(event, Tokens)] == [0, 2]
    assert (outputs.stats.running, outputs.stats.free_slots) == (2, 2)
    gate.steps.release(100)
    client.until(finished(1))


def test_the_server_learns_that_an_abort_left_nothing_to_do(gate: Gate, start: Callable[..., Client]) -> None:
    client = start(gate)
    client.send(Add(1, encode([5, 6]), GREEDY))
    assert client.read().stats.free_slots == 3
    client.send(Abort(1))
    gate.steps.release()
    while (outputs := client.read()).events:
        pass
    assert outputs.stats.free_slots == 4
    assert outputs.stats.free_blocks == outputs.stats.total_blocks


def test_an_idle_loop_uses_no_processor_time(start: Callable[..., Client]) -> None:
    client = start(HashDecoder(SPEC, VOCABULARY))
    client.send(Add(1, encode([5, 6]), GREEDY))
    client.until(finished(1))

    def used() -> float:
        return time.clock_gettime(time.pthread_getcpuclockid(client.thread.ident or 0))

    time.sleep(0.05)
    before = used()
    time.sleep(0.3)
    # processor time of one thread, not time that passes: a loop that looked at its socket would use 0.3 s
    assert used() - before < 0.05


def test_a_grammar_is_compiled_beside_the_engine(start: Callable[..., Client]) -> None:
    going = threading.Event()

    def compile_grammar(grammar: Grammar) -> Even:
        assert going.wait(30)
        if grammar.text == "bad":
            raise InvalidInputError("the grammar is wrong")
        if grammar.text == "broken":
            raise RuntimeError("compiler broken")
        return Even()

    client = start(HashDecoder(SPEC, VOCABULARY), compile_grammar)
    texts = {1: "good", 2: "bad", 3: "broken", 4: "good"}
    for request, text in texts.items():
        sampling = msgspec.structs.replace(GREEDY, grammar=Grammar("regex", text))
        client.send(Add(request, encode([5, 6]), sampling))
    client.send(Add(9, encode([5, 6]), GREEDY))
    events = client.until(finished(9))
    assert {event.request for event in events} == {9}
    # one that nobody waits for any more is dropped
    client.send(Abort(4), Add(10, encode([5, 6]), GREEDY))
    client.until(finished(10))
    going.set()
    events = []
    while sum(finished(request)(event) for event in events for request in (1, 2, 3)) < 3:
        events += client.read().events
    mine = [event for event in events if event.request == 1]
    assert mine[:2] == [Accepted(1), Started(1, 0)]
    assert len(tokens_of(events, 1)) == 3
    assert all(token % 2 == 0 for token in tokens_of(events, 1))
    assert isinstance(mine[-1], Tokens)
    assert mine[-1].finish == "stop"
    refusals = {event.request: event for event in events if isinstance(event, Rejected)}
    assert refusals[2] == Rejected(2, "invalid", "the grammar is wrong")
    assert refusals[3].kind == "execution"
    assert "compiler broken" in refusals[3].message
    client.send(Add(11, encode([5, 6]), GREEDY))
    assert 4 not in {event.request for event in client.until(finished(11))}


def test_grammars_without_a_tokenizer_are_refused(start: Callable[..., Client]) -> None:
    client = start(HashDecoder(SPEC, VOCABULARY))
    client.send(Add(1, encode([5]), msgspec.structs.replace(GREEDY, grammar=Grammar("json_object"))))
    (event,) = client.read().events
    assert isinstance(event, Rejected)
    assert event.kind == "invalid"
    assert "tokenizer.json" in event.message


def test_impossible_requests_are_refused_whether_idle_or_not(start: Callable[..., Client]) -> None:
    client = start(HashDecoder(SPEC, VOCABULARY), lambda _: Even())
    client.send(Add(1, b"", GREEDY))
    assert isinstance(client.read().events[0], Rejected)
    client.send(Add(2, encode([99]), msgspec.structs.replace(GREEDY, grammar=Grammar("json_object"))))
    assert isinstance(client.read().events[0], Rejected)


def test_beams_are_accepted_or_refused_at_once_however_long_they_wait(
    gate: Gate, start: Callable[..., Client]
) -> None:
    client = start(gate)
    beams = msgspec.structs.replace(GREEDY, n=4, best_of=4, beam=True)
    client.send(Add(1, encode([5, 6]), GREEDY))
    assert client.read().events == (Started(1, 0),)
    client.send(
        Add(2, encode([5, 6]), beams), Add(3, encode([5, 6]), msgspec.structs.replace(beams, best_of=5))
    )
    gate.steps.release()
    events = client.until(lambda event: isinstance(event, Rejected))
    assert [type(event) for event in events if event.request > 1] == [Accepted, Rejected]
    for _ in range(40):
        gate.steps.release()
    assert isinstance(client.until(finished(2))[-1], Tokens)


def test_serving_ends_when_the_server_closes_its_socket_even_in_the_middle() -> None:
    mine, theirs = socket.socketpair()
    closed = []
    decoder = HashDecoder(SPEC, VOCABULARY)
    decoder.close = lambda: closed.append(True)  # type: ignore[method-assign]
    with mine, theirs:
        thread = threading.Thread(target=serve, args=(FrameReader(theirs), theirs, decoder, SPEC))
        thread.start()
        mine.sendall(frame(Add(1, encode([5]), GREEDY))[:9])
        mine.close()
        thread.join(30)
        assert not thread.is_alive()
    assert closed
