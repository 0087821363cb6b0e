"""Fused attention as a setting of the server and as a parameter of a model."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.runtimes.onnx.operators import available
from running import ServerProcess, start_server, stop_server

TEXTS = ["A short text.", "Rain fell on the valley all night, and by morning the river had left its bed."]


def vectors(server: ServerProcess, model: str) -> NDArray[np.float32]:
    body = json.dumps({"model": model, "input": TEXTS}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/embeddings", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array([item["embedding"] for item in json.load(answer)["data"]], np.float32)


@pytest.mark.slow
def test_a_model_can_be_left_as_it_is(demo_repository: Path, tmp_path: Path) -> None:
    """One server, the same files twice: only the model without the parameters is fused and shared."""
    demo = demo_repository.resolve()
    plain = tmp_path / "models" / "minilm-plain"
    plain.mkdir(parents=True)
    (plain / "1").symlink_to(demo / "minilm" / "1")
    (plain / "config.pbtxt").write_text(
        'parameters { key: "task" value: { string_value: "embed" } }\n'
        'parameters { key: "fuse_attention" value: { string_value: "0" } }\n'
        'parameters { key: "share_weights" value: { string_value: "0" } }\n'
    )
    cache = tmp_path / "graphs"
    server = start_server(
        "--model-repository", str(demo), "--model-repository", str(tmp_path / "models"), "--load-models",
        "minilm-plain", "--graph-cache", str(cache), log=tmp_path / "server.log",
    )  # fmt: skip
    try:
        expected = vectors(server, "minilm-plain")
        assert not cache.exists()
        url = f"{server.url}/v2/repository/models/minilm/load"
        urllib.request.urlopen(urllib.request.Request(url, b"{}", {"content-type": "application/json"}))
        np.testing.assert_allclose(vectors(server, "minilm"), expected, atol=1e-5)
        assert len(list(cache.glob("*.json"))) == 1
        graphs = {path.name.partition(".")[2] for path in cache.glob("*.onnx")}
        assert graphs == {"onnx", "packed.onnx", *["operators.onnx"] * available()}
        assert list((cache / "shared").glob("*/weights.bin"))
    finally:
        assert stop_server(server) == 0, (tmp_path / "server.log").read_text()[-4000:]
