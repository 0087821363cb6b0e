"""How each peer is started: the files that it wants, its command line and its ports."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.encoding.peers.registry import Program
from benchmarks.environments import there

HOST: Final = "127.0.0.1"
CREATE: Final = "python -m benchmarks.encoding.peers --create"
ROOT: Final = Path(__file__).resolve().parents[3]
BATCH: Final = 32
"""Most texts that a peer's own batching puts together."""

_TRITON_CONFIG: Final = """\
name: "minilm"
backend: "python"
max_batch_size: {batch}
input {{ name: "text" data_type: TYPE_STRING dims: [ 1 ] }}
output {{ name: "embedding" data_type: TYPE_FP32 dims: [ 384 ] }}
dynamic_batching {{ }}
instance_group {{ kind: KIND_CPU count: {instances} }}
parameters {{ key: "folder" value: {{ string_value: "{model}" }} }}
parameters {{ key: "threads" value: {{ string_value: "{threads}" }} }}
"""
_TRITON_MODEL: Final = """\
import sys
sys.path.insert(0, {root!r})
from benchmarks.encoding.peers.served.triton import TritonPythonModel
"""
"""The backend's processes have a search path of their own."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a peer is given.

    Attributes:
        environment: its virtual environment.
        onnx: folder with the graph and the tokenizer.
        weights: folder with the same model as safetensors.
        folder: for its files and its log; empty.
        instances: of the model.
        threads: of each instance.
    """

    environment: Path
    onnx: Path
    weights: Path
    folder: Path
    instances: int
    threads: int

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.environment / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        return there(next(self.environment.glob("lib/python3*/site-packages")), CREATE)


@dataclass(frozen=True, slots=True)
class Command:
    """A server to be.

    Attributes:
        words: what to run.
        grpc: the port of its gRPC; 0 for none.
        http: the port of its REST; 0 for none.
        environment: variables beside the usual.
        shared: how the names of its shared memory begin; it is removed when the server has ended.
        stoppable: whether it bears being stopped while others are measured. Triton takes its Python processes
            for dead then and falls over later; idle, it costs nothing.
    """

    words: tuple[str, ...]
    grpc: int = 0
    http: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    shared: str = ""
    stoppable: bool = True


def triton(layout: Layout) -> Command:
    """Put a model repository and a backend folder together."""
    server = layout.packages / "pytriton" / "tritonserver"
    version = layout.packages.parent.name.removeprefix("python")
    backend = layout.folder / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    stub = "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub, backend / stub)
    model = layout.folder / "repository" / "minilm"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(_TRITON_MODEL.format(root=str(ROOT)))
    (model / "config.pbtxt").write_text(
        _TRITON_CONFIG.format(
            batch=BATCH, instances=layout.instances, model=layout.onnx, threads=layout.threads
        )
    )
    grpc, http = free_port(), free_port()
    shared = f"headrace-bench-{grpc}-"
    words = (
        str(server / "bin" / "tritonserver"), f"--model-repository={model.parent}",
        f"--backend-directory={backend.parent}", f"--grpc-port={grpc}", f"--http-port={http}",
        f"--grpc-address={HOST}", f"--http-address={HOST}", "--allow-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={shared}", "--exit-timeout-secs=2",
    )  # fmt: skip
    libraries = str(layout.packages / "nvidia_pytriton.libs")
    search = {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(layout.packages)}
    return Command(words, grpc, http, search, shared, stoppable=False)


def mlserver(layout: Layout) -> Command:
    """Write its settings; inference stays in its one process, as its batching wants it."""
    grpc, http, metrics = free_port(), free_port(), free_port()
    settings = {
        "host": HOST, "grpc_port": grpc, "http_port": http, "metrics_port": metrics, "parallel_workers": 0,
        "debug": False,
    }  # fmt: skip
    model = {
        "name": "minilm", "implementation": "benchmarks.encoding.peers.served.mlserver.EncoderModel",
        "max_batch_size": BATCH, "max_batch_time": 0.002,
        "parameters": {"extra": {"folder": str(layout.onnx), "threads": layout.threads}},
    }  # fmt: skip
    (layout.folder / "settings.json").write_text(json.dumps(settings))
    (layout.folder / "model-settings.json").write_text(json.dumps(model))
    words = (str(layout.environment / "bin" / "mlserver"), "start", str(layout.folder))
    return Command(words, grpc, http)


def kserve(layout: Layout) -> Command:
    """Start its server with our model."""
    grpc, http = free_port(), free_port()
    words = (
        str(layout.python), "-m", "benchmarks.encoding.peers.served.kserve", "--folder", str(layout.onnx),
        "--sessions", str(layout.instances), "--session-threads", str(layout.threads),
        "--http_port", str(http), "--grpc_port", str(grpc),
    )  # fmt: skip
    return Command(words, grpc, http)


def infinity(layout: Layout) -> Command:
    """Start it with the safetensors in fp32 and the batches that suit the mix; it sorts what waits."""
    http = free_port()
    words = (
        str(layout.environment / "bin" / "infinity_emb"), "v2", "--model-id", str(layout.weights),
        "--served-model-name", "minilm", "--engine", "torch", "--device", "cpu", "--dtype", "float32",
        "--host", HOST, "--port", str(http), "--url-prefix", "/v1", "--no-model-warmup", "--batch-size", "8",
    )  # fmt: skip
    threads = {
        "OMP_NUM_THREADS": str(layout.instances * layout.threads), "DO_NOT_TRACK": "1",
        # It computes in several threads with a team each: teams that spin take the cores from each other.
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    return Command(words, 0, http, threads)


LAUNCHERS: Final[Mapping[Program, Callable[[Layout], Command]]] = MappingProxyType(
    {"triton": triton, "mlserver": mlserver, "kserve": kserve, "infinity": infinity}
)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
