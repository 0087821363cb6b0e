"""Tabular models: scikit-learn estimators, fitted on data sets that it ships, as ONNX graphs."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split

from headrace.runtimes.convert import pbtxt
from headrace.runtimes.convert.job import Checks, Job, require
from headrace.runtimes.convert.sessions import open_session

OPSETS: Final = MappingProxyType({"": 17, "ai.onnx.ml": 3})
MAX_BATCH_SIZE: Final = 1024
HELD_OUT: Final = 0.3


def build_iris(job: Job) -> Checks:
    """``iris``: random forest; FP32 [4] -> label INT64 [1], probabilities FP32 [3] in the labels' order."""
    data = load_iris()
    fit_x, test_x, fit_y, test_y = train_test_split(
        data.data.astype(np.float32), data.target, test_size=HELD_OUT, random_state=0, stratify=data.target
    )
    forest = RandomForestClassifier(50, random_state=0).fit(fit_x, fit_y)
    width = data.data.shape[1]
    model = to_onnx(
        forest,
        initial_types=[("features", FloatTensorType([None, width]))],
        options={"zipmap": False},
        target_opset=dict(OPSETS),
    )
    _name_outputs(model, {"output_label": "label", "output_probability": "probabilities"})
    _as_column(model, "label")
    session = _save(job, model)
    label, probabilities = session.run(["label", "probabilities"], {"features": data.data.astype(np.float32)})
    reference = forest.predict_proba(data.data.astype(np.float32))
    difference = float(np.abs(probabilities - reference).max())
    accuracy = float((session.run(["label"], {"features": test_x})[0][:, 0] == test_y).mean())
    pbtxt.write(
        job.target,
        pbtxt.ModelConfig(
            name=job.target.name,
            inputs=[pbtxt.Tensor("features", "FP32", [width])],
            outputs=[
                pbtxt.Tensor("label", "INT64", [1]),
                pbtxt.Tensor("probabilities", "FP32", [len(data.target_names)], "labels.txt"),
            ],
            max_batch_size=MAX_BATCH_SIZE,
            dynamic_batching=True,
            parameters={
                "task": "predict",
                "labels": ",".join(data.target_names),
                "feature_names": ",".join(data.feature_names),
            },
        ),
    )
    (job.target / "labels.txt").write_text(
        "".join(f"{name}\n" for name in data.target_names), encoding="utf-8"
    )
    return {
        "labels_unlike_scikit_learn": require(
            "rows labelled unlike scikit-learn",
            float((label[:, 0] != forest.predict(data.data)).sum()),
            below=1,
        ),
        "max_abs_difference": require("difference to scikit-learn", difference, below=1e-5),
        "held_out_accuracy": round(accuracy, 4),
        "held_out_rows": len(test_y),
    }


def build_diabetes(job: Job) -> Checks:
    """``diabetes``: linear regression in double precision; FP64 [10] -> prediction FP64 [1]."""
    data = load_diabetes()
    fit_x, test_x, fit_y, test_y = train_test_split(
        data.data, data.target, test_size=HELD_OUT, random_state=0
    )
    regression = LinearRegression().fit(fit_x, fit_y)
    width = data.data.shape[1]
    model = to_onnx(
        regression, initial_types=[("features", DoubleTensorType([None, width]))], target_opset=dict(OPSETS)
    )
    _name_outputs(model, {"variable": "prediction"})
    session = _save(job, model)
    prediction = session.run(["prediction"], {"features": data.data})[0][:, 0]
    pbtxt.write(
        job.target,
        pbtxt.ModelConfig(
            name=job.target.name,
            inputs=[pbtxt.Tensor("features", "FP64", [width])],
            outputs=[pbtxt.Tensor("prediction", "FP64", [1])],
            max_batch_size=MAX_BATCH_SIZE,
            dynamic_batching=True,
            parameters={"task": "predict", "default": "true", "feature_names": ",".join(data.feature_names)},
        ),
    )
    difference = float(np.abs(prediction - regression.predict(data.data)).max())
    return {
        "max_abs_difference": require("difference to scikit-learn", difference, below=1e-9),
        "held_out_r2": round(float(regression.score(test_x, test_y)), 4),
        "held_out_rows": len(test_y),
    }


def _save(job: Job, model: onnx.ModelProto) -> Any:
    """Check and write the model; a session on the written file."""
    onnx.checker.check_model(model, full_check=True)
    path = job.version / "model.onnx"
    onnx.save(model, path)
    return open_session(path)


def _name_outputs(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename outputs, and the tensors of that name inside the graph."""
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                tensors[index] = names.get(name, name)
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)


def _as_column(model: onnx.ModelProto, name: str) -> None:
    """Make the output ``name`` [batch, 1] instead of [batch]: every batched tensor has a shape of its own."""
    flat = f"{name}_flat"
    for node in model.graph.node:
        tensors: Sequence[str] = node.output
        for index, output in enumerate(tensors):
            if output == name:
                node.output[index] = flat
    model.graph.initializer.append(helper.make_tensor(f"{name}_axes", onnx.TensorProto.INT64, [1], [1]))
    model.graph.node.append(helper.make_node("Unsqueeze", [flat, f"{name}_axes"], [name]))
    shape = next(output for output in model.graph.output if output.name == name).type.tensor_type.shape
    shape.dim.add().dim_value = 1
