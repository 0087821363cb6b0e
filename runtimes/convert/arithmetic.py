"""Models without weights: sums and differences, in the shape of Triton's first example."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from headrace.runtimes.convert import pbtxt
from headrace.runtimes.convert.job import Checks, Job, require
from headrace.runtimes.convert.sessions import open_session

WIDTH: Final = 16
MAX_BATCH_SIZE: Final = 64
OPSET: Final = 17
IR_VERSION: Final = 9
"""Old enough for every ONNX Runtime of the last years."""


def save(path: Path, graph: onnx.GraphProto, opset: int = OPSET) -> None:
    """Check a graph and write it as a model file, making the folder when it is absent."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="headrace")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def addsub_graph(*, batched: bool) -> onnx.GraphProto:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1: INT32 [batch, 16], or [16] when not batched."""
    shape: list[str | int | None] = ["batch", WIDTH] if batched else [WIDTH]
    tensor = {
        name: helper.make_tensor_value_info(name, TensorProto.INT32, shape)
        for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    }
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    inputs, outputs = [tensor["INPUT0"], tensor["INPUT1"]], [tensor["OUTPUT0"], tensor["OUTPUT1"]]
    return helper.make_graph(nodes, "addsub", inputs, outputs)


def addsub_config(
    name: str, *, batched: bool, labels: bool = False, all_versions: bool = False
) -> pbtxt.ModelConfig:
    """The configuration of an addsub model; ``labels`` names labels.txt for OUTPUT0."""
    return pbtxt.ModelConfig(
        name=name,
        inputs=[pbtxt.Tensor(key, "INT32", [WIDTH]) for key in ("INPUT0", "INPUT1")],
        outputs=[
            pbtxt.Tensor("OUTPUT0", "INT32", [WIDTH], "labels.txt" if labels else ""),
            pbtxt.Tensor("OUTPUT1", "INT32", [WIDTH]),
        ],
        max_batch_size=MAX_BATCH_SIZE if batched else 0,
        dynamic_batching=batched,
        all_versions=all_versions,
        parameters={"task": "tensors"},
    )


def build_addsub(job: Job) -> Checks:
    """The demo model ``addsub``."""
    save(job.version / "model.onnx", addsub_graph(batched=True))
    (job.target / "labels.txt").write_text(
        "".join(f"label{index}\n" for index in range(WIDTH)), encoding="utf-8"
    )
    pbtxt.write(job.target, addsub_config(job.target.name, batched=True, labels=True))
    session = open_session(job.version / "model.onnx")
    left, right = np.arange(2 * WIDTH, dtype=np.int32).reshape(2, WIDTH), np.full((2, WIDTH), 7, np.int32)
    total, difference = session.run(None, {"INPUT0": left, "INPUT1": right})
    wrong = np.count_nonzero(total != left + right) + np.count_nonzero(difference != left - right)
    return {"wrong_elements": require("wrong elements", float(wrong), below=1)}
