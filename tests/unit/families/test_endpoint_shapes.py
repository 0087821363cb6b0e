"""What bodies of ``POST /``, ``/invocations`` and ``/vertex`` are taken for."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.server.codecs import endpoint
from headrace.server.codecs.endpoint import Invocation, Shape
from headrace.server.codecs.endpoint_refusals import check_served
from headrace.server.codecs.endpoint_vertex import instance_values, predictions_json, text_of_chat
from headrace.server.errors import InvalidArgumentError, InvalidJsonError
from headrace.server.repository.model import Task

SENTENCES = {"source_sentence": "a", "sentences": ["b"]}


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ({"inputs": "a"}, Shape.TEXT),
        ({"inputs": "a", "parameters": {}}, Shape.TEXT),
        ({"inputs": "a", "parameters": None, "stream": False}, Shape.TEXT),
        ({"inputs": "a", "parameters": {"top_k": 2}}, Shape.TEXT),  # of both kinds
        ({"inputs": "a", "parameters": {"temperature": None}}, Shape.TEXT),
        ({"inputs": "a", "stream": True}, Shape.GENERATION),
        ({"inputs": "a", "parameters": {"max_new_tokens": 2}}, Shape.GENERATION),
        ({"inputs": "a", "parameters": {"truncate": 5, "details": False}}, Shape.GENERATION),
        ({"inputs": "a", "parameters": {"function_to_apply": "none"}}, Shape.LABELS),
        ({"inputs": "a", "raw_scores": False}, Shape.LABELS),
        ({"inputs": "a", "raw_scores": True, "truncate": True}, Shape.LABELS),
        ({"inputs": "a", "normalize": False}, Shape.VECTORS),
        ({"inputs": "a", "parameters": {"prompt_name": "query"}}, Shape.VECTORS),
        ({"inputs": "a", "truncation_direction": "left"}, Shape.TEXTS),
        ({"inputs": "a", "truncate": True, "normalize": True}, Shape.VECTORS),
        ({"inputs": "a", "parameters": {"truncate": 5}}, Shape.TEXT),
        ({"inputs": ["a"]}, Shape.TEXTS),
        ({"inputs": [1, 2]}, Shape.TEXTS),
        ({"inputs": SENTENCES}, Shape.SIMILARITY),
        ({"inputs": SENTENCES, "parameters": {"truncate": True}}, Shape.SIMILARITY),
        ({"inputs": {"question": "a", "context": "b"}}, Shape.OTHER),
        ({"query": "a", "texts": ["b"]}, Shape.RANKING),
        ({"query": "a", "documents": ["b"]}, Shape.OTHER),
        ({"query": "a"}, Shape.OTHER),
        ({"inputs": None}, Shape.OTHER),
        ({}, Shape.OTHER),
    ],
)
def test_shape(body: Any, shape: Shape) -> None:
    assert endpoint.shape(body) is shape


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"inputs": "a", "messages": [], "input": "b"}, Invocation.RUN),
        ({"messages": [], "prompt": "a", "input": "b"}, Invocation.CHAT),
        ({"inputs": None, "messages": None, "prompt": "a", "input": "b"}, Invocation.COMPLETION),
        ({"input": "a", "query": "b", "documents": ["c"]}, Invocation.INPUT),
        ({"query": "a", "documents": ["b"]}, Invocation.RANKING),
        ({"query": "a", "documents": ["b"], "texts": ["c"]}, Invocation.RUN),
        ({"query": "a", "documents": None}, Invocation.RUN),
        ({"data_1": "a", "data_2": "b"}, Invocation.SCORES),
        ({"queries": "a", "documents": "b"}, Invocation.SCORES),
        ({"queries": "a", "items": "b"}, Invocation.SCORES),
        ({"text_1": "a", "text_2": "b"}, Invocation.SCORES),
        ({"data_1": "a"}, Invocation.RUN),
        ({}, Invocation.RUN),
    ],
)
def test_invocation(body: Any, asked: Invocation) -> None:
    assert endpoint.invocation(body) is asked


def test_every_shape_has_tasks() -> None:
    assert set(endpoint.TASKS) == set(Shape)
    assert endpoint.TASKS[Shape.TEXT][0] is Task.GENERATE


@pytest.mark.parametrize(
    ("body", "task"),
    [
        ({"inputs": {"question": "a", "context": "b"}}, "Question answering"),
        ({"inputs": "a", "parameters": {"max_answer_len": 3}}, "Question answering"),
        ({"inputs": {"table": {}, "query": "b"}}, "Table question answering"),
        ({"inputs": {"image": "b64", "question": "b"}}, "Visual question answering"),
        ({"inputs": {"text": "a", "past_user_inputs": []}}, "The conversational task"),
        ({"inputs": {"anything": 1}}, "A request with such an object as `inputs`"),
        ({"inputs": "a", "parameters": {"candidate_labels": ["b"]}}, "Zero-shot classification"),
        ({"inputs": "a", "parameters": {"aggregation_strategy": "simple"}}, "Token classification"),
        ({"inputs": "a", "parameters": {"targets": ["b"]}}, "Filling masks"),
        ({"inputs": "a", "parameters": {"src_lang": "en"}}, "Translation"),
        ({"inputs": "a", "parameters": {"generate_parameters": {}}}, "Summarization or translation"),
        ({"inputs": "UklGRg==", "parameters": {"return_timestamps": True}}, "Speech recognition"),
        ({"inputs": "a", "parameters": {"num_inference_steps": 3}}, "Image generation"),
    ],
)
@pytest.mark.parametrize("kind", [Task.EMBED, Task.CLASSIFY, Task.RERANK])
async def test_tasks_that_no_model_has(repository: Any, body: Any, task: str, kind: Task) -> None:
    model = repository.text("m", kind, labels=("a",))
    with pytest.raises(InvalidArgumentError) as refused:
        check_served(body, model)
    text = refused.value.message
    assert text.startswith(f"{task} is not what model 'm' does. It ")
    assert text.endswith("Anything else: ask a model that generates text, at /v1/chat/completions.")


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "a", "parameters": {"candidate_labels": None}},
        {"inputs": SENTENCES, "parameters": {}},
        {"query": "a", "texts": ["b"]},
        {"inputs": ["a"], "parameters": 3},
    ],
)
async def test_tasks_that_some_model_has(repository: Any, body: Any) -> None:
    check_served(body, repository.text("m", Task.EMBED))


@pytest.mark.parametrize("kind", ["", "application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_json_of_any_textual_type(kind: str) -> None:
    assert endpoint.body_object(kind, b' {"inputs": "a"}') == {"inputs": "a"}


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("audio/wav", b'{"inputs": "a"}'),
        ("Image/PNG; x=y", b"\x89PNG"),
        ("application/octet-stream", b"\xff\xd8"),
        ("", b"RIFF"),
    ],
)
def test_media(kind: str, data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="audio, images"):
        endpoint.body_object(kind, data)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null"])
def test_bodies_that_are_no_objects(data: bytes) -> None:
    with pytest.raises(InvalidJsonError):
        endpoint.body_object("application/json", data)


def test_options_move_to_the_root() -> None:
    body = {"inputs": "a", "normalize": True, "parameters": {"normalize": False, "dimensions": 2}}
    assert endpoint.embed_value(body) == {"inputs": "a", "normalize": True, "dimensions": 2}


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ({"inputs": ["a", "b"]}, ["a", "b"]),  # a pair
        ({"inputs": ["a", "b"], "parameters": {}}, [["a"], ["b"]]),  # two texts
        ({"inputs": "a", "parameters": {}}, [["a"]]),
        ({"inputs": [["a", "b"]], "parameters": {}}, [["a", "b"]]),
        ({"inputs": 3, "parameters": {}}, 3),
    ],
)
def test_lists_of_pipelines_are_batches(body: Any, inputs: Any) -> None:
    assert endpoint.label_value(body)["inputs"] == inputs


def test_instances() -> None:
    assert instance_values({"instances": [{"inputs": "a"}, {"model": "n"}], "model": "m"}) == [
        {"model": "m", "inputs": "a"},
        {"model": "n"},
    ]
    assert predictions_json([b"1", b'"a"']) == b'{"predictions":[1,"a"]}'
    assert text_of_chat(b'{"choices":[{"message":{"content":null}}]}') == ""


@pytest.mark.parametrize("body", [{}, {"instances": None}, {"instances": {}}, {"instances": ["a"]}])
def test_wrong_instances(body: Any) -> None:
    with pytest.raises(InvalidJsonError, match="`instances"):
        instance_values(body)
