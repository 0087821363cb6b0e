"""What is kept and what is written: the cache of measurements, and the measured part of config.pbtxt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from headrace.server.repository.instances import Machine
from headrace.server.tuning.cache import Record, TuningCache
from headrace.server.tuning.candidates import Candidate, Layout, free_fields, present_layout
from headrace.server.tuning.choice import Measurement
from headrace.server.tuning.fingerprint import digest, machine_facts, memory_bytes
from headrace.server.tuning.workload import NotTunableError
from headrace.server.tuning.writing import BEGIN, END, with_measured, without_measured, write_text

Define = Any
CHOSEN = Candidate(Layout(2, 4, 8), 16)
CONFIG = """# Written by hand.
max_batch_size: 64  # rows
input { name: "X" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 4 ] }
dynamic_batching { }"""


def record(facts: dict[str, str]) -> Record:
    chosen = Measurement(CHOSEN, 99.5, 14.25, 1 << 28)
    present = Measurement(Candidate(Layout(4, 1, 8), 64), 80.0, 14.0, 1 << 29)
    return Record("m", 1, chosen, (present, chosen), complete=True, disturbance=0.05, facts=facts)


def test_a_record_comes_back_as_it_was(define: Define, tmp_path: Path) -> None:
    cache = TuningCache(tmp_path / "cache", machine_facts(Machine(8)))
    definition = define(CONFIG)
    assert cache.read(definition) is None
    path = cache.write(definition, record(cache.facts))
    assert cache.read(definition) == record(cache.facts)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [path.name]  # nothing half-written


def test_models_that_were_never_measured_are_not_read(
    define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TuningCache(tmp_path / "cache", {})
    asked: list[object] = []
    monkeypatch.setattr(cache, "path", asked.append)
    assert cache.read(define(CONFIG)) is None
    assert asked == []


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}', "[]"])
def test_a_file_that_is_no_record_is_none(define: Define, tmp_path: Path, content: str) -> None:
    cache = TuningCache(tmp_path / "cache", {})
    definition = define(CONFIG)
    cache.write(definition, record({})).write_text(content)
    assert cache.read(definition) is None


def test_records_of_other_files_configurations_and_machines_are_not_found(
    define: Define, tmp_path: Path
) -> None:
    cache = TuningCache(tmp_path / "cache", {"cpu": "a"})
    definition = define(CONFIG)
    cache.write(definition, record({}))
    assert TuningCache(tmp_path / "cache", {"cpu": "b"}).read(definition) is None
    assert cache.read(define(CONFIG + "version_policy { all { } }")) is None
    assert cache.read(define(CONFIG + "  # a comment")) is not None
    model = definition.folder / "model.onnx"
    model.write_bytes(b"x" * model.stat().st_size)
    assert cache.read(definition) is None


def test_the_digest_reads_contents_not_times(define: Define) -> None:
    definition = define(CONFIG)
    before = digest(definition, {})
    (definition.folder / "model.onnx").touch()
    assert digest(definition, {}) == before
    (definition.folder / "more.data").write_bytes(b"")
    assert digest(definition, {}) != before


def test_the_digest_tells_fused_attention_from_plain(define: Define) -> None:
    definition = define(CONFIG)
    specs = tuple(dataclasses.replace(spec, graph_cache="/srv/graphs") for spec in definition.specs)
    fused = dataclasses.replace(definition, specs=specs)
    elsewhere = tuple(dataclasses.replace(spec, graph_cache="/srv/others") for spec in definition.specs)
    assert digest(fused, {}) != digest(definition, {})
    assert digest(fused, {}) == digest(dataclasses.replace(definition, specs=elsewhere), {})


def test_the_machine_is_described() -> None:
    facts = machine_facts(Machine(3, 1))
    assert (facts["cores"], facts["gpus"]) == ("3", "1")
    assert facts["headrace"]
    assert facts["onnxruntime"]
    assert int(facts["memory"]) == memory_bytes() > 0


def test_what_is_written_is_read_back_and_everything_else_stays(define: Define) -> None:
    written = with_measured(CONFIG, define(CONFIG), CHOSEN, "somewhere, well")
    assert written.startswith(CONFIG + "\n\n" + BEGIN)
    tuned = define(written)
    assert present_layout(tuned) == CHOSEN.layout
    assert tuned.parameters["max_batch_rows"] == "16"
    assert not free_fields(tuned)
    assert without_measured(written).rstrip() == CONFIG


def test_writing_again_replaces_the_measured_part(define: Define) -> None:
    first = with_measured(CONFIG, define(CONFIG), CHOSEN, "first")
    bare = without_measured(first + "# more by hand\n")
    assert BEGIN not in bare
    again = with_measured(bare, define(bare), dataclasses.replace(CHOSEN, limit=8), "second")
    assert again.count(BEGIN) == again.count(END) == 1
    assert "# more by hand" in again
    assert "first" not in again
    assert define(again).parameters["max_batch_rows"] == "8"


def test_what_is_given_is_not_written_a_second_time(define: Define) -> None:
    given = CONFIG + "\ninstance_group { count: 3 kind: KIND_CPU }\n"
    written = with_measured(given, define(given), Candidate(Layout(3, 2), 64), "note")
    assert written.count("instance_group") == 1
    assert present_layout(define(written)) == Layout(3, 2)


def test_a_model_without_a_configuration_gets_one(define: Define) -> None:
    written = with_measured("", define(""), CHOSEN, "note")
    assert written.startswith(BEGIN)
    assert present_layout(define(written)) == CHOSEN.layout


@pytest.mark.parametrize("line", [BEGIN, END])
def test_a_measured_part_without_its_other_end_is_refused(line: str) -> None:
    with pytest.raises(NotTunableError, match="without the other"):
        without_measured(f"max_batch_size: 4\n{line}: 2026\n")


def test_a_file_is_replaced_whole_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    write_text(path, "a")
    assert path.stat().st_mode & 0o777 == 0o644
    path.chmod(0o600)
    write_text(path, "b")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("b", 0o600)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.pbtxt"]
