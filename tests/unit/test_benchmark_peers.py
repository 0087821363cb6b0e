"""Generation benchmarks: contenders as processes, and the work that a model's shape asks for."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark_import import module

charts = module("generation.charts")
contenders = module("generation.contenders")
forms = module("generation.peers.forms")
process = module("generation.peers.process")
runner = module("generation.runner")
scenarios = module("generation.scenarios")
shape = module("generation.peers.shape")
table = module("generation.table")
work = module("generation.work")
workload = module("generation.workload")

SMOLLM2 = {
    "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
}  # fmt: skip


def test_the_shape_of_smollm2_has_135_million_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    found = shape.Shape.read(str(tmp_path))
    assert found.weight_bytes == 4 * 134_515_008
    assert found.kv_bytes == 2 * 30 * 192 * 4
    assert found.operations(1, 1, 0.0) == 2 * 134_515_008
    assert found.operations(10, 0, 5.0) == 20 * found.body + 4 * 10 * 30 * 576 * 5


def peer(tmp_path: Path, module: str = "floor") -> Any:
    setup = work.Setup(str(tmp_path), 1, 2, 16, {})
    return process.PeerProcess(module, Path(sys.executable), module, setup, tmp_path / f"{module}.log")


def test_a_contender_is_a_process_that_does_work_and_can_be_paused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    with peer(tmp_path) as floor:
        (child,) = floor.groups()["peer"]
        floor.pause()
        while child.status() != "stopped":  # a signal takes its time
            time.sleep(0.01)
        floor.resume()
        trace = floor.run(workload.uniform(2, 8, 3, workload.source("floor")))
        assert [len(times) for times in trace.times] == [3, 3]
        assert trace.times[0] == trace.times[1] == sorted(trace.times[0])
        assert trace.times[0][0] > trace.begin
        with pytest.raises(RuntimeError, match="equal lengths"):
            floor.run(work.Work([[1, 2]] * 2, [1, 2], 2, []))
    assert not child.is_running()


def test_a_peer_that_dies_is_left_out_of_the_other_rounds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    with peer(tmp_path) as floor:
        (child,) = floor.groups()["peer"]
        child.kill()
        with pytest.raises(RuntimeError, match="floor ended") as raised:
            floor.run(workload.uniform(1, 4, 2, workload.source("floor")))
        started = contenders.Started(running={"floor": floor})
        runner.GenerationRun._drop(floor, started, f"failed: {raised.value}")
        assert started.running == {}
        assert started.skipped["floor"].startswith("it failed: floor ended")


def test_without_the_model_nothing_is_started(tmp_path: Path) -> None:
    options = contenders.Options(tmp_path, tmp_path, 1, tmp_path)
    scenario = next(each for each in scenarios.SCENARIOS if each.name == "generation-int4")
    run = runner.GenerationRun(scenario, scenario.contenders, [1], options, lambda _: None)
    result = run.run()
    assert list(result.skipped) == ["grpc"]
    assert "no model 'smollm2-int4'" in result.skipped["grpc"]
    assert result.points == []
    assert table.section(result).rows == []
    assert charts.draw([result], tmp_path / "run") == []


def test_contenders_that_do_not_load_say_why(tmp_path: Path) -> None:
    with pytest.raises(forms.UnavailableError, match=r"config\.json"):
        peer(tmp_path)
    with pytest.raises(forms.UnavailableError, match="No module named"):
        peer(tmp_path, "nobody")


def test_what_is_missing_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(forms.UnavailableError, match="make demo"):
        forms.locate("onnx", tmp_path, "smollm2", tmp_path)
    with pytest.raises(forms.UnavailableError, match="--create"):
        forms.interpreter("vllm", tmp_path)
    assert forms.interpreter("", tmp_path) == Path(sys.executable)
