from __future__ import annotations

from pathlib import Path

from headrace.server.repository.parameters import PARSERS
from headrace.server.repository.validation import UNSUPPORTED, WITHOUT_EFFECT

DOCS = (Path(__file__).parents[3] / "docs" / "repository.md").read_text()


def test_every_parameter_has_a_row() -> None:
    section = DOCS.partition("## Parameters")[2].partition("\n## ")[0]
    rows = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(PARSERS)


def test_fields_that_are_refused_or_without_effect_are_listed() -> None:
    for name in (*UNSUPPORTED, *WITHOUT_EFFECT):
        assert f"`{name}`" in DOCS
