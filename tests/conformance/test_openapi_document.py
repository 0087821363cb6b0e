"""The OpenAPI document of the REST routes, and the page made of it (row T24)."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator, meta

from headrace.envoy.descriptors import bindings
from headrace.server.services.registry import descriptors
from running import ServerProcess

VARIABLE = re.compile(r"\{([^=}]+)(?:=[^}]*)?\}")


def fetch(url: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.headers["content-type"], answer.read()


@pytest.fixture(scope="module")
def described(server: ServerProcess) -> dict[str, Any]:
    _, body = fetch(f"{server.url}/api-doc/openapi.json")
    document: dict[str, Any] = json.loads(body)
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb.upper(), operation


@pytest.mark.parametrize("path", ["/api-doc/openapi.json", "/openapi.json"])
def test_t24_the_document_is_json(server: ServerProcess, path: str) -> None:
    kind, body = fetch(server.url + path)
    assert kind == "application/json"
    assert json.loads(body)["openapi"] == "3.1.0"


def test_t24_the_page_needs_nothing_else(server: ServerProcess, described: dict[str, Any]) -> None:
    kind, body = fetch(f"{server.url}/docs")
    page = body.decode()
    assert kind == "text/html; charset=utf-8"
    for path, verb, _ in operations(described):
        assert f"<b>{verb}</b> <code>{path}</code>" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "<script" not in page


def test_every_route_is_described(described: dict[str, Any]) -> None:
    found = {(verb, path) for path, verb, _ in operations(described)}
    assert found == {(each.verb, VARIABLE.sub(r"{\1}", each.template)) for each in bindings(descriptors())}


def test_operations_are_whole(described: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(set(names)) == len(names)
    for path, verb, operation in operations(described):
        inside = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert inside == set(re.findall(r"\{(\w+)\}", path)), path
        assert re.match(r"[A-Z].* ", operation["summary"]), f"{path} says nothing of itself"
        assert ("requestBody" in operation) is (verb == "POST"), path


def test_schemas_are_schemas_and_references_lead_somewhere(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    for name, schema in schemas.items():
        meta.validate(schema)
        assert ":class:" not in schema.get("description", ""), name
    text = json.dumps(described)
    targets = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text))
    assert targets
    assert targets <= set(schemas)


GOOD = [
    ("/embed", {"inputs": ["a", [1, 2]], "truncate": None}),
    ("/rerank", {"query": "a", "texts": ["b"]}),
    ("/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    ("/predict", {"inputs": [["a"], ["b", "c"]]}),
    ("/decode", {"ids": [[1, 2], [3]]}),
    ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 3, "stop": ["b"]}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "temperature": 0.5}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 3}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
]


@pytest.mark.parametrize(("path", "body"), GOOD, ids=[path for path, _ in GOOD])
def test_bodies_that_are_answered_fit(
    server: ServerProcess, described: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    checker(described, path).validate(body)


BAD = [
    ("/embed", {"inputs": 5}),
    ("/rerank", {"query": "a"}),
    ("/similarity", {"inputs": "a"}),
    ("/decode", {}),
    ("/generate", {"inputs": ["a"]}),
    ("/v1/chat/completions", {"messages": "a", "temperature": "hot"}),
]


@pytest.mark.parametrize(("path", "body"), BAD, ids=[path for path, _ in BAD])
def test_bodies_that_are_refused_do_not(described: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    assert not checker(described, path).is_valid(body)


def checker(described: dict[str, Any], path: str) -> Draft202012Validator:
    content = described["paths"][path]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": described["components"]})
