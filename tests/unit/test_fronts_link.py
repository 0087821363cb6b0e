"""Messages between core and front: whole whatever their size, errors and counters as they were."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import socket

import pytest
from waiting import until

from headrace.server import errors
from headrace.server.errors import HeadraceError, QueueFullError
from headrace.server.fronts import forwarding
from headrace.server.fronts.counting import take_totals
from headrace.server.fronts.errors import pack_error, unpack_error
from headrace.server.fronts.link import Link
from headrace.server.fronts.messages import TO_CORE, Cancel, Input, PartMessage, Run, ToCore
from headrace.server.services import registry
from headrace.server.telemetry.generation import GenerationStatistics
from headrace.server.telemetry.requests import RequestLabels, RequestMetrics, Series
from headrace.server.telemetry.statistics import ModelStatistics
from headrace.server.telemetry.sums import add, take

ERRORS = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, HeadraceError) and value.__module__ == errors.__name__
]


def run_message(request: int, size: int) -> Run:
    content = bytes([request % 256]) * size
    part = PartMessage((Input("IN", "UINT8", (size,), memoryview(content)),), ("OUT",), 1, 0, b"key")
    return Run(request, 7, (part,), 0, 0, wait=False)


async def test_messages_of_every_size_arrive_whole_and_in_order() -> None:
    sizes = [0, 1, 100, 262_144 - 20, 262_144, 3_000_000, 5, 70_000] * 3
    ours, theirs = socket.socketpair()
    received: list[ToCore] = []
    ended = asyncio.Event()
    link = await Link.over(ours, TO_CORE, received.append, ended.set)
    peer = await Link.over(theirs, TO_CORE, received.append, lambda: None)
    for number, size in enumerate(sizes):
        peer.send(run_message(number, size))
    peer.close()
    await ended.wait()
    assert len(received) == len(sizes)
    for number, (message, size) in enumerate(zip(received, sizes, strict=True)):
        assert isinstance(message, Run)
        assert message.request == number
        assert bytes(message.parts[0].inputs[0].data) == bytes([number]) * size
    link.send(Cancel(1))  # to nobody: no error


async def test_a_message_in_pieces_of_one_byte() -> None:
    ours, theirs = socket.socketpair()
    received: list[ToCore] = []
    link = await Link.over(ours, TO_CORE, received.append, lambda: None)
    frames: list[bytes] = []
    recorder = Link(TO_CORE, received.append, lambda: None)
    recorder._transport = type("Transport", (), {"write": lambda _, data: frames.append(bytes(data))})()
    recorder.send(Cancel(5))
    recorder.send(run_message(6, 300))
    for byte in b"".join(frames):
        theirs.sendall(bytes([byte]))
        await asyncio.sleep(0)
    await until(lambda: len(received) == 2)
    assert [getattr(message, "request", None) for message in received] == [5, 6]
    link.close()
    theirs.close()


async def test_a_patient_link_stops_reading_while_its_answers_are_not_read() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    received: list[ToCore] = []
    link = await Link.over(ours, TO_CORE, received.append, lambda: None, patient=True)
    for number in range(20):
        link.send(run_message(number, 1_000_000))
    await asyncio.sleep(0.01)
    peer_link = Link(TO_CORE, received.append, lambda: None)
    frames: list[bytes] = []
    peer_link._transport = type("Transport", (), {"write": lambda _, data: frames.append(bytes(data))})()
    peer_link.send(Cancel(5))
    theirs.sendall(frames[0])
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not received
    peer = await Link.over(theirs, TO_CORE, lambda _: None, lambda: None)
    await until(lambda: received)
    assert received == [Cancel(5)]
    link.close()
    peer.close()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_keep_their_class_and_their_facts(error: type[HeadraceError]) -> None:
    found = unpack_error(pack_error(error("no room", model="m", limit="3")))
    assert type(found) is error
    assert isinstance(found, HeadraceError)
    assert (found.message, found.metadata) == ("no room", {"model": "m", "limit": "3"})


def test_the_text_of_an_unexpected_error_stays_in_the_core() -> None:
    found = unpack_error(pack_error(KeyError("secret")))
    assert not isinstance(found, HeadraceError)
    assert "secret" not in str(found)


def test_counters_are_taken_once_and_added_up() -> None:
    here, total = ModelStatistics(), ModelStatistics()
    for seconds in (0.001, 0.2):
        here.queue_seconds.observe(seconds)
    here.success.add(500)
    here.failed(20, "REJECTED")
    here.texts.observe_started(3)
    total.queue_seconds.observe(7.0)
    total.success.add(1)
    counts = pickle.loads(pickle.dumps(take(here)))  # noqa: S301 - our own
    assert take(here) == {}
    add(total, counts)
    assert (total.success.count, total.success.ns, total.failures["REJECTED"]) == (2, 501, 1)
    assert (total.texts.inputs, total.texts.batches) == (3, 1)
    assert sum(total.queue_seconds.counts) == 3
    assert total.queue_seconds.total == pytest.approx(7.201)


def test_a_request_that_ends_after_a_report_is_counted_in_the_next() -> None:
    requests = RequestMetrics()
    labels = RequestLabels("kserve", "ModelInfer", "m", "1", "tensors")
    model = ModelStatistics()
    texts = model.texts  # what a running request holds
    texts.observe_started(1)
    requests.ended(labels, "OK", 0.1)
    first = take_totals(requests, {4: model})
    texts.observe_failed()
    requests.ended(labels, "INTERNAL", 0.1, QueueFullError)
    second = take_totals(requests, {4: model})
    third = take_totals(requests, {4: model})
    assert first.series[labels]["codes"] == {"OK": 1}
    assert first.models == {4: {"texts": {"singles": 1, "inputs": 1}}}
    assert second.series[labels]["codes"] == {"INTERNAL": 1}
    assert second.series[labels]["errors"] == {QueueFullError: 1}
    assert second.models == {4: {"texts": {"failures": 1}}}
    assert (third.series, third.models) == ({}, {})
    total = Series()
    for totals in (first, second):
        add(total, totals.series[labels])
    assert total.codes == {"OK": 1, "INTERNAL": 1}
    assert sum(total.durations.counts) == 2


def test_the_counters_of_generation_include_those_of_every_model() -> None:
    here = GenerationStatistics(ModelStatistics(), 64, block_tokens=0)
    total = GenerationStatistics(ModelStatistics(), 64, block_tokens=16, draft_tokens=4)
    here.finished["stop"] += 2
    here.totals.success.add(9)
    here.tgi.seconds.observe(0.5)
    add(total, take(here))
    assert (total.finished["stop"], total.totals.success.count, total.tgi.block_tokens) == (2, 1, 16)
    assert sum(total.tgi.seconds.counts) == 1


def test_forwarded_methods_exist_and_answer_once() -> None:
    methods = {
        f"/{service.full_name}/{method.name}": method
        for service in registry.descriptors()
        for method in service.methods
    }
    for name in forwarding.FORWARDED:
        assert name in methods, name
        assert not methods[name].client_streaming, name
        assert not methods[name].server_streaming, name
