"""Requests off the wire: what is taken out of them is what the parser would have found."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from headrace.kserve.v2.grpc_service_pb2 import ModelInferRequest
from headrace.server.codecs import kserve_received
from headrace.server.codecs.kserve_received import LARGE, receive


def outcome(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """The request without its raw tensors, and those; None where it is refused."""
    try:
        message, raw = receive(data)
    except (DecodeError, UnicodeDecodeError):
        return None
    found = [bytes(each) for each in raw]
    rest = ModelInferRequest()
    rest.CopyFrom(message)
    rest.ClearField("raw_input_contents")
    return rest.SerializeToString(deterministic=True), found


def same(data: bytes) -> None:
    """With and without looking for tensors the outcome is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kserve_received, "LARGE", 0)
        split = outcome(data)
        patch.setattr(kserve_received, "LARGE", len(data) + 1)
        assert split == outcome(data)


def message(raw: list[bytes], name: str = "m", priority: int = 0) -> ModelInferRequest:
    request = ModelInferRequest(model_name=name, id="7", raw_input_contents=raw)
    for index in range(len(raw)):
        request.inputs.add(name=f"x{index}", datatype="UINT8", shape=[len(raw[index])])
    request.parameters["priority"].int64_param = priority
    return request


@given(st.lists(st.binary(max_size=300)), st.text(max_size=20), st.integers(-(2**63), 2**63 - 1))
def test_any_request_is_received_as_it_was_sent(raw: list[bytes], name: str, priority: int) -> None:
    same(message(raw, name, priority).SerializeToString())


@given(st.lists(st.lists(st.binary(max_size=40), max_size=3), min_size=2, max_size=4))
def test_fields_may_come_in_any_order(parts: list[list[bytes]]) -> None:
    """Messages one after another are one message, whose repeated fields are joined."""
    same(b"".join(message(raw).SerializeToString() for raw in parts))


@given(st.data())
def test_damaged_requests_are_refused_as_by_the_parser(data: st.DataObject) -> None:
    """Cut, changed, or with anything in front, in the middle or behind."""
    whole = message([b"12345678", b"", b"x" * 200]).SerializeToString()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    same(whole[:start] + data.draw(st.binary(max_size=12)) + whole[end:])


def test_large_tensors_are_not_copied() -> None:
    tensors = [bytes(range(256)) * 512, b"\x01" * LARGE]
    received = receive(message(tensors).SerializeToString())
    assert not received.message.raw_input_contents
    assert received.raw == tensors
    assert {type(each) for each in received.raw} == {memoryview}
    assert received.message.inputs[1].name == "x1"


def test_small_requests_are_left_to_the_parser() -> None:
    received = receive(message([b"12"]).SerializeToString())
    assert list(received.raw) == list(received.message.raw_input_contents) == [b"12"]
