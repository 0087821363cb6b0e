"""Requests that schemathesis makes of another server's OpenAPI document, sent to ours.

Two ways to make them. ``fit`` requests are what the document allows: each must be answered with a documented
status and a body of the documented shape. ``unfit`` ones break the document on purpose: they may be answered
all the same (we take ``null`` for absent, and numbers in quotes), but never with a fault of the server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from jsonschema_rs import Draft202012Validator
from schemathesis import Case, Response
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

DATA = Path(__file__).parent / "conformance" / "data"
FIT = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)


def document(name: str) -> dict[str, Any]:
    """Read a server's document; texts and examples were left out of it."""
    found: dict[str, Any] = json.loads((DATA / f"{name}-openapi.json").read_text())
    return found


def schema(given: dict[str, Any], *, fit: bool) -> BaseSchema:
    """Let schemathesis make requests of a document, always the same ones."""
    config = SchemathesisConfig.from_dict(
        {
            "generation": {
                "mode": "positive" if fit else "negative",
                "deterministic": True,
                "allow-extra-parameters": False,
            },
            "phases": {"examples": {"enabled": False}},
        }
    )
    return schemathesis.openapi.from_dict(given, config=config)


def examples(count: int) -> settings:
    """Bound the requests of one route; nothing is shrunk, for the first failure says enough."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


def send(case: Case[Any], url: str, session: requests.Session, *, fit: bool) -> Response:
    """Send a request and check its answer."""
    checks = FIT if fit else (not_a_server_error,)
    return case.call_and_validate(base_url=url, session=session, checks=list(checks), timeout=60)


def shape(given: dict[str, Any], wanted: dict[str, Any]) -> Draft202012Validator:
    """Return what checks a value against a schema of an OpenAPI 3.0 document."""
    return Draft202012Validator(_nullable({**wanted, "components": given["components"]}))


def _nullable(value: Any) -> Any:
    """Write ``nullable`` as JSON Schema has it, and leave out bounds, which differ too."""
    if isinstance(value, list):
        return [_nullable(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _nullable(each)
        for key, each in value.items()
        if key not in ("nullable", "exclusiveMinimum", "discriminator", "default", "format")
    }
    return {"anyOf": [kept, {"type": "null"}]} if value.get("nullable") is True else kept
