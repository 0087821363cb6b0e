"""Requests made of Text Embeddings Inference's own OpenAPI document (1.9.3), sent through Envoy."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from openapi_cases import document, examples, schema, send
from schemathesis import Case

from running import ServerProcess

DOCUMENT = document("tei")
FIT = schema(DOCUMENT, fit=True)
UNFIT = schema(DOCUMENT, fit=False).include(method="POST")


@FIT.parametrize()
@examples(15)
def test_requests_that_fit(case: Case[Any], server: ServerProcess, session: requests.Session) -> None:
    name_the_encoder(case)
    send(case, server.url, session, fit=True)


@pytest.mark.slow
@UNFIT.parametrize()
@examples(15)
def test_requests_that_do_not_fit(case: Case[Any], server: ServerProcess, session: requests.Session) -> None:
    name_the_encoder(case)
    send(case, server.url, session, fit=False)


def name_the_encoder(case: Case[Any]) -> None:
    """Name the model where another kind would answer as well, or a made-up one: TEI has only one."""
    if case.path == "/info":
        case.query = {"model_id": "minilm"}
    body = case.body
    if isinstance(body, dict) and (case.path == "/tokenize" or "model" in body):
        body["model"] = "minilm"
