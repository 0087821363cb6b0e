from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.runtimes.base import TensorSpec
from headrace.runtimes.wire import Loaded
from headrace.server.errors import LoadFailedError
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.model import Task
from headrace.server.repository.preparation import prepare

LOADED = Loaded(
    (TensorSpec("LEFT", "FP32", (-1, 4)), TensorSpec("RIGHT", "FP32", (-1, 4))),
    (TensorSpec("SUM", "FP32", (-1, 4)),),
    "onnxruntime_onnx",
)


def read(models_of: Any, config: str | None = None) -> Any:
    if config is not None:
        models_of.config("m", config)
    return prepare(open_model("m", [models_of.root]), Machine(2))


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", [10]),
        ("version_policy { latest { } }", [10]),
        ("version_policy { latest { num_versions: 2 } }", [2, 10]),
        ("version_policy { latest { num_versions: 9 } }", [1, 2, 10]),
        ("version_policy { all { } }", [1, 2, 10]),
        ("version_policy { specific { versions: [ 10, 1, 7 ] } }", [1, 10]),
    ],
)
def test_version_policies(models_of: Any, policy: str, versions: list[int]) -> None:
    for version in (2, 10, 1):
        models_of.add("m", version=version)
    assert [definition.version for definition in read(models_of, policy)] == versions


def test_a_policy_without_a_match(models_of: Any) -> None:
    models_of.add("m")
    with pytest.raises(
        LoadFailedError, match=r"m/config\.pbtxt: version_policy: no version of 'm' matches; there are 1"
    ):
        read(models_of, "version_policy { specific { versions: [ 7 ] } }")


def test_the_name_is_the_folders(models_of: Any) -> None:
    models_of.add("m")
    with pytest.raises(
        LoadFailedError, match="unexpected directory name 'm' for model 'other', directory name must equal"
    ):
        read(models_of, 'name: "other"')


def test_completion_gives_what_triton_answers(models_of: Any) -> None:
    models_of.add("m")
    (definition,) = read(models_of)
    completed = definition.complete(LOADED)
    config = completed.config
    assert (config.name, config.backend, config.platform) == ("m", "onnxruntime", "onnxruntime_onnx")
    assert config.default_model_filename == "model.onnx"
    assert [(group.name, group.count) for group in config.instance_group] == [("m_0", 2)]
    assert (completed.max_batch_size, completed.dimensions, completed.platform) == (4, 0, "onnxruntime_onnx")
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert [tensor.name for tensor in completed.inputs] == ["LEFT", "RIGHT"]


def test_the_printed_remedy_is_what_was_written_with_the_right_tensors(models_of: Any) -> None:
    models_of.add("m")
    (definition,) = read(
        models_of, 'input { name: "WRONG" data_type: TYPE_FP32 dims: [ 4 ] } max_batch_size: 2'
    )
    with pytest.raises(LoadFailedError) as caught:
        definition.complete(LOADED)
    assert caught.value.message.startswith(
        "m/config.pbtxt does not fit the model:\n  input 'WRONG': the model has no"
    )
    printed = caught.value.message.partition("This config.pbtxt fits:\n")[2]
    assert "instance_group" not in printed
    (definition,) = read(models_of, printed)
    assert definition.complete(LOADED).max_batch_size == 2


def test_labels_of_files_and_of_the_parameter(models_of: Any) -> None:
    models_of.add("m")
    (models_of.root / "m" / "labels.txt").write_text("a\nb\nc\nd\n")
    tensors = "".join(
        f'input {{ name: "{name}" data_type: TYPE_FP32 dims: [ 4 ] }} ' for name in ("LEFT", "RIGHT")
    )
    output = 'output { name: "SUM" data_type: TYPE_FP32 dims: [ 4 ] %s } max_batch_size: 2 '
    (definition,) = read(models_of, tensors + output % 'label_filename: "labels.txt"')
    assert definition.complete(LOADED).outputs[0].labels == ("a", "b", "c", "d")
    listed = 'parameters { key: "labels" value: { string_value: "%s" } }'
    (definition,) = read(models_of, tensors + output % "" + listed % "w,x,y,z")
    assert definition.complete(LOADED).outputs[0].labels == ("w", "x", "y", "z")
    (definition,) = read(models_of, tensors + output % "" + listed % "w,x")
    assert definition.complete(LOADED).outputs[0].labels == ()


def test_what_the_runtime_gets(models_of: Any) -> None:
    models_of.add("m")
    (definition,) = read(
        models_of,
        'parameters { key: "enable_mem_arena" value: { string_value: "0" } } '
        'parameters { key: "task" value: { string_value: "predict" } } optimization { graph { level: 1 } }',
    )
    assert definition.task is Task.PREDICT
    assert definition.specs[0].options == {"enable_mem_arena": "0", "optimization.graph.level": "1"}
    assert definition.parameters == {"enable_mem_arena": "0", "task": "predict"}


def test_files_without_names_get_the_configurations(models_of: Any) -> None:
    (models_of.folder("m") / "1").mkdir()
    (models_of.root / "m" / "1" / "model.pt").write_text("")
    (definition,) = read(
        models_of,
        'max_batch_size: 8 input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, -1 ] } '
        'output { name: "OUTPUT__0" data_type: TYPE_INT64 dims: [ 10 ] reshape { shape: [ 1, 10 ] } }',
    )
    options = definition.specs[0].options
    assert json.loads(options["inputs"]) == [{"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 3, -1]}]
    assert json.loads(options["outputs"]) == [
        {"name": "OUTPUT__0", "datatype": "INT64", "shape": [-1, 1, 10]}
    ]


def test_embeddings_have_their_width(models_of: Any) -> None:
    models_of.text("m", width=8)
    (definition,) = read(models_of)
    outputs = (TensorSpec("embedding", "FP32", (-1, 8)), TensorSpec("token_embeddings", "FP32", (-1, 8)))
    completed = definition.complete(
        Loaded((TensorSpec("token_ids", "INT32", (-1,)),), outputs, "onnxruntime_onnx")
    )
    assert completed.dimensions == 8
    assert [(t.name, t.datatype, t.dims) for t in completed.inputs] == [("text", "BYTES", (1,))]
    assert [(t.name, t.datatype, t.dims) for t in completed.outputs] == [("embedding", "FP32", (8,))]
    unknown = Loaded((), (TensorSpec("embedding", "FP32", (-1, -1)),), "onnxruntime_onnx")
    assert definition.complete(unknown).dimensions == 8  # hidden_size of config.json


def test_labels_that_do_not_fit_the_head_are_a_mismatch(models_of: Any) -> None:
    labels = {"architectures": ["XForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}
    models_of.text("m", {"config.json": labels}, head="logits", width=3)
    (definition,) = read(models_of)
    loaded = Loaded((), (TensorSpec("logits", "FP32", (-1, 3)),), "onnxruntime_onnx")
    with pytest.raises(LoadFailedError, match=r"gives 3 scores, but there should be 2 \(a, b\)"):
        definition.complete(loaded)


def test_warnings_are_kept(models_of: Any) -> None:
    models_of.add("m")
    (definition,) = read(models_of, "response_cache { enable: true }")
    assert definition.warnings == ("m/config.pbtxt: response_cache: has no effect",)
