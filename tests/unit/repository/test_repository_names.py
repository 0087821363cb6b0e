from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.server.errors import InvalidArgumentError
from headrace.server.repository.names import (
    check_model_name,
    is_inside,
    is_model_name,
    parse_version,
    version_of_folder,
)


@pytest.mark.parametrize("name", ["simple", "all-MiniLM-L6-v2", "a..b", "model@2", "名前"])
def test_plain_names_pass(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", ".", ".hidden", "a\0b", "/etc"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_model_name(name)
    assert caught.value.message == (
        f"invalid model name '{name}', model name must not contain path traversal characters"
    )


def test_names_that_no_folder_can_have_are_refused() -> None:
    check_model_name("\N{EURO SIGN}" * 85)
    for name in ("a" * 256, "\N{EURO SIGN}" * 86):
        assert not is_model_name(name)
        with pytest.raises(InvalidArgumentError, match=r"^model name '.{80}…' is longer than the 255 bytes"):
            check_model_name(name)


def test_empty_name_has_its_own_text() -> None:
    with pytest.raises(
        InvalidArgumentError, match=r"^Model name cannot be empty\. Please enter a valid name"
    ):
        check_model_name("")


def test_version_texts_are_tritons() -> None:
    assert parse_version("") is None
    assert parse_version("3") == 3
    assert parse_version("0") == 0
    with pytest.raises(InvalidArgumentError) as caught:
        parse_version("abc")
    assert caught.value.message == (
        "failed to get model version from specified version string 'abc' (details: stol), "
        "version should be an integral value > 0"
    )
    with pytest.raises(InvalidArgumentError) as caught:
        parse_version("-1")
    assert caught.value.message == (
        "invalid model version specified '-1' , version should be an integral value > 0"
    )


@pytest.mark.parametrize("text", [" 1", "1 ", "1.0", "0x1", "1_0", "\u0661", "9" * 19, "9" * 400, "v1"])
def test_odd_versions_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="failed to get model version"):
        parse_version(text)


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_every_integer_is_a_version(number: int) -> None:
    assert parse_version(str(number)) == number


@pytest.mark.parametrize(
    ("folder", "version"),
    [("1", 1), ("12", 12), ("01", None), ("0", None), ("v1", None), ("1a", None), ("-1", None)],
)
def test_version_folders(folder: str, version: int | None) -> None:
    assert version_of_folder(folder) == version


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("1/model.onnx", True),
        ("labels.txt", True),
        ("../x", False),
        ("1/../../x", False),
        ("/x", False),
        ("", False),
    ],
)
def test_paths_inside_a_folder(path: str, inside: bool) -> None:
    assert is_inside(path) is inside
