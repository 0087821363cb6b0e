"""Tuning with real workers: what a server measures when it loads, and what ``headrace tune`` writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from headrace.server.errors import HeadraceError
from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.preparation import prepare
from headrace.server.tuning.candidates import Layout, free_fields, groups, layouts
from headrace.server.tuning.measuring import Effort, measure_group
from headrace.server.tuning.tuner import Step, tune
from headrace.server.tuning.workload import NotTunableError
from running import ROOT, get_json, start_server, stop_server

MACHINE = Machine(2)
COMMENT = "# This line was written by hand.\n"


@pytest.fixture
def repository(tmp_path: Path, demo_repository: Path) -> Path:
    """A repository of its own with two small models, one of which has a comment."""
    root = tmp_path / "models"
    for name in ("addsub", "iris"):
        shutil.copytree(demo_repository / name, root / name)
    config = root / "addsub" / "config.pbtxt"
    config.write_text(COMMENT + config.read_text())
    return root


def read(root: Path, name: str) -> ModelDefinition:
    (definition,) = prepare(open_model(name, [root.resolve()]), MACHINE)
    return definition


def headrace(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    settings = {"TUNING_CACHE": str(cache), "TUNING_TOLERANCE": "1", "CORES": "2"}
    return subprocess.run(
        [sys.executable, "-m", "headrace.server.cli", *arguments],
        env={**os.environ, **{f"HEADRACE_{name}": value for name, value in settings.items()}},
        capture_output=True, text=True, check=False, timeout=100, cwd=ROOT,
    )  # fmt: skip


def entries(log: Path, event: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [entry for entry in found if entry["event"] == event]


def addsub(url: str) -> list[int]:
    """Ask a server to add ones to 0 to 15."""
    tensors = {"INPUT0": list(range(16)), "INPUT1": [1] * 16}
    inputs = [
        {"name": name, "shape": [1, 16], "datatype": "INT32", "data": data} for name, data in tensors.items()
    ]
    request = urllib.request.Request(
        f"{url}/v2/models/addsub/infer",
        json.dumps({"inputs": inputs, "outputs": [{"name": "OUTPUT0"}]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        values: list[int] = json.loads(answer.read())["outputs"][0]["data"]
    return values


def test_a_server_measures_once_and_finds_it_again(repository: Path, tmp_path: Path) -> None:
    cache, log = tmp_path / "cache", tmp_path / "server.log"
    arguments = ("--model-repository", str(repository), "--tuning-cache", str(cache), "--cores", "2")
    running = start_server(
        *arguments, "--tuning", "load", "--tuning-seconds", "5", "--tuning-tolerance", "1", log=log
    )
    try:
        _, config = get_json(f"{running.url}/v2/models/addsub/config")
        assert addsub(running.url) == list(range(1, 17))
    finally:
        assert stop_server(running) == 0, log.read_text()[-4000:]
    assert {entry["model"] for entry in entries(log, "tuning ended")} == {"addsub", "iris"}
    assert isinstance(config, dict)
    assert {"intra_op_thread_count", "lone_threads", "max_batch_rows"} <= set(config["parameters"])
    kept = sorted(cache.iterdir())
    assert [path.name.rsplit("-", 1)[0] for path in kept] == ["addsub-1", "iris-1"]
    record = json.loads(kept[0].read_text())
    chosen = record["chosen"]["candidate"]
    assert chosen in [entry["candidate"] for entry in record["measured"]]
    assert config["instance_group"][0]["count"] == chosen["layout"]["instances"]
    assert config["parameters"]["max_batch_rows"]["string_value"] == str(chosen["limit"])

    again = tmp_path / "again.log"
    running = start_server(*arguments, "--tuning", "cached", log=again)
    try:
        assert addsub(running.url) == list(range(1, 17))
        assert get_json(f"{running.url}/v2/models/addsub/config")[1] == config
    finally:
        assert stop_server(running) == 0, again.read_text()[-4000:]
    assert not entries(again, "tuning")
    assert {entry["model"] for entry in entries(again, "model tuned")} == {"addsub", "iris"}


@pytest.mark.slow
@pytest.mark.parametrize(("cores", "measures"), [("8", True), ("4", False)])
def test_a_server_with_many_cores_measures_by_itself(
    repository: Path, tmp_path: Path, cores: str, measures: bool
) -> None:
    log = tmp_path / "server.log"
    running = start_server(
        "--model-repository", str(repository), "--load-models", "addsub", "--cores", cores,
        "--tuning", "auto", "--tuning-cache", str(tmp_path / "cache"), "--tuning-tolerance", "1", log=log,
    )  # fmt: skip
    try:
        assert addsub(running.url) == list(range(1, 17))
    finally:
        assert stop_server(running) == 0, log.read_text()[-4000:]
    shown = [entry["layouts"] for entry in entries(log, "tuning")]
    assert bool(shown) is measures
    assert len(entries(log, "model tuned")) == len(list(tmp_path.glob("cache/addsub-1-*.json"))) == measures
    assert shown[:1] == ["4 x 2, alone 8, 4 x 2"] * measures


@pytest.mark.slow
def test_the_command_shows_all_candidates_and_writes_the_best(repository: Path, tmp_path: Path) -> None:
    cache, config = tmp_path / "cache", repository / "addsub" / "config.pbtxt"
    before = config.read_text()
    common = ("tune", "addsub", "--model-repository", str(repository), "--seconds", "8")
    only_shown = headrace(*common, cache=cache)
    assert only_shown.returncode == 0, only_shown.stdout + only_shown.stderr
    assert config.read_text() == before
    for layout in ("2 x 1, alone 2", "2 x 1 ", "1 x 2"):
        assert layout in only_shown.stdout
    assert len(list(cache.iterdir())) == 1

    written = headrace(*common, "--write", cache=cache)
    assert written.returncode == 0, written.stdout + written.stderr
    text = config.read_text()
    assert text.startswith(before.rstrip())
    assert text.count("instance_group") == 1
    assert not free_fields(read(repository, "addsub"))
    checked = headrace("check", str(repository / "addsub"), cache=cache)
    assert checked.returncode == 0, checked.stdout


def test_the_command_says_why_a_model_is_not_tuned(demo_repository: Path, tmp_path: Path) -> None:
    done = headrace(
        "tune", "smollm2", "nope", "--model-repository", str(demo_repository), cache=tmp_path / "cache"
    )
    assert done.returncode == 1
    assert "smollm2: not tuned: models that generate text are not tuned" in done.stdout
    assert "nope: not tuned: failed to load 'nope'" in done.stdout
    assert not (tmp_path / "cache").exists()


def workers() -> list[psutil.Process]:
    """Return this process's own workers; a server of other tests is no worker."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "headrace.runtimes.worker" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.slow
