"""config.pbtxt files of the demo models: what the text form says is what was meant."""

from __future__ import annotations

from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from headrace.kserve.v2 import model_config_pb2
from headrace.runtimes.convert.pbtxt import ModelConfig, Tensor, quoted, render


def parse(text: str) -> model_config_pb2.ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_every_field_arrives() -> None:
    config = parse(
        render(
            ModelConfig(
                name="m",
                inputs=[Tensor("text", "STRING", [1])],
                outputs=[Tensor("scores", "FP32", [-1, 3], "labels.txt")],
                max_batch_size=8,
                backend="torch",
                parameters={"task": "classify", "default": "true"},
                dynamic_batching=True,
                all_versions=True,
            )
        )
    )
    assert (config.name, config.backend, config.max_batch_size) == ("m", "torch", 8)
    (given_input,), (output,) = config.input, config.output
    assert (given_input.name, given_input.data_type, list(given_input.dims)) == (
        "text",
        model_config_pb2.TYPE_STRING,
        [1],
    )
    assert (output.name, output.data_type, list(output.dims), output.label_filename) == (
        "scores",
        model_config_pb2.TYPE_FP32,
        [-1, 3],
        "labels.txt",
    )
    assert config.HasField("dynamic_batching")
    assert config.version_policy.HasField("all")
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "task": "classify",
        "default": "true",
    }


def test_what_is_not_asked_for_is_absent() -> None:
    config = parse(render(ModelConfig("m", [Tensor("x", "INT8", [2])], [Tensor("y", "INT8", [2])])))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("version_policy")
    assert not config.output[0].label_filename
    assert not config.parameters


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=50))
def test_any_text_survives_quoting(text: str) -> None:
    assert parse(f"name: {quoted(text)}").name == text
