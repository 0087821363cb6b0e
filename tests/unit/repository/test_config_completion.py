# ruff: noqa: E501 - one case a line
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import TensorSpec
from headrace.runtimes.wire import Loaded
from headrace.server.errors import LoadFailedError
from headrace.server.repository.comparison import check_fit
from headrace.server.repository.completion import complete_tensors, fill_defaults
from headrace.server.repository.config import parse_text
from headrace.server.repository.model import ModelTensor
from headrace.server.repository.signature import model_inputs, model_outputs

BATCHED = Loaded(
    (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "BYTES", (-1, 2)),), "onnxruntime_onnx"
)
FIXED = Loaded((TensorSpec("x", "FP32", (4,)),), (TensorSpec("y", "INT64", (4,)),), "onnxruntime_onnx")


def complete(configuration: str, loaded: Loaded, **options: Any) -> ModelConfig:
    given = parse_text(f'name: "m" {configuration}', "F")
    config = complete_tensors(given, loaded, **{"dynamic": None, "text": False, **options})
    check_fit(config, loaded, given, "F")
    return config


def misfit(text: str, loaded: Loaded) -> str:
    with pytest.raises(LoadFailedError) as caught:
        complete(text, loaded)
    return caught.value.message


X = 'input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } '
Y = 'output { name: "y" data_type: TYPE_STRING dims: [ 2 ] } '


def test_everything_is_completed_from_a_model_that_batches() -> None:
    config = complete("", BATCHED)
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert config.input[0].name == "x"
    assert list(config.input[0].dims) == [4]
    assert ModelConfig.DESCRIPTOR.file.pool.FindEnumTypeByName("inference.DataType").values_by_number[
        config.output[0].data_type
    ].name == "TYPE_STRING"  # fmt: skip


def test_a_model_without_a_batch_dimension_is_completed_without_batching() -> None:
    config = complete("", FIXED)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4]


@pytest.mark.parametrize("shape", [(), (3, -1), (1, 4)])
def test_one_tensor_with_a_fixed_first_dimension_prevents_batching(shape: tuple[int, ...]) -> None:
    loaded = Loaded(BATCHED.inputs, (*BATCHED.outputs, TensorSpec("z", "FP32", shape)), "p")
    assert complete("", loaded).max_batch_size == 0


def test_complete_configurations_are_left_alone() -> None:
    config = complete(X + Y + "max_batch_size: 8", BATCHED)
    assert config.max_batch_size == 8
    assert not config.HasField("dynamic_batching")
    whole = X.replace("4", "-1, 4") + Y.replace("2", "-1, 2")
    assert complete(whole, BATCHED).max_batch_size == 0


def test_the_named_tensors_tell_whether_the_batch_is_left_out() -> None:
    assert complete(X, BATCHED).max_batch_size == 4
    assert complete(X.replace("4", "-1, 4"), BATCHED).max_batch_size == 0


def test_dynamic_batching_can_be_switched_off_and_on() -> None:
    assert not complete("", BATCHED, dynamic=False).HasField("dynamic_batching")
    assert complete("", BATCHED, dynamic=False).max_batch_size == 4
    assert complete(X + Y + "max_batch_size: 8", BATCHED, dynamic=True).HasField("dynamic_batching")
    assert not complete("", FIXED, dynamic=True).HasField("dynamic_batching")
    assert not complete("max_batch_size: 1", BATCHED).HasField("dynamic_batching")


def test_own_scheduler_settings_stay() -> None:
    config = complete("max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 5 }", BATCHED)
    assert config.dynamic_batching.max_queue_delay_microseconds == 5


def test_a_tensor_with_nothing_but_the_batch_gets_one_column() -> None:
    loaded = Loaded(BATCHED.inputs, (TensorSpec("label", "INT64", (-1,)),), "p")
    config = complete("", loaded)
    (output,) = model_outputs(config, {"label": ("no", "yes")})
    assert output == ModelTensor("label", "INT64", (1,), labels=("no", "yes"), reshape=())
    assert output.caller_shape((7,), batching=True) == (7, 1)


def test_a_mismatch_tells_everything_and_prints_what_fits() -> None:
    message = misfit(
        X.replace("[ 4 ]", "[ 5 ]").replace("FP32", "FP64")
        + Y.replace('"y"', '"z"')
        + 'max_batch_size: 8 parameters { key: "task" value { string_value: "tensors" } }',
        BATCHED,
    )
    head, _, printed = message.partition("This config.pbtxt fits:\n")
    assert head.splitlines() == [
        "F does not fit the model:",
        "  input 'x'.data_type: is TYPE_FP64, but the model has TYPE_FP32",
        "  input 'x'.dims: is [5], which with a batch stands for [-1,5], but the model has [-1,4]",
        "  output 'z': the model has no such output; it has 'y' BYTES [-1,2]",
        "The model has inputs 'x' FP32 [-1,4]; outputs 'y' BYTES [-1,2].",
    ]
    fits = parse_text(printed, "printed")
    assert fits == complete(X + Y + 'max_batch_size: 8 parameters { key: "task" value { string_value: "tensors" } }', BATCHED)  # fmt: skip