async def test_every_candidate_of_a_text_model_is_measured_and_no_process_stays(
    demo_repository: Path,
) -> None:
    definition = read(demo_repository, "minilm")
    steps: list[Step] = []
    outcome = await tune(definition, MACHINE, seconds=50, thorough=False, progress=steps.append)
    assert outcome.complete
    assert {entry.candidate.layout for entry in outcome.measured} == set(layouts(definition, MACHINE))
    assert {entry.candidate.limit for entry in outcome.measured} == {128, 256, 512}
    assert all(entry.throughput > 0 and entry.lone_ms > 0 for entry in outcome.measured)
    assert [step.layouts for step in steps] == groups(layouts(definition, MACHINE))
    wide = outcome.measured[0]
    narrow = next(entry for entry in outcome.measured if entry.candidate.layout == Layout(2, 1))
    # MiniLM has 90 MB, and the all-threads form has them once more.
    assert wide.memory - narrow.memory > 50e6
    assert not workers()


async def test_a_model_that_does_not_load_cannot_be_tuned(tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"this is not a graph")
    with pytest.raises(NotTunableError, match=r"model\.onnx"):
        await tune(read(tmp_path, "broken"), MACHINE, seconds=20, thorough=False)
    assert not workers()


async def test_a_worker_that_dies_ends_the_measurement(demo_repository: Path) -> None:
    definition = read(demo_repository, "addsub")
    work = asyncio.ensure_future(measure_group(definition, [Layout(1, 2)], MACHINE, Effort(30.0)))
    while not workers() or workers()[0].cpu_times().user < 2:  # loaded, and at work
        await asyncio.sleep(0.05)
        assert not work.done()
    workers()[0].send_signal(signal.SIGKILL)
    with pytest.raises(HeadraceError, match="ended"):
        await work
    assert not workers()
