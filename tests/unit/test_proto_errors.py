"""Every ErrorReason is documented with a google.rpc.ErrorInfo that parses and names the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2

from headrace.errors.v1 import errors_pb2

SOURCE = Path(__file__).parents[2] / "protos" / "headrace" / "errors" / "v1" / "errors.proto"


def comments() -> dict[str, str]:
    """Name of a value to the comment before it, without the slashes."""
    text = SOURCE.read_text()
    found = re.findall(r"((?:^ *//.*\n)+) *(ERROR_REASON_\w+) = \d+;", text, re.MULTILINE)
    return {name: re.sub(r"^ *// ?", "", comment, flags=re.MULTILINE) for comment, name in found}


@pytest.mark.parametrize("name", errors_pb2.ErrorReason.keys())
def test_the_comment_shows_a_valid_error_info(name: str) -> None:
    comment = comments()[name]
    assert "ErrorInfo example" in comment
    example = json.loads(comment[comment.index("{") :])
    info = json_format.ParseDict(example, error_details_pb2.ErrorInfo())
    assert info.reason == name
    assert info.domain == "headrace"
    assert all(re.fullmatch(r"[a-z][a-zA-Z0-9_]{0,63}", key) for key in info.metadata)


def test_values_are_dense_and_prefixed() -> None:
    values = dict(errors_pb2.ErrorReason.items())
    assert sorted(values.values()) == list(range(len(values)))
    assert values["ERROR_REASON_UNSPECIFIED"] == 0
    assert all(name.startswith("ERROR_REASON_") for name in values)
