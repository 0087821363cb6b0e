"""Requests made of Text Generation Inference's own OpenAPI document (3.3), sent through Envoy."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests
from jsonschema_rs import Draft202012Validator
from openapi_cases import document, examples, schema, send, shape
from schemathesis import Case

from running import ServerProcess

MOST_TOKENS = 2  # of an answer: the shapes are looked at, not the text
_ERROR = {"$ref": "#/components/schemas/ErrorResponse"}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "string", "nullable": True},
                "code": {"type": "integer"},
            },
        }
    },
}


def answer(shape: dict[str, Any]) -> dict[str, Any]:
    return {"description": "", "content": {"application/json": {"schema": shape}}}


def amended() -> dict[str, Any]:
    """TGI's document, changed where TGI itself does something else, or where we do on purpose."""
    found = document("tgi")
    _bound(found["components"]["schemas"])
    paths = found["paths"]
    for path, verbs in paths.items():
        for verb, operation in verbs.items():
            given = operation["responses"]
            if verb == "post":
                # TGI's /tokenize and /chat_tokenize refuse as its other routes do; its document forgets it.
                given["422"] = answer(_ERROR)
            if path.startswith("/v1/"):
                # OpenAI's clients need its error object, and take 400 for what TGI says with 422.
                given["400"] = given["422"] = answer(_OPENAI_ERROR)
            if path == "/invocations":
                # The same, for the bodies that are OpenAI's.
                given["400"] = answer(_OPENAI_ERROR)
                given["422"] = answer({"anyOf": [_ERROR, _OPENAI_ERROR]})
                # TGI answers a list here, as on POST /; the document has an object.
                ours = found["components"]["schemas"]["SagemakerResponse"]["oneOf"]
                ours[0] = {"type": "array", "items": ours[0]}
    # A list of models, as TGI's code and OpenAI have it; the document has one model.
    # Each chunk of ours has the members of OpenAI's; a delta of TGI's repeats the role and always has a text.
    delta = {"type": "object", "properties": {"role": {"type": "string"}, "content": {"type": "string"}}}
    found["components"]["schemas"]["ChatCompletionDelta"] = delta
    paths["/v1/models"]["get"]["responses"]["200"] = answer(
        {
            "type": "object",
            "required": ["object", "data"],
            "properties": {"data": {"type": "array", "items": {"$ref": "#/components/schemas/ModelInfo"}}},
        }
    )
    return found


def _bound(value: Any) -> None:
    """Write open bounds as OpenAPI 3.0 has them: the document has numbers, as only 3.1 does."""
    if isinstance(value, dict):
        bound = value.get("exclusiveMinimum")
        if isinstance(bound, int):
            value |= {"minimum": bound, "exclusiveMinimum": True}
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _bound(each)


def streams(given: dict[str, Any]) -> dict[str, Draft202012Validator]:
    """Take the shapes of events out of a document: schemathesis would compare frames with them."""
    found = {}
    for path, verbs in given["paths"].items():
        content = verbs.get("post", {}).get("responses", {}).get("200", {}).get("content", {})
        if "text/event-stream" in content:
            found[path] = shape(given, content["text/event-stream"].pop("schema"))
    return found


DOCUMENT = amended()
EVENTS = streams(DOCUMENT)
FIT = schema(DOCUMENT, fit=True)
UNFIT = schema(DOCUMENT, fit=False).include(method="POST")


@FIT.parametrize()
@examples(10)
def test_requests_that_fit(case: Case[Any], server: ServerProcess, session: requests.Session) -> None:
    keep_short(case)
    response = send(case, server.url, session, fit=True)
    if response.headers["content-type"][0].startswith("text/event-stream"):
        events = [
            each.removeprefix("data: ") for each in response.text.split("\n\n") if each.startswith("data")
        ]
        assert events
        for event in events:
            if event != "[DONE]":
                EVENTS[case.path].validate(json.loads(event))


@pytest.mark.slow
@UNFIT.parametrize()
@examples(15)
def test_requests_that_do_not_fit(case: Case[Any], server: ServerProcess, session: requests.Session) -> None:
    keep_short(case)
    send(case, server.url, session, fit=False)


def keep_short(case: Case[Any]) -> None:
    """Ask for few tokens, and for the one model that a TGI server has: its ``model`` means nothing."""
    body = case.body
    if not isinstance(body, dict):
        return
    if "model" in body:
        body["model"] = "tgi"
    if "inputs" in body:
        given = body.get("parameters")
        if given is None:
            body["parameters"] = {"max_new_tokens": MOST_TOKENS, "do_sample": True}
        elif isinstance(given, dict):
            _limit(given, "max_new_tokens")
    else:
        _limit(body, "max_tokens")
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and isinstance(message.get("role"), str):
            message["role"] = "user"  # nobody's template takes a role that does not exist


def _limit(fields: dict[str, Any], name: str) -> None:
    wanted = fields.get(name)
    if wanted is None or (isinstance(wanted, int) and wanted > MOST_TOKENS):
        fields[name] = MOST_TOKENS
