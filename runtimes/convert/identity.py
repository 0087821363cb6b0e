"""Small models for tests of data types, batching, versions and cancellation; not part of the demo set."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.runtimes.convert import pbtxt
from headrace.runtimes.convert.arithmetic import addsub_config, addsub_graph, save

DATA_TYPES: Final = MappingProxyType(
    {
        "string": ("STRING", TensorProto.STRING),
        "fp16": ("FP16", TensorProto.FLOAT16),
        "bf16": ("BF16", TensorProto.BFLOAT16),
        "fp32": ("FP32", TensorProto.FLOAT),
        "fp64": ("FP64", TensorProto.DOUBLE),
        "bool": ("BOOL", TensorProto.BOOL),
        "int8": ("INT8", TensorProto.INT8),
        "int16": ("INT16", TensorProto.INT16),
        "int32": ("INT32", TensorProto.INT32),
        "int64": ("INT64", TensorProto.INT64),
        "uint8": ("UINT8", TensorProto.UINT8),
        "uint16": ("UINT16", TensorProto.UINT16),
        "uint32": ("UINT32", TensorProto.UINT32),
        "uint64": ("UINT64", TensorProto.UINT64),
    }
)
"""Suffix of the model's name → Triton's data type, ONNX's element type."""

SLOW_WIDTH: Final = 256
SLOW_STEPS: Final = 5000
"""2 * 256^3 operations a step: 170 GFLOP in all, one to two seconds on one core of a present server."""


def identity_models(destination: Path) -> list[str]:
    """Write all of these models into the repository ``destination``; the names of the models.

    ``id_<type>`` for every key of :data:`DATA_TYPES`: INPUT0 [-1] -> OUTPUT0 [-1], no batch dimension.
    ``id_str_batch``: BYTES [1] with batches up to 4. ``nobatch``: addsub without a batch dimension.
    ``multiv``: addsub with versions 1 and 3, both served. ``slow``: INT32 [1] passed through after some
    seconds of work, batches of 1.
    """
    for suffix, (data_type, element) in DATA_TYPES.items():
        _identity(destination / f"id_{suffix}", data_type, element, batched=False)
    _identity(destination / "id_str_batch", "STRING", TensorProto.STRING, batched=True)
    for name, versions in (("nobatch", (1,)), ("multiv", (1, 3))):
        batched = name == "multiv"
        for version in versions:
            save(destination / name / str(version) / "model.onnx", addsub_graph(batched=batched))
        config = addsub_config(name, batched=batched, all_versions=len(versions) > 1)
        pbtxt.write(destination / name, config)
    _slow(destination / "slow")
    return [*(f"id_{suffix}" for suffix in DATA_TYPES), "id_str_batch", "nobatch", "multiv", "slow"]


def _identity(folder: Path, data_type: str, element: int, *, batched: bool) -> None:
    shape: list[str | int | None] = ["batch", 1] if batched else ["length"]
    tensors = [helper.make_tensor_value_info(name, element, shape) for name in ("INPUT0", "OUTPUT0")]
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    save(folder / "1" / "model.onnx", helper.make_graph([node], "identity", tensors[:1], tensors[1:]))
    dims = [1] if batched else [-1]
    pbtxt.write(
        folder,
        pbtxt.ModelConfig(
            name=folder.name,
            inputs=[pbtxt.Tensor("INPUT0", data_type, dims)],
            outputs=[pbtxt.Tensor("OUTPUT0", data_type, dims)],
            max_batch_size=4 if batched else 0,
            dynamic_batching=batched,
            parameters={"task": "tensors"},
        ),
    )


def _slow(folder: Path) -> None:
    """A loop of matrix products between input and output: short kernels, so a run can be stopped midway."""
    # A rotation keeps the state's length, so no step overflows however long the loop is.
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((SLOW_WIDTH, SLOW_WIDTH)))
    state = [SLOW_WIDTH, SLOW_WIDTH]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_out"]),
            helper.make_node("MatMul", ["state", "rotation"], ["state_out"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("index", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, state),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, state),
        ],
    )
    nodes = [
        # The first state depends on the input, or the loop would be folded into a constant at load time.
        helper.make_node("Cast", ["INPUT0"], ["seed"], to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["seed"], ["bounded"]),
        helper.make_node("Mul", ["rotation", "bounded"], ["first"]),
        helper.make_node("Loop", ["steps", "", "first"], ["last"], body=body),
        # Minus one at least once: the sum of squares is not negative, so the result is zero for every input.
        helper.make_node("Mul", ["last", "last"], ["squares"]),
        helper.make_node("ReduceMin", ["squares"], ["least"], keepdims=0),
        helper.make_node("Neg", ["least"], ["negative"]),
        helper.make_node("Relu", ["negative"], ["zero"]),
        helper.make_node("Cast", ["zero"], ["zero_int"], to=TensorProto.INT32),
        helper.make_node("Add", ["INPUT0", "zero_int"], ["OUTPUT0"]),
    ]
    shape: list[str | int | None] = ["batch", 1]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in ("INPUT0", "OUTPUT0")
    ]
    constants: list[onnx.TensorProto] = [
        numpy_helper.from_array(rotation.astype(np.float32), "rotation"),
        numpy_helper.from_array(np.array(SLOW_STEPS, np.int64), "steps"),
    ]
    graph = helper.make_graph(nodes, "slow", tensors[:1], tensors[1:], initializer=constants)
    save(folder / "1" / "model.onnx", graph)
    pbtxt.write(
        folder,
        pbtxt.ModelConfig(
            name=folder.name,
            inputs=[pbtxt.Tensor("INPUT0", "INT32", [1])],
            outputs=[pbtxt.Tensor("OUTPUT0", "INT32", [1])],
            max_batch_size=1,
            parameters={"task": "tensors"},
        ),
    )
