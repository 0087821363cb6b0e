"""Fixtures shared by all tests: a running server over the demo models, started once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import ROOT, ServerProcess, start_server, stop_server


@pytest.fixture(scope="session")
def demo_repository() -> Path:
    """The demo model repository that ``make demo`` built."""
    folder = Path(os.environ.get("TEST_DEMO_REPOSITORY", ROOT / ".cache" / "demo"))
    if not (folder / "manifest.json").is_file():
        pytest.fail(f"{folder} has no demo models; run `make demo` first")
    return folder


@pytest.fixture(scope="session")
def identity_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models for datatypes, versions, batching and cancellation, built for this session."""
    from headrace.runtimes.convert.identity import identity_models

    folder = tmp_path_factory.mktemp("identity")
    for name in identity_models(folder):
        if name.startswith("id_"):  # they copy: one process each is enough, and half the time to start
            with (folder / name / "config.pbtxt").open("a") as config:
                config.write("instance_group { count: 1 }\n")
    return folder


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, demo_repository: Path, identity_repository: Path
) -> Iterator[ServerProcess]:
    """One server over the demo and identity models, shared by the session; must exit 0 when it is stopped."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    running = start_server(
        "--model-repository", str(demo_repository), "--model-repository", str(identity_repository), log=log
    )
    yield running
    assert stop_server(running) == 0, log.read_text()[-4000:]
