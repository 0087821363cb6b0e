# ruff: noqa: E501 - one case a line
from __future__ import annotations

import pytest

from headrace.server.errors import LoadFailedError
from headrace.server.repository.config import parse_text
from headrace.server.repository.parameters import read_parameters
from headrace.server.repository.validation import check_completed, check_config, check_one_answer, ineffective

GOOD = 'name: "m" input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } '


def problems(text: str) -> list[str]:
    with pytest.raises(LoadFailedError) as caught:
        check_config(
            parse_text(f'name: "m" {text}' if "name:" not in text[:6] else text, "m/config.pbtxt"), "F"
        )
    return caught.value.message.splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: -1", "F: max_batch_size: 'max_batch_size' must be non-negative value for m"),
        ("input { data_type: TYPE_FP32 dims: [1] }", "F: input[0].name: model input must specify 'name'"),
        ('input { name: "x" dims: [1] }', "F: input 'x'.data_type: model input must specify 'data_type'"),
        ('output { name: "y" data_type: TYPE_FP32 }', "F: output 'y'.dims: model output must specify 'dims'"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [0] }', "F: input 'x'.dims: dimension must be integer >= 1, or -1 to indicate a variable-size dimension; got 0"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-2] }', "F: input 'x'.dims: dimension must be integer >= 1, or -1 to indicate a variable-size dimension; got -2"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [4] reshape { shape: [2, 3] } }', "F: input 'x'.reshape: [2, 3] must have as many elements and variable sizes as dims [4]"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-1] reshape { shape: [4] } }', "F: input 'x'.reshape: [4] must have as many elements and variable sizes as dims [-1]"),
        ('input [{ name: "x" data_type: TYPE_FP32 dims: [1] }, { name: "x" data_type: TYPE_FP32 dims: [1] }]', "F: input 'x': there is more than one input of this name"),
        ("max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, 16 ] }", "F: dynamic_batching.preferred_batch_size: dynamic batching preferred size must be <= max batch size for m; 16 is more than 8"),
        ("max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 0 ] }", "F: dynamic_batching.preferred_batch_size: dynamic batching preferred size must be positive for m"),
        ("dynamic_batching { priority_levels: 4000000000 default_priority_level: 1 }", "F: dynamic_batching.priority_levels: a queue has at most 1024 priority levels, m has 4000000000: use fewer"),
        ("dynamic_batching { priority_levels: 3 }", "F: dynamic_batching.default_priority_level: default priority level must be in range [1, 3] for m; got 0"),
        ("dynamic_batching { priority_levels: 3 default_priority_level: 4 }", "F: dynamic_batching.default_priority_level: default priority level must be in range [1, 3] for m; got 4"),
        ("dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } } }", "F: dynamic_batching.priority_queue_policy: priority levels must be in range [1, 2] for m; got 3"),
        ("instance_group { count: -1 }", "F: instance_group[0].count: instance group of model m must have count > 0; got -1"),
        ("instance_group { kind: KIND_CPU gpus: [0] }", "F: instance_group[0].gpus: instance group of model m has kind KIND_CPU and names GPUs"),
        ("instance_group { kind: KIND_GPU gpus: [-1] }", "F: instance_group[0].gpus: instance group of model m names invalid GPU -1"),
        ("version_policy { specific { } }", "F: version_policy.specific: must name at least one version of m"),
        ("version_policy { specific { versions: [0] } }", "F: version_policy.specific.versions: a version is an integer > 0, got 0"),
        ('default_model_filename: "../x.onnx"', "F: default_model_filename: '../x.onnx' leads out of the model's folder"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [1] label_filename: "/etc/passwd" }', "F: output 'y'.label_filename: '/etc/passwd' leads out of the model's folder"),
        ("ensemble_scheduling { }", "F: ensemble_scheduling: this server does not support it; model 'm' cannot be served"),
        ("sequence_batching { }", "F: sequence_batching: this server does not support it; model 'm' cannot be served"),
    ],
)  # fmt: skip
def test_each_mistake_names_file_and_field(text: str, message: str) -> None:
    assert problems(text) == [message]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(problems('max_batch_size: -1 input { name: "x" } instance_group { count: -1 }')) == 4


def test_good_configurations_pass() -> None:
    check_config(parse_text(GOOD + "dynamic_batching { preferred_batch_size: [ 16 ] }", "F"), "F")
    check_config(parse_text(GOOD.replace("[ 4 ]", "[ 4, -1 ] reshape { shape: [ 2, -1, 2 ] }"), "F"), "F")


def test_preferred_sizes_wait_for_the_completed_batch_size() -> None:
    config = parse_text(GOOD + "dynamic_batching { preferred_batch_size: [ 16 ] }", "F")
    config.max_batch_size = 4
    with pytest.raises(LoadFailedError, match="16 is more than 4"):
        check_completed(config, "F")


def test_only_models_that_generate_may_answer_more_than_once() -> None:
    config = parse_text("model_transaction_policy { decoupled: true }", "F")
    with pytest.raises(LoadFailedError, match="decoupled: this server supports decoupled models for task"):
        check_one_answer(config, "F")
    check_config(config, "F")
    check_one_answer(parse_text("", "F"), "F")


def test_fields_without_effect_are_warned_of() -> None:
    config = parse_text(
        "response_cache { enable: true } instance_group { rate_limiter { priority: 2 } }", "F"
    )
    assert list(ineffective(config, "F")) == [
        "F: response_cache: has no effect",
        "F: instance_group[0].rate_limiter: has no effect",
    ]


def parameters(**values: str) -> str:
    return " ".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in values.items()
    )


def test_parameters_are_typed_and_the_rest_goes_to_the_runtime() -> None:
    read = read_parameters(
        parse_text(
            parameters(task="embed", default="TRUE", normalize="off", max_sequence_length="128", labels="a, b",
                       enable_mem_arena="0", intra_op_thread_count="2"),
            "F",
        ),
        "F",
    )  # fmt: skip
    assert (read.task, read.default, read.normalize, read.max_sequence_length) == ("embed", True, False, 128)
    assert (read.labels, read.intra_op_thread_count, read.multi_label) == (("a", "b"), 2, None)
    assert dict(read.options) == {"enable_mem_arena": "0"}
    assert read.warnings == ()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("task", "sing", "expected tensors, embed, classify, rerank, predict, generate"),
        (
            "pooling",
            "median",
            "unknown pooling 'median'; expected splade, splade_sum, splade_log1p, splade_sum_log1p, or of cls, max, mean, mean_sqrt, weighted_mean, last one or several, joined by +",
        ),
        ("default", "perhaps", "expected true or false"),
        ("max_sequence_length", "0", "expected a whole number of at least 1"),
        ("max_batch_tokens", "many", "expected a whole number of at least 1"),
        ("lone_threads", "-1", "expected a whole number of at least 0"),
        ("oversize_batch", "drop", "expected reject or split"),
        ("labels", "a,,b", "a name is empty"),
    ],
)
def test_wrong_parameters_say_what_was_expected(key: str, value: str, expected: str) -> None:
    with pytest.raises(LoadFailedError) as caught:
        read_parameters(parse_text(parameters(**{key: value}), "F"), "F")
    assert caught.value.message == f"F: parameters['{key}'] is '{value}': {expected}"


def test_misspelt_parameters_are_warned_of() -> None:
    read = read_parameters(parse_text(parameters(poolling="cls"), "F"), "F")
    assert read.warnings == ("F: parameters['poolling'] goes to the runtime; did you mean 'pooling'?",)
    assert dict(read.options) == {"poolling": "cls"}
