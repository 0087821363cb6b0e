"""The encoding benchmarks: how peers are made, started, verified, stopped and compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmark_import import ROOT, module

bars = module("bars")
charts = module("charts")
contenders = module("encoding.contenders")
encoder = module("encoding.peers.served.encoder")
environments = module("environments")
launch = module("encoding.peers.launch")
payloads = module("payloads")
peer_environments = module("encoding.peers.environments")
process_tree = module("process_tree")
registry = module("encoding.peers.registry")
results = module("results")
scenarios = module("scenarios")
server = module("encoding.peers.server")
table = module("table")
verify = module("verify")

SERVER = """\
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        answer = b"[[1, 2]]"
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A server that gives one vector to whoever asks."""


def made(folder: Path, name: str, probe: str = "import sys") -> Any:
    """An environment whose Python is this one, without running pip."""
    (folder / name / "bin").mkdir(parents=True)
    (folder / name / "bin" / "python").symlink_to(sys.executable)
    return environments.Environment(name, "a note", probe, (("--version",),))


def test_an_environment_that_works_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    environments.make(made(tmp_path, "there"), tmp_path, said.append)
    assert said == ["there: is there"]
    assert not (tmp_path / "there.log").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(folder: Path, wanted: list[str], _: Any) -> None:
        assert folder.is_dir()
        raise subprocess.CalledProcessError(1, ["pip", *wanted])

    known = (environments.Environment("one", "a note", "", ()),)
    assert environments.command(known, fail, tmp_path / "new", ["two"]) == 2
    assert "there is no environment 'two'; there are one" in capsys.readouterr().err
    assert environments.command(known, fail, tmp_path / "new", ["one"]) == 1
    assert "see the logs in" in capsys.readouterr().err
    assert environments.command(known, lambda *_: None, tmp_path / "new", []) == 0


def test_every_peer_has_an_environment_and_a_launcher() -> None:
    assert {peer.program for peer in registry.PEERS.values()} == set(launch.LAUNCHERS)
    assert {each.name for each in peer_environments.ENVIRONMENTS} == set(launch.LAUNCHERS)
    assert {peer.payload for peer in registry.PEERS.values()} <= set(payloads.BUILDERS)
    for scenario in scenarios.SCENARIOS:
        assert set(scenario.peers) <= set(registry.PEERS)
        asked = {
            (point.route.peer, point.clients) for point in scenarios.points(scenario) if point.route.peer
        }
        assert all(clients <= registry.PEERS[name].most for name, clients in asked)
        assert {name for name, _ in asked} == set(scenario.peers)


def layout(folder: Path, instances: int, threads: int) -> Any:
    packages = folder / "environment" / "lib" / "python3.11" / "site-packages"
    triton = packages / "pytriton" / "tritonserver"
    (triton / "backends" / "python").mkdir(parents=True)
    (triton / "backends" / "python" / "libtriton_python.so").write_bytes(b"backend")
    (triton / "python_backend_stubs" / "3.11").mkdir(parents=True)
    (triton / "python_backend_stubs" / "3.11" / "triton_python_backend_stub").write_bytes(b"stub")
    (folder / "files").mkdir()
    return launch.Layout(
        folder / "environment", folder / "onnx", folder / "weights", folder / "files", instances, threads
    )


def test_triton_gets_a_repository_and_a_backend_of_its_own(tmp_path: Path) -> None:
    command = launch.triton(layout(tmp_path, 2, 1))
    files = tmp_path / "files"
    assert (files / "backends" / "python" / "libtriton_python.so").read_bytes() == b"backend"
    assert (files / "backends" / "python" / "triton_python_backend_stub").read_bytes() == b"stub"
    config = (files / "repository" / "minilm" / "config.pbtxt").read_text()
    assert "count: 2" in config
    assert f'key: "folder" value: {{ string_value: "{tmp_path / "onnx"}" }}' in config
    model = (files / "repository" / "minilm" / "1" / "model.py").read_text()
    assert f"sys.path.insert(0, {str(ROOT)!r})" in model
    assert {f"--grpc-port={command.grpc}", "--grpc-address=127.0.0.1"} <= set(command.words)
    assert any(command.shared in word for word in command.words)
    assert not command.stoppable


def test_mlserver_batches_in_one_process(tmp_path: Path) -> None:
    command = launch.mlserver(layout(tmp_path, 1, 2))
    settings = json.loads((tmp_path / "files" / "settings.json").read_text())
    assert (settings["host"], settings["parallel_workers"]) == ("127.0.0.1", 0)
    assert (settings["grpc_port"], settings["http_port"]) == (command.grpc, command.http)
    model = json.loads((tmp_path / "files" / "model-settings.json").read_text())
    assert model["max_batch_size"] == launch.BATCH
    assert model["parameters"]["extra"] == {"folder": str(tmp_path / "onnx"), "threads": 2}


def test_infinity_computes_in_fp32_and_kserve_has_the_sessions_of_its_layout(tmp_path: Path) -> None:
    place = layout(tmp_path, 1, 2)
    words = launch.infinity(place).words
    assert words[words.index("--dtype") + 1] == "float32"
    assert words[words.index("--model-id") + 1] == str(tmp_path / "weights")
    assert launch.infinity(place).environment["OMP_NUM_THREADS"] == "2"
    words = launch.kserve(place).words
    assert words[words.index("--sessions") + 1] == "1"
    assert words[words.index("--session-threads") + 1] == "2"


@pytest.fixture
def place(tmp_path: Path) -> Any:
    """A repository and an environment in which a peer can be started."""
    for name in ("minilm/1/model.onnx", "minilm-torch/1/model.safetensors"):
        (tmp_path / "demo" / name).parent.mkdir(parents=True)
        (tmp_path / "demo" / name).touch()
    for name in launch.LAUNCHERS:
        made(tmp_path / "peers", name)
    return SimpleNamespace(repository=tmp_path / "demo", peers=tmp_path / "peers", folder=tmp_path / "files")


def a_payload() -> Any:
    def decode(answer: bytes) -> Any:
        return np.asarray(json.loads(answer), np.float32)

    return payloads.Payload("http", "/embed", payloads.JSON_HEADERS, (b"{}", b"{}"), (1.0, 1.0), decode)


def start(monkeypatch: pytest.MonkeyPatch, place: Any, program: str) -> Any:
    """The peer ``infinity`` whose program is ``program``, told its port."""

    def command(_: Any) -> Any:
        port = launch.free_port()
        return launch.Command((sys.executable, "-c", program, str(port)), 0, port)

    monkeypatch.setattr(server, "LAUNCHERS", {"infinity": command})
    return server.PeerServer(registry.PEERS["infinity"], place.repository, place.peers, place.folder, 2)


def test_a_peer_is_waited_for_paused_and_ended(monkeypatch: pytest.MonkeyPatch, place: Any) -> None:
    with start(monkeypatch, place, SERVER) as peer:
        peer.wait(a_payload())
        (process,) = peer.groups()["peer"]
        peer.pause()
        while process.status() != "stopped":  # a signal takes its time
            time.sleep(0.01)
        with contenders.at_work(peer):
            assert verify.answers(peer.grpc, peer.http, a_payload(), 2) == [b"[[1, 2]]"] * 2
        while process.status() != "stopped":
            time.sleep(0.01)
    assert not process.is_running()


def test_a_peer_that_fails_is_left_out_of_the_other_rounds(
    monkeypatch: pytest.MonkeyPatch, place: Any
) -> None:
    with start(monkeypatch, place, SERVER) as peer:
        peer.wait(a_payload())
        started = contenders.Started(running={"infinity": peer})
        started.give_up("infinity", "8 clients: connection refused")
    assert started.running == {}
    assert re.match(
        "8 clients: connection refused; infinity ended: .*POST /embed", started.skipped["infinity"]
    )
    ours = results.PointResult("grpc", 1, rounds=[measurement(10.0, 1.0, None)])
    ours.rounds.append(measurement(10.0, 1.0, None))
    theirs = results.PointResult("infinity", 1, peer=True, rounds=[measurement(5.0, 1.0, None)])
    results.relate_to_peers([ours, theirs])
    assert [each.of for each in ours.rounds] == [{"infinity": 2.0}, {}]
    assert ours.median("of_peers") == 2.0


def test_a_peer_that_ends_says_why(monkeypatch: pytest.MonkeyPatch, place: Any) -> None:
    with (
        start(monkeypatch, place, "raise SystemExit('no such model')") as peer,
        pytest.raises(environments.UnavailableError, match="infinity ended: no such model"),
    ):
        peer.wait(a_payload())


def test_peers_that_are_not_there_are_skipped(tmp_path: Path) -> None:
    place = contenders.Place(tmp_path, tmp_path / "none", tmp_path / "files", 2)
    work: Any = None
    with contenders.start({"triton": a_payload()}, work, 1, place, lambda _: None) as started:
        assert started.running == {}
        assert "python -m benchmarks.encoding.peers --create" in started.skipped["triton"]


def test_a_peer_with_other_vectors_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, place: Any, tmp_path: Path
) -> None:
    with start(monkeypatch, place, SERVER):
        pass  # only to put the launcher in
    monkeypatch.setattr(verify, "expected", lambda *_: np.asarray([[1.0, 2.1], [1.0, 2.1]], np.float32))
    other = contenders.Place(place.repository, place.peers, tmp_path / "other", 2)
    work: Any = None
    with contenders.start({"infinity": a_payload()}, work, 1, other, lambda _: None) as started:
        assert started.running == {}
        assert "values differ" in started.skipped["infinity"]


def test_answers_are_compared_value_by_value_and_by_angle() -> None:
    truth = np.eye(2, 384)
    found = verify.compare("x", truth * 1.0001, truth)
    assert found.difference == pytest.approx(1e-4)
    assert found.cosine == pytest.approx(1.0)
    with pytest.raises(verify.WrongAnswerError, match="shape"):
        verify.compare("x", truth[:1], truth)
    with pytest.raises(verify.WrongAnswerError, match="differ"):
        verify.compare("x", truth + 0.01, truth)
    with pytest.raises(verify.WrongAnswerError, match="differ"):
        verify.compare("x", truth * np.nan, truth)
    with pytest.raises(verify.WrongAnswerError, match="cosine"):
        verify.compare("x", np.full((1, 384), 9e-4), np.eye(1, 384) * 1e-4)


@pytest.mark.parametrize("items", [1, 2])
def test_texts_are_a_tensor_that_every_kserve_server_understands(items: int) -> None:
    scenario: Any = SimpleNamespace(model="minilm", items=items)
    work: Any = SimpleNamespace(texts=["one", "zwölf"], weights=lambda count: [1.0] * (2 // count))
    payload = payloads.BUILDERS["infer-text"](scenario, work)
    request = payloads.kserve.ModelInferRequest.FromString(payload.bodies[-1])
    assert list(request.inputs[0].shape) == [items, 1]
    assert request.raw_input_contents[0].endswith(b"\x06\x00\x00\x00" + "zwölf".encode())
    assert len(payload.bodies) == len(payload.weights) == 2 // items
    vectors = np.arange(768, dtype=np.float32)
    raw = payloads.kserve.ModelInferResponse(raw_output_contents=[vectors.tobytes()])
    typed = payloads.kserve.ModelInferResponse()
    typed.outputs.add(name="embedding").contents.fp32_contents.extend(vectors)
    for answer in (raw, typed):
        assert payload.decode(answer.SerializeToString()).tolist() == vectors.reshape(2, 384).tolist()


def test_the_peers_encoder_batches_texts_of_like_length() -> None:
    lengths = [10] * 20 + [120] * 10 + [250] * 5
    batches = list(encoder._batches(range(35), lengths))
    assert [row for batch in batches for row in batch] == list(range(35))
    assert [len(batch) for batch in batches] == [16, 4, 8, 2, 4, 1]
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) <= encoder.BATCH
        assert len(batch) * longest <= encoder.BATCH_TOKENS
        assert len(batch) * longest <= encoder.PADDING * sum(lengths[row] for row in batch)
    assert list(encoder._batches(range(4), [8, 10, 90, 240])) == [[0, 1], [2], [3]]
    assert list(encoder._batches([], [])) == []


def measurement(rate: float, p99: float, of_raw: float | None) -> Any:
    return results.Measurement(rate, p99 / 2, p99, {"peer": 1.0, "client": 0.1}, 1.0, 0.0, of_raw=of_raw)


def a_scenario() -> Any:
    ours = results.PointResult("grpc", 32, [measurement(90, 300, 0.9), measurement(80, 400, 0.8)])
    lone = results.PointResult("grpc", 1, [measurement(10, 30, 0.1)] * 2)
    fast = results.PointResult(
        "triton", 32, [measurement(75, 500, 0.75), measurement(100, 320, 1.0)], peer=True
    )
    slow = results.PointResult(
        "infinity", 32, [measurement(30, 900, 0.3), measurement(20, 900, 0.2)], peer=True
    )
    points = [ours, lone, fast, slow]
    results.relate_to_peers(points)
    return results.ScenarioResult(
        "encoding-1", "texts", "texts", 1, [], points, "verified", {"triton": "Triton"}, {"kserve": "gone"}
    )


def test_we_are_related_to_each_peer_in_each_round_and_the_worst_median_counts() -> None:
    ours, lone, fast, _ = a_scenario().points
    assert [each.of["triton"] for each in ours.rounds] == [pytest.approx(1.2), pytest.approx(0.8)]
    assert ours.rounds[0].of == {"triton": pytest.approx(1.2), "infinity": pytest.approx(3.0)}
    assert [each.p99_of["triton"] for each in ours.rounds] == [pytest.approx(0.6), pytest.approx(1.25)]
    assert ours.median("of_peers") == pytest.approx(1.0)
    assert ours.median("p99_of_peers") == pytest.approx(0.925)
    assert lone.median("of_peers") is None
    assert fast.median("of_peers") is None


def test_bars_beside_the_peers_want_every_peer() -> None:
    scenario = a_scenario()
    run = results.RunResult("2026-01-01T00:00:00+00:00", {}, {}, [scenario])
    assert "of_peers" not in run.cells()["encoding-1", "grpc", 32]
    fast = scenario.points[2]
    every = scenarios.peers_at("encoding-1", 32)
    assert every == {"triton", "mlserver", "kserve", "infinity"}
    assert scenarios.peers_at("encoding-1", 1) == every | {"triton-deep", "kserve-deep"}
    scenario.points += [
        results.PointResult(name, 32, fast.rounds, peer=True) for name in ("mlserver", "kserve")
    ]
    results.relate_to_peers(scenario.points)
    assert run.cells()["encoding-1", "grpc", 32]["of_peers"] == pytest.approx(1.0)


def test_a_peer_that_answered_nothing_is_no_measure() -> None:
    points = a_scenario().points
    for each in (points[2].rounds[0], points[3].rounds[0], points[3].rounds[1]):
        each.rate, each.of_raw = 0.0, None
    for each in points[0].rounds:
        each.of = {}
    results.relate_to_peers(points)
    first, second = points[0].rounds
    assert first.of == {}
    assert set(second.of) == {"triton"}


def test_tables_show_peers_and_why_others_are_missing() -> None:
    section = table.section(a_scenario())
    assert {"÷ best peer", "p99 ÷ best", "CPU peer"} <= set(section.head)
    assert [row[0] for row in section.rows] == ["grpc", "grpc", "triton", "infinity"]
    assert "kserve was skipped: gone" in section.notes
    assert "triton: Triton" in section.notes
    assert "CPU peer" not in table.columns(
        results.ScenarioResult("tiny", "", "requests", 1, [], a_scenario().points[:1], "")
    )


def test_charts_put_panels_in_rows_and_peers_beside_us(tmp_path: Path) -> None:
    assert charts.arrange(["a", "b", "c", "d"], [6.0, 6.0, 6.0, 20.0], 15.0) == [["a", "b"], ["c"], ["d"]]
    run = results.RunResult("2026-01-01T00:00:00+00:00", {}, {}, [a_scenario()])
    pictures = charts.draw(run, tmp_path / "run")
    assert [path.name for path in pictures] == ["run-throughput.png", "run-p99.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert charts._limits("encoding-1", a_scenario().points[0]) == [0.92]


def test_without_a_reference_throughput_itself_is_drawn(tmp_path: Path) -> None:
    """Runs beside peers only measure no raw limit; columns of ours and of a peer are there all the same."""
    from matplotlib import pyplot as plt

    scenario = a_scenario()
    for each in (each for point in scenario.points for each in point.rounds):
        each.of_raw = each.of_twin = None
    picture, _ = charts.draw(
        results.RunResult("2026-01-01T00:00:00+00:00", {}, {}, [scenario]), tmp_path / "run"
    )
    seen = (plt.imread(picture)[:, :, :3] * 255).round().astype("u1").reshape(-1, 3)
    for colour in (charts._OURS[0], charts._PEERS[0]):
        wanted = list(bytes.fromhex(colour.removeprefix("#")))
        # the legend's own patch is smaller
        assert int((seen == wanted).all(axis=1).sum()) > 5_000


def test_the_bars_are_those_that_the_project_demands() -> None:
    known = {(bar.scenario, bar.route, bar.clients, bar.metric): bar for bar in bars.BARS}
    assert known["encoding-1", "grpc", 32, "of_raw"].limit == 0.92
    assert known["encoding-1", "rest", 32, "of_raw"].limit == 0.88
    assert known["encoding-short", "grpc", 32, "of_raw"].limit == 0.85
    assert {key[2] for key in known if key[0] == "encoding-1" and key[3] == "of_peers"} == {1, 8, 32}
    assert known["encoding-1", "grpc", 32, "p99_of_peers"].upper
    peers = {(each.name, count) for each in scenarios.SCENARIOS for count in each.peer_clients if each.peers}
    assert {(key[0], key[2]) for key in known if "of_peers" in key[3]} <= peers


def test_a_tree_of_processes_is_ended_without_leftovers() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    started = subprocess.Popen([sys.executable, "-c", program])
    tree = process_tree.ProcessTree(started)
    while len(tree.processes()) < 2:
        time.sleep(0.02)
    processes = tree.processes()
    tree.end(started.terminate)
    while any(process.is_running() and process.status() != "zombie" for process in processes):
        time.sleep(0.02)
    assert started.returncode is not None
    assert tree.processes() == []
