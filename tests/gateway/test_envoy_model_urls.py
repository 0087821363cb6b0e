"""A model's own URL, ``/models/{id}``: the base that Hugging Face's clients are given."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize(
    ("verb", "path", "inner", "model"),
    [
        ("POST", "/models/m", "/", "m"),
        ("POST", "/models/m/", "/", "m"),
        ("POST", "/models/m?a=/b", "/?a=/b", "m"),
        ("POST", "/models/org%2Fm", "/", "org/m"),
        ("POST", "/models/m@2/", "/", "m@2"),
        ("POST", "//models//m//", "/", "m"),
        ("POST", "/models/m/v1/chat/completions", "/v1/chat/completions", "m"),
        ("GET", "/models/m/info", "/info", "m"),
        ("GET", "/models/m/health", "/health", "m"),
    ],
)
def test_model_urls(gateway: Any, verb: str, path: str, inner: str, model: str) -> None:
    spoofed = {"x_headrace_model": "other", "x_headrace_surface": "other"}
    metadata = gateway.ask(verb, path, body=b"{}" if verb == "POST" else None, **spoofed).json["metadata"]
    assert metadata["x-envoy-original-path"] == inner
    assert metadata["x-headrace-model"] == model
    assert "x-headrace-surface" not in metadata  # OICM's surface begins at /proxy


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/models/m"),
        ("GET", "/models/m/"),
        ("POST", "/models/m/health"),
        ("POST", "/models/m/embed"),
        ("POST", "/models/m/v1/completions"),
        ("POST", "/models"),
        ("POST", "/models/"),
    ],
)
def test_nothing_else_stands_behind_a_model(gateway: Any, verb: str, path: str) -> None:
    assert gateway.ask(verb, path, body=b"{}" if verb == "POST" else None).status == 404


def test_cards_of_models_stay(gateway: Any) -> None:
    found = gateway.ask("GET", "/v1/models/m").json
    assert found["fields"] == {"model": "m"}
    assert "x-headrace-model" not in found["metadata"]
