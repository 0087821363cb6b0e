# ruff: noqa: E501 - one case a line
"""Models that generate text: recognised, read, refused, described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.wire import Loaded
from headrace.server.errors import LoadFailedError
from headrace.server.repository.chat_files import MAX_TEMPLATE_BYTES
from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.generation import CPU_CACHE_BYTES, kv_token_bytes
from headrace.server.repository.generation_report import describe_generation
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.model import GenerationSettings, SamplingDefaults, Task
from headrace.server.repository.preparation import prepare

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "vocab_size": 7,
    "eos_token_id": 3,
}


CPU = Machine(4)


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }} '


def write(
    models_of: Any, files: dict[str, Any] | None = None, *, config: str | None = None, **changes: Any
) -> Path:
    """A model ``m``: ``changes`` are of config.json, ``files`` lie beside it."""
    folder: Path = models_of.text("m", {"config.json": {**LLAMA, **changes}, **(files or {})}, config=config)
    return folder


def read(models_of: Any, machine: Machine = CPU) -> ModelDefinition:
    (definition,) = prepare(open_model("m", [models_of.root]), machine)
    return definition


def settings_of(models_of: Any) -> GenerationSettings:
    settings = read(models_of).generation
    assert settings is not None
    return settings


def spec_of(models_of: Any, machine: Machine = CPU) -> GenerationSpec:
    spec = read(models_of, machine).specs[0].generation
    assert spec is not None
    return spec


def failure(models_of: Any) -> str:
    with pytest.raises(LoadFailedError) as caught:
        read(models_of)
    return caught.value.message


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_a_causal_language_model_generates(models_of: Any, architecture: str) -> None:
    folder = write(models_of, architectures=[architecture])
    definition = read(models_of)
    assert (definition.task, definition.text_model) == (Task.GENERATE, None)
    (instance,) = definition.specs
    assert (instance.runtime, instance.path, instance.device) == ("onnx", str(folder / "model.onnx"), "cpu")
    assert (instance.threads, instance.lone_threads, instance.text) == (4, 0, None)
    assert instance.options == {}
    settings = settings_of(models_of)
    assert (settings.max_tokens, settings.vocabulary_size, settings.eos_ids) == (256, 7, (3,))
    assert len(settings.tokenizer.encode("a b a b a b").ids) == 8, "neither padded nor cut"


def test_other_signs_make_it_something_else(models_of: Any) -> None:
    write(models_of, config=parameter("task", "embed"))
    assert read(models_of).task is Task.EMBED
    write(
        models_of,
        {"modules.json": [{"path": "", "type": "sentence_transformers.models.Transformer"}]},
        config="",
    )
    assert read(models_of).task is Task.EMBED
    (models_of.root / "m" / "modules.json").unlink()
    models_of.config("m", 'input { name: "LEFT" data_type: TYPE_FP32 dims: [4] }')
    assert read(models_of).task is Task.TENSORS


def test_the_task_says_so_for_any_architecture(models_of: Any) -> None:
    folder = write(models_of, architectures=["SomethingNew"], config=parameter("task", "generate"))
    assert read(models_of).task is Task.GENERATE
    (folder / "tokenizer.json").unlink()
    assert failure(models_of).startswith("m: task 'generate' needs tokenizer.json beside the model")


def test_triton_folders_share_files_and_declare_texts(models_of: Any) -> None:
    folder = models_of.text(
        "m",
        {"config.json": LLAMA},
        version="2",
        config='input { name: "text_input" data_type: TYPE_STRING dims: [1] } model_transaction_policy { decoupled: true }',
    )
    for name in ("tokenizer.json", "config.json"):
        (folder / name).rename(folder.parent / name)
    definition = read(models_of)
    assert (definition.task, definition.version) == (Task.GENERATE, 2)
    assert definition.specs[0].generation is not None
    assert definition.specs[0].generation.tokenizer == str(folder.parent / "tokenizer.json")


def test_only_such_models_may_be_decoupled(models_of: Any) -> None:
    models_of.add("m", config="model_transaction_policy { decoupled: true }")
    assert "for task 'generate' only" in failure(models_of)


def test_weights_and_devices_choose_the_runtime(models_of: Any) -> None:
    folder = write(models_of)
    (folder / "model.safetensors").write_bytes(b"")
    assert read(models_of).specs[0].runtime == "onnx"
    gpus = read(models_of, Machine(4, 2)).specs
    assert [(spec.runtime, spec.device, spec.path) for spec in gpus] == [
        ("torch", "cuda:0", str(folder)),
        ("torch", "cuda:1", str(folder)),
    ]
    models_of.config("m", 'backend: "onnxruntime"')
    assert read(models_of, Machine(4, 2)).specs[0].runtime == "onnx"
    models_of.config("m", "instance_group { count: 2 }")
    assert [spec.threads for spec in read(models_of).specs] == [2, 2]


def test_what_callers_of_the_kserve_api_see(models_of: Any) -> None:
    write(models_of)
    completed = read(models_of).complete(Loaded((), (), "onnxruntime_onnx"))
    assert [(t.name, t.datatype, t.dims) for t in completed.inputs[:2]] == [
        ("text_input", "BYTES", (1,)),
        ("stream", "BOOL", (1,)),
    ]
    assert [tensor.name for tensor in completed.inputs if not tensor.optional] == ["text_input"]
    assert [(t.name, t.datatype, t.dims) for t in completed.outputs[:2]] == [
        ("text_output", "BYTES", (-1,)),
        ("finish_reason", "BYTES", (-1,)),
    ]
    assert len(completed.config.input) == len(completed.inputs) == 31
    assert (completed.max_batch_size, completed.platform) == (0, "onnxruntime_onnx")
    assert completed.config.model_transaction_policy.decoupled
    assert not completed.config.HasField("dynamic_batching")


def test_defaults_and_parameters_of_the_engine(models_of: Any) -> None:
    write(models_of)
    tokenizer = str(models_of.root / "m" / "tokenizer.json")
    assert spec_of(models_of) == GenerationSpec(
        max_tokens=256, max_sequences=32, kv_tokens=32 * 1024, eos_ids=(3,), tokenizer=tokenizer
    )
    assert spec_of(models_of, Machine(4, 1)) == GenerationSpec(
        max_tokens=256, max_sequences=256, kv_tokens=256 * 1024, step_tokens=2048, prefill_tokens=8192,
        eos_ids=(3,), tokenizer=tokenizer,
    )  # fmt: skip
    given = {
        "max_tokens": "100", "max_sequences": "2", "kv_tokens": "400", "block_tokens": "8", "step_tokens": "50",
        "prefill_tokens": "60", "prefix_cache": "off", "draft_tokens": "3", "max_queue": "0",
    }  # fmt: skip
    models_of.config("m", "".join(parameter(key, value) for key, value in given.items()))
    assert spec_of(models_of) == GenerationSpec(
        max_tokens=100, max_sequences=2, kv_tokens=400, block_tokens=8, step_tokens=50, prefill_tokens=60,
        prefix_cache=False, draft_tokens=3, eos_ids=(3,), tokenizer=tokenizer,
    )  # fmt: skip
    definition = read(models_of)
    assert definition.generation_model is not None
    assert definition.generation_model.max_queue == 0
    assert definition.warnings == ()


def test_large_models_get_a_cache_that_fits_into_memory(models_of: Any) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
    }
    write(models_of, **sizes, max_position_embeddings=131_072)
    spec = spec_of(models_of)
    assert (spec.max_tokens, spec.kv_tokens) == (8192, 8192), "one sequence always fits"
    models_of.config("m", parameter("max_tokens", "2048"))
    tokens = spec_of(models_of).kv_tokens
    assert tokens % 16 == 0
    assert (
        CPU_CACHE_BYTES * 0.99
        < tokens * kv_token_bytes(sizes)
        <= CPU_CACHE_BYTES + 16 * kv_token_bytes(sizes)
    )


def test_the_size_of_a_token_is_read_from_any_spelling() -> None:
    llama = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    assert kv_token_bytes(llama) == kv_token_bytes({"text_config": {**llama, "head_dim": 64}}) == 46_080
    assert kv_token_bytes({"n_layer": 12, "n_head": 12, "n_embd": 768}) == 12 * 768 * 2 * 4
    assert kv_token_bytes({}) == 0


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"max_tokens": "257"}, "parameters['max_tokens'] is 257, but the model has 256 positions"),
        ({"kv_tokens": "255"}, "parameters['kv_tokens'] is 255, whose blocks of 16 hold less than one sequence of max_tokens 256"),
        ({"kv_tokens": "270", "max_tokens": "100", "block_tokens": "200"}, ""),
        ({"kv_tokens": "199", "max_tokens": "100", "block_tokens": "100"}, ""),
        ({"kv_tokens": "199", "max_tokens": "101", "block_tokens": "100"}, "whose blocks of 100 hold less"),
        ({"chat_template": "other"}, "parameters['chat_template'] is 'other', which is neither a template nor a file of the model; it has no templates"),
        ({"chat_template": "../x"}, "neither a template nor a file"),
        ({"tool_parser": "No Name"}, "parameters['tool_parser'] is 'No Name': expected hermes, "),
        ({"max_sequences": "0"}, "expected a whole number of at least 1"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit(models_of: Any, parameters: dict[str, str], text: str) -> None:
    write(models_of, config="".join(parameter(key, value) for key, value in parameters.items()))
    if text:
        assert text in failure(models_of)
    else:
        assert spec_of(models_of).max_tokens == 100


def test_all_files_may_name_ids_that_end_texts(models_of: Any) -> None:
    files = {
        "generation_config.json": {"eos_token_id": [5, 6]},
        "tokenizer_config.json": {"eos_token": {"content": "[SEP]", "lstrip": False}, "bos_token": None},
        "special_tokens_map.json": {"bos_token": "[CLS]", "eos_token": "[UNK]"},
    }
    write(models_of, files, eos_token_id=5)
    settings = settings_of(models_of)
    assert settings.eos_ids == (5, 6, 3)
    assert settings.special_tokens == {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    write(models_of, {"generation_config.json": {"eos_token_id": "x"}})
    assert "m/generation_config.json: eos_token_id: expected token ids, got 'x'" in failure(models_of)


def test_sampling_defaults_are_the_models_own(models_of: Any) -> None:
    write(
        models_of,
        {
            "generation_config.json": {
                "temperature": 1,
                "top_k": -1,
                "top_p": 0.9,
                "max_new_tokens": 5,
                "do_sample": True,
            }
        },
    )
    assert settings_of(models_of).defaults == SamplingDefaults(
        temperature=1.0, top_k=0, top_p=0.9, max_new_tokens=5
    )
    for wrong in ({"top_p": 2}, {"temperature": "hot"}, {"top_k": 1.5}, {"repetition_penalty": 0}):
        write(models_of, {"generation_config.json": wrong})
        assert f"m/generation_config.json: {next(iter(wrong))} is" in failure(models_of)


def test_chat_templates_of_all_files(models_of: Any) -> None:
    folder = write(models_of, {"tokenizer_config.json": {"chat_template": "own"}})
    assert settings_of(models_of).chat_templates == {"default": "own"}
    named = [{"name": "default", "template": "list"}, {"name": "tool_use", "template": "a <tool_call> b"}]
    write(models_of, {"tokenizer_config.json": {"chat_template": named}})
    assert settings_of(models_of).chat_templates == {"default": "list", "tool_use": "a <tool_call> b"}
    assert settings_of(models_of).tool_parser == "hermes"
    (folder / "chat_template.jinja").write_text("file")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r [TOOL_CALLS]")
    templates = {"default": "file", "tool_use": "a <tool_call> b", "rag": "r [TOOL_CALLS]"}
    assert settings_of(models_of).chat_templates == templates
    models_of.config("m", parameter("chat_template", "rag") + parameter("tool_parser", ""))
    assert settings_of(models_of).chat_templates == {**templates, "default": "r [TOOL_CALLS]"}
    assert settings_of(models_of).tool_parser == ""
    (folder / "mine.txt").write_text("mine")
    models_of.config("m", parameter("chat_template", "mine.txt"))
    assert settings_of(models_of).chat_templates["default"] == "mine"
    models_of.config("m", parameter("chat_template", ""))
    assert "default" not in settings_of(models_of).chat_templates


def test_chat_templates_that_are_refused(models_of: Any) -> None:
    folder = write(models_of, {"tokenizer_config.json": {"chat_template": [{"name": "x"}]}})
    assert "m/tokenizer_config.json: chat_template: expected text, or a list" in failure(models_of)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "x" * (MAX_TEMPLATE_BYTES + 1)})
    )
    assert "the chat template has 262145 bytes" in failure(models_of)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b"x" * (MAX_TEMPLATE_BYTES + 1))
    assert "m/chat_template.jinja: the chat template has 262145 bytes" in failure(models_of)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "m/chat_template.jinja: the chat template cannot be read" in failure(models_of)


def test_a_template_may_not_lie_outside(models_of: Any, tmp_path: Path) -> None:
    folder = write(models_of)
    (tmp_path / "secret").write_text("secret")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    assert "m/chat_template.jinja is a link that leads out" in failure(models_of)


def test_what_check_says(models_of: Any) -> None:
    write(
        models_of,
        {
            "generation_config.json": {"temperature": 0.5},
            "tokenizer_config.json": {"chat_template": "[TOOL_CALLS]"},
        },
    )
    model = read(models_of).generation_model
    assert model is not None
    assert describe_generation(model) == [
        "sequences of up to 256 tokens, 32 at once",
        "KV cache for 32768 tokens in blocks of 16 (up to 24 MiB in float32), prefix cache on",
        "vocabulary of 7 tokens; texts end with 3 '[SEP]'",
        "chat templates: default",
        "tool calls: mistral",
        "sampling defaults: temperature 0.5",
    ]
