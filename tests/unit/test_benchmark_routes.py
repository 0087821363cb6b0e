"""Generation benchmarks: what every path is asked and how its answer is read, and the words of prompts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from benchmark_import import module

routes = module("generation.routes")
scenarios = module("generation.scenarios")
typed = module("generation.typed")
words = module("generation.words")


def test_typed_requests_are_read_back_as_tokens() -> None:
    route = routes.ROUTES["grpc"]
    request = typed.generation_pb2.GenerateStreamRequest.FromString(
        route.body("m", words.Prompt([5, 6], ""), 3)
    )
    assert (request.model, list(request.token_ids.ids)) == ("m", [5, 6])
    assert (request.parameters.max_tokens, request.parameters.temperature) == (3, 0.0)
    assert request.parameters.HasField("temperature")
    assert request.parameters.ignore_eos
    pieces = []
    for moment, ids in ((1.0, []), (2.0, [7]), (3.0, [8, 9])):
        delta = typed.generation_pb2.TextDelta(token_ids=ids)
        message = typed.generation_pb2.GenerateStreamResponse(delta=delta).SerializeToString()
        pieces.append((moment, struct.pack(">BI", 0, len(message)) + message))
    assert route.read(pieces, 3) == ([2.0, 3.0, 3.0], [7, 8, 9])


VOCABULARY = {"Ġriver": 7, "Ġstone": 9, "Ġa": 4, "river": 5, "Ġ12": 6, "<|im_end|>": 2}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Words of a vocabulary of which two are whole words with a space before them."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": VOCABULARY}}))
    return words.Words(tmp_path / "tokenizer.json")


def test_words_are_the_same_tokens_as_text_and_as_ids(written: Any) -> None:
    assert written.write([0, 1, 3]) == ([7, 9, 9], " river stone stone")
    assert len(written.write(range(128)).ids) == len(written.write(range(128)).text.split()) == 128


def test_a_vocabulary_without_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1}}}))
    with pytest.raises(ValueError, match="no words"):
        words.Words(tmp_path / "tokenizer.json")


def test_an_endless_model_is_the_same_without_the_tokens_that_end_a_text(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "m"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text("name")
    (model / "1" / "model.onnx").write_bytes(b"graph")
    (model / "1" / "config.json").write_text('{"eos_token_id": 2, "hidden_size": 4}')
    (model / "1" / "generation_config.json").write_text('{"eos_token_id": [2], "bos_token_id": 1}')
    (model / "1" / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "x"}')
    copy = words.endless(model, tmp_path / "endless") / "m"
    assert (copy / "config.pbtxt").read_text() == "name"
    assert (copy / "1" / "model.onnx").read_bytes() == b"graph"
    assert json.loads((copy / "1" / "config.json").read_text()) == {"hidden_size": 4}
    assert json.loads((copy / "1" / "generation_config.json").read_text()) == {"bos_token_id": 1}
    assert json.loads((copy / "1" / "tokenizer_config.json").read_text()) == {"bos_token": "x"}
    assert "eos_token_id" in (model / "1" / "config.json").read_text()


def chunked(*contents: dict[str, Any]) -> list[tuple[float, bytes]]:
    """An SSE answer whose events came at 1.0, 2.0, …"""
    pieces = [(0.5, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")]
    for number, content in enumerate(contents):
        event = b"data: " + json.dumps(content).encode() + b"\n\n"
        pieces.append((number + 1.0, b"%x\r\n%s\r\n" % (len(event), event)))
    return pieces


def test_every_path_has_a_route_that_asks_for_the_same() -> None:
    prompt = words.Prompt([7, 9], " river stone")
    assert set(routes.ROUTES) == set(scenarios.EVERY_PATH)
    for name, route in routes.ROUTES.items():
        body = route.body("m", prompt, 64)
        assert b" river stone" in body or b"\x07\x09" in body or b"[7, 9]" in body, name
        assert b"64" in body or b"\x40" in body, name
        assert route.target.format(model="m").startswith("/")


@pytest.mark.parametrize("name", ["tgi", "compat"])
def test_tgi_events_are_tokens(name: str) -> None:
    read = routes.ROUTES[name].read
    first = {"token": {"id": 5, "text": "a"}, "generated_text": None}
    last = {"token": {"id": 6, "text": ""}, "generated_text": "a"}
    assert read(chunked(first, last), 2) == ([1.0, 2.0], [5, 6])
    with pytest.raises(ValueError, match="no generated text"):
        read(chunked(first), 2)
    with pytest.raises(ValueError, match="has an error"):
        read(chunked(first, {"error": "gone", "error_type": "generation"}), 2)


def test_pieces_of_tritons_text_stand_for_the_tokens_that_were_asked_for() -> None:
    read = routes.ROUTES["triton-rest"].read
    assert read(chunked({"text_output": "a"}, {"text_output": "bc"}), 3) == ([1.0, 1.0, 2.0], [])
    with pytest.raises(ValueError, match="has an error"):
        read(chunked({"text_output": "a"}, {"error": "gone"}), 3)
    with pytest.raises(ValueError, match="no text"):
        read(chunked(), 3)


def test_modelstreaminfer_ends_with_a_final_response() -> None:
    stream = module("generation.triton_stream")
    request = stream.kserve.ModelInferRequest.FromString(
        stream.triton_body("m", words.Prompt([7], " river"), 3)
    )
    assert [entry.name for entry in request.inputs] == ["text_input", "sampling_parameters", "stream"]
    assert request.raw_input_contents[0] == struct.pack("<I", 6) + b" river"

    def answers(*finals: bool, error: str = "") -> list[tuple[float, bytes]]:
        pieces = []
        for number, final in enumerate(finals):
            response = stream.kserve.ModelStreamInferResponse(error_message=error)
            response.infer_response.parameters["triton_final_response"].bool_param = final
            message = response.SerializeToString()
            pieces.append((number + 1.0, struct.pack(">BI", 0, len(message)) + message))
        return pieces

    read = routes.ROUTES["triton-grpc"].read
    assert read(answers(False, True), 2) == ([1.0, 2.0], [])
    with pytest.raises(ValueError, match="no final response"):
        read(answers(False, False), 2)
    with pytest.raises(ValueError, match="has an error: gone"):
        read(answers(True, error="gone"), 2)


def test_an_answer_in_one_piece_has_all_its_tokens_at_the_end() -> None:
    answer = typed.generation_pb2.GenerateResponse()
    answer.samples.add(token_ids=[7, 8])
    message = answer.SerializeToString()
    framed = struct.pack(">BI", 0, len(message)) + message
    read = routes.ROUTES["unary"].read
    assert read([(1.0, framed[:7]), (2.0, framed[7:])], 2) == ([2.0, 2.0], [7, 8])
    with pytest.raises(ValueError, match="2 answers"):
        read([(1.0, framed + framed)], 2)
