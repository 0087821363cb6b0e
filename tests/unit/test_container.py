"""What the Dockerfile names is there; building it takes an engine and is not tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from headrace.server.config import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def copied() -> set[str]:
    """Return what is copied from the checkout."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return {source for line in lines for source in line.split()[:-1]}


def test_the_variables_are_settings() -> None:
    named = set(re.findall(r"HEADRACE_([A-Z_]+)=", DOCKERFILE))
    assert {"MODEL_REPOSITORY", "GRPC_HOST", "HTTP_HOST"} <= named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_what_is_copied_is_there_and_nothing_else_is_sent_to_the_engine() -> None:
    assert all((ROOT / source).exists() for source in copied())
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert sent == copied()


def test_the_extras_and_ports_are_known() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (chosen,) = re.findall(r'^ARG EXTRAS="(.+)"$', DOCKERFILE, re.MULTILINE)
    assert set(chosen.split(",")) <= set(extras)
    (ports,) = re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)
    fields = Settings.model_fields
    assert set(map(int, ports.split())) == {fields["grpc_port"].default, fields["http_port"].default}
