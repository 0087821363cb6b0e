# ruff: noqa: E501 - one case a line
from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.server.errors import InvalidArgumentError, LoadFailedError
from headrace.server.repository.config import parse_json, parse_text, print_config, read_config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "m"\nmax_batch_sise: 3\n', "m/config.pbtxt:2: unknown field 'max_batch_sise' in ModelConfig; did you mean 'max_batch_size'? (in: max_batch_sise: 3)"),
        ('input [ { nme: "x" } ]', "m/config.pbtxt:1: unknown field 'nme' in ModelInput; did you mean 'name'? (in: input [ { nme: \"x\" } ])"),
        ("input { data_type: TYPE_INT23 }", "m/config.pbtxt:1: unknown value 'TYPE_INT23' of DataType; did you mean 'TYPE_INT32'? (in: input { data_type: TYPE_INT23 })"),
        ('max_batch_size: "x"', 'm/config.pbtxt:1: Couldn\'t parse integer: "x" (in: max_batch_size: "x")'),
    ],
)  # fmt: skip
def test_mistakes_are_located_and_explained(text: str, message: str) -> None:
    with pytest.raises(LoadFailedError) as caught:
        parse_text(text, "m/config.pbtxt")
    assert caught.value.message == message


def test_two_schedulers_are_refused() -> None:
    with pytest.raises(LoadFailedError, match="sequence_batching"):
        parse_text("dynamic_batching {} sequence_batching {}", "m/config.pbtxt")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LoadFailedError, match=r"^m/config\.pbtxt: the file cannot be read"):
        read_config(tmp_path / "config.pbtxt", "m/config.pbtxt")


def test_printed_configurations_parse_again() -> None:
    config = parse_text(
        'name: "m" max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] } '
        'parameters { key: "task" value: { string_value: "ümlaut \\"x\\"" } } dynamic_batching { }',
        "label",
    )
    printed = print_config(config)
    assert parse_text(printed, "label") == config
    assert "dims: [3, -1]" in printed
    assert 'parameters { key: "task" value { string_value: "ümlaut \\"x\\"" } }' in printed


@pytest.mark.parametrize(
    "content",
    [
        {"maxBatchSize": 4, "input": [{"name": "x", "dataType": "TYPE_INT8", "dims": ["1", "-1"]}]},
        {"max_batch_size": 4, "input": [{"name": "x", "data_type": "TYPE_INT8", "dims": [1, -1]}]},
        {"max_batch_size": "4", "input": [{"name": "x", "data_type": 6, "dims": [1, "-1"]}]},
    ],
)
def test_json_in_all_spellings(content: object) -> None:
    config = parse_json(json.dumps(content))
    assert config.max_batch_size == 4
    assert list(config.input[0].dims) == [1, -1]
    assert config.input[0].data_type == 6


@pytest.mark.parametrize(
    "text",
    ['{"nope": 1}', "{", "[]", "null", "3", "", '{"max_batch_size": 99999999999}', '{"max_batch_size": "x"}',
     '{"input": [{"data_type": "TYPE_X"}]}', '{"max_batch_size": 1, "max_batch_size": 2}', '{"a":' + "[" * 100_000,
     '{"dynamic_batching": {}, "sequence_batching": {}}'],
)  # fmt: skip
def test_wrong_json_is_an_invalid_override(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^Invalid config override: ."):
        parse_json(text)


def test_unknown_json_field_is_named() -> None:
    with pytest.raises(
        InvalidArgumentError, match="unknown field 'max_batchsize' in ModelConfig; did you mean"
    ):
        parse_json('{"max_batchsize": 1}')


def test_empty_json_is_an_empty_configuration() -> None:
    assert parse_json(" {} ") == ModelConfig()