def test_a_missing_input_is_a_mismatch_and_a_missing_output_is_not() -> None:
    two = Loaded(
        (*BATCHED.inputs, TensorSpec("w", "FP32", (-1, 4))), (*BATCHED.outputs, *BATCHED.outputs), "p"
    )
    assert "  input: 'w' FP32 [-1,4] of the model is missing" in misfit(X + "max_batch_size: 2", two)
    more = Loaded(BATCHED.inputs, (*BATCHED.outputs, TensorSpec("z", "FP32", (-1, 1))), "p")
    assert [output.name for output in complete(X + Y + "max_batch_size: 2", more).output] == ["y"]


def test_a_batch_size_for_a_model_that_cannot_batch() -> None:
    message = misfit("max_batch_size: 8", FIXED)
    assert "max_batch_size: is 8, but the model does not support batching" in message
    assert "'x' [4]" in message
    assert "max_batch_size" not in message.partition("This config.pbtxt fits:\n")[2]


@pytest.mark.parametrize("dims", ["-1", "4"])
def test_variable_sizes_fit_fixed_ones_and_the_other_way_round(dims: str) -> None:
    loose = Loaded((TensorSpec("x", "FP32", (-1, -1)),), BATCHED.outputs, "p")
    for loaded in (loose, BATCHED):
        complete(X.replace("4", dims) + Y + "max_batch_size: 2", loaded)


def test_reshape_stands_for_the_models_own_shape() -> None:
    loaded = Loaded((TensorSpec("x", "FP32", (1, 3, 8)),), (TensorSpec("y", "FP32", (1, 10, 1)),), "p")
    config = complete(
        'input { name: "x" data_type: TYPE_FP32 dims: [ 3, 8 ] reshape { shape: [ 1, 3, 8 ] } } '
        'output { name: "y" data_type: TYPE_FP32 dims: [ 10 ] reshape { shape: [ 1, 10, 1 ] } }',
        loaded,
    )
    (tensor,) = model_inputs(config)
    assert tensor.dims == (3, 8)
    assert tensor.model_shape((3, 8), batching=False) == (1, 3, 8)
    assert model_outputs(config, {})[0].caller_shape((1, 10, 1), batching=False) == (10,)
    assert "input 'x'.reshape: is [1,3,9], but the model has [1,3,8]" in misfit(
        'input { name: "x" data_type: TYPE_FP32 dims: [ 3, 9 ] reshape { shape: [ 1, 3, 9 ] } } '
        'output { name: "y" data_type: TYPE_FP32 dims: [ 10 ] reshape { shape: [ 1, 10, 1 ] } }',
        loaded,
    )


@given(st.lists(st.sampled_from([-1, 1, 2, 5]), min_size=1, max_size=4), st.data(), st.booleans())
def test_reshaping_there_and_back_is_nothing(dims: list[int], data: st.DataObject, batching: bool) -> None:
    shape = [size for size in dims if size != 1]
    shape.insert(data.draw(st.integers(0, len(shape))), 1)
    tensor = ModelTensor("x", "FP32", tuple(dims), reshape=tuple(shape))
    sizes = [data.draw(st.integers(0, 9)) if size == -1 else size for size in dims]
    actual = (3, *sizes) if batching else tuple(sizes)
    assert tensor.caller_shape(tensor.model_shape(actual, batching=batching), batching=batching) == actual


def test_defaults_are_those_that_triton_answers() -> None:
    config = complete("max_batch_size: 8 dynamic_batching { }", BATCHED)
    fill_defaults(config)
    assert config.version_policy.latest.num_versions == 1
    assert config.optimization.input_pinned_memory.enable
    assert config.optimization.output_pinned_memory.enable
    assert list(config.dynamic_batching.preferred_batch_size) == [8]


def test_defaults_do_not_overwrite() -> None:
    config = complete(
        "version_policy { all { } } optimization { input_pinned_memory { enable: false } } max_batch_size: 8 "
        "dynamic_batching { preferred_batch_size: [ 2 ] }",
        BATCHED,
    )
    fill_defaults(config)
    assert config.version_policy.HasField("all")
    assert not config.optimization.input_pinned_memory.enable
    assert list(config.dynamic_batching.preferred_batch_size) == [2]


def test_text_models_always_batch() -> None:
    signature = Loaded(
        (TensorSpec("text", "BYTES", (-1, 1)),), (TensorSpec("embedding", "FP32", (-1, 8)),), "p"
    )
    config = complete("", signature, text=True)
    assert config.max_batch_size == 32
    assert config.HasField("dynamic_batching")
    assert [list(config.input[0].dims), list(config.output[0].dims)] == [[1], [8]]
