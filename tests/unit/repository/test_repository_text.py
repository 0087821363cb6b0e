# ruff: noqa: E501 - one case a line
from __future__ import annotations

from typing import Any

import pytest

from headrace.server.errors import LoadFailedError
from headrace.server.repository.definition import ModelDefinition
from headrace.server.repository.instances import Machine
from headrace.server.repository.layout import open_model
from headrace.server.repository.model import Task
from headrace.server.repository.preparation import prepare

CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "id2label": {"1": "yes", "0": "no"}}


def read(models_of: Any, name: str = "m") -> ModelDefinition:
    (definition,) = prepare(open_model(name, [models_of.root]), Machine(2))
    return definition


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }} '


def module(path: str, kind: str) -> dict[str, str]:
    return {"path": path, "type": f"sentence_transformers.models.{kind}"}


def failure(models_of: Any) -> str:
    with pytest.raises(LoadFailedError) as caught:
        read(models_of)
    return caught.value.message


def test_a_hugging_face_folder_is_an_embedder(models_of: Any) -> None:
    folder = models_of.text("m", {"config.json": {"architectures": ["BertModel"], "pad_token_id": 0}})
    definition = read(models_of)
    assert (definition.task, definition.version, definition.folder) == (Task.EMBED, 1, folder)
    (first, second) = definition.specs
    assert (first.runtime, first.path, first.lone_threads) == ("onnx", str(folder / "model.onnx"), 2)
    assert second.lone_threads == 0
    assert first.text is not None
    assert (first.text.head, first.text.pooling, first.text.pad_id) == ("embed", "mean", 0)


def test_the_tokenizer_neither_pads_nor_cuts(models_of: Any) -> None:
    models_of.text("m")
    settings = read(models_of).text
    assert settings is not None
    encodings = settings.tokenizer.encode_batch(["a b a b a b", "a"])
    assert [len(encoding.ids) for encoding in encodings] == [8, 3]


def test_a_triton_folder_with_a_shared_tokenizer(models_of: Any) -> None:
    folder = models_of.text("m", version="3", config=parameter("task", "embed"))
    for name in ("tokenizer.json", "config.json"):
        (folder / name).rename(folder.parent / name)
    definition = read(models_of)
    assert (definition.version, definition.task) == (3, Task.EMBED)


@pytest.mark.parametrize(
    ("config", "task", "labels"),
    [
        (CLASSIFIER, Task.CLASSIFY, ("no", "yes")),
        ({**CLASSIFIER, "id2label": {"0": "LABEL_0"}}, Task.RERANK, ("LABEL_0",)),
        ({"architectures": ["XForSequenceClassification"], "num_labels": 1}, Task.RERANK, ()),
        ({"architectures": ["XForSequenceClassification"]}, Task.CLASSIFY, ()),
        ({"architectures": ["BertForMaskedLM"]}, Task.EMBED, ()),
        ({"architectures": ["T5EncoderModel"]}, Task.EMBED, ()),
        ({}, Task.EMBED, ()),
    ],
)
def test_the_architecture_tells_the_task(
    models_of: Any, config: dict[str, Any], task: Task, labels: tuple[str, ...]
) -> None:
    models_of.text("m", {"config.json": config}, head="logits", width=2)
    definition = read(models_of)
    assert definition.task is task
    assert definition.text is not None
    assert definition.text.labels == labels


@pytest.mark.parametrize(
    "architecture", ["T5ForConditionalGeneration", "GPT2DoubleHeadsModel", "BertForTokenClassification"]
)
def test_other_architectures_need_a_task(models_of: Any, architecture: str) -> None:
    models_of.text("m", {"config.json": {"architectures": [architecture]}})
    assert f"m/config.json: architecture {architecture} does not tell a task" in failure(models_of)
    models_of.config("m", parameter("task", "embed"))
    assert read(models_of).task is Task.EMBED


def test_sentence_transformers_make_any_architecture_an_embedder(models_of: Any) -> None:
    files = {"config.json": {"architectures": ["Qwen3ForCausalLM"]}, "1_Pooling/config.json": {"pooling_mode_lasttoken": True}}  # fmt: skip
    models_of.text("m", files)
    definition = read(models_of)
    assert definition.task is Task.EMBED
    assert definition.specs[0].text is not None
    assert definition.specs[0].text.pooling == "last"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted_mean"),
        ({"pooling_mode": "weightedmean", "include_prompt": True}, "weighted_mean"),
        ({"pooling_mode": ["mean", "max"]}, "mean+max"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls+mean"),
    ],
)
def test_pooling_of_the_pooling_module(models_of: Any, config: dict[str, Any], pooling: str) -> None:
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "pool", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    models_of.text("m", {"modules.json": modules, "pool/config.json": config})
    text = read(models_of).specs[0].text
    assert text is not None
    assert text.pooling == pooling
    models_of.config("m", parameter("pooling", "cls"))
    text = read(models_of).specs[0].text
    assert text is not None
    assert text.pooling == "cls"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (None, "splade"),
        ({"word_embedding_dimension": None}, "splade"),
        ({"pooling_strategy": "max", "activation_function": "relu"}, "splade"),
        ({"pooling_strategy": "sum", "activation_function": "relu"}, "splade_sum"),
        ({"pooling_strategy": "max", "activation_function": "log1p_relu"}, "splade_log1p"),
        ({"pooling_strategy": "sum", "activation_function": "log1p_relu"}, "splade_sum_log1p"),
    ],
)
def test_pooling_of_the_splade_module(models_of: Any, config: dict[str, Any] | None, pooling: str) -> None:
    files: dict[str, Any] = {
        "modules.json": [module("", "MLMTransformer"), module("1_SpladePooling", "SpladePooling")]
    }
    models_of.text("m", files if config is None else {**files, "1_SpladePooling/config.json": config})
    definition = read(models_of)
    text = definition.specs[0].text
    assert text is not None
    assert text.pooling == pooling
    assert definition.text is not None
    assert definition.text.sparse
    assert not definition.text.normalize


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_median": True}}, "pooling median is not supported"),
        ({"1_Pooling/config.json": {"pooling_mode": ["cls", "median"]}}, "pooling cls + median is not supported"),
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": False}}, "pooling unknown is not supported"),
        ({"modules.json": [module("1_S", "SpladePooling")], "1_S/config.json": {"pooling_strategy": "mean"}}, "m/1_S/config.json: pooling_strategy 'mean' with activation_function 'relu' is not supported; expected max or sum with relu or log1p_relu"),
        ({"modules.json": [module("1_S", "SpladePooling")], "1_S/config.json": {"activation_function": ["gelu"]}}, "pooling_strategy 'max' with activation_function \"['gelu']\" is not supported"),
        ({"1_Pooling/config.json": {"pooling_mode": "cls", "include_prompt": False}, "config_sentence_transformers.json": {"prompts": {"a": "b"}}}, "include_prompt is false"),
        ({"modules.json": [module("2_Dense", "Dense")]}, "m/modules.json: module Dense ('2_Dense') does not work on the pooled vector"),
        ({"modules.json": [module("1_Pooling", "Pooling"), module("2_Normalize", "Normalize"), module("3_Dense", "Dense")], "1_Pooling/config.json": {"pooling_mode": "mean"}}, "module Dense ('3_Dense') does not work on the pooled vector"),
        ({"modules.json": [module("1_Pooling", "Pooling"), module("2_Dense", "Dense")], "1_Pooling/config.json": {"pooling_mode": "mean"}}, "module Dense ('2_Dense') has no model.safetensors"),
        ({"modules.json": [module("1_Pooling", "Pooling"), module("2_CNN", "CNN")], "1_Pooling/config.json": {"pooling_mode": "mean"}}, "module CNN ('2_CNN') changes the embeddings"),
        ({"modules.json": [{"path": "../x", "type": "sentence_transformers.models.Pooling"}]}, "path '../x' leads out of the folder"),
        ({"config.json": ["a"]}, "m/config.json: expected an object at the top"),
        ({"config.json": {**CLASSIFIER, "id2label": {"0": "a", "2": "b"}}}, "m/config.json: id2label: the indices must be 0 to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(models_of: Any, files: dict[str, Any], message: str) -> None:
    models_of.text("m", files)
    assert message in failure(models_of)


def test_broken_files_are_named(models_of: Any) -> None:
    folder = models_of.text("m")
    (folder / "config.json").write_text("{")
    assert "m/config.json: not JSON" in failure(models_of)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    assert "m/tokenizer.json: not a tokeniser" in failure(models_of)


@pytest.mark.parametrize(
    ("files", "longest"),
    [
        ({"config.json": {"max_position_embeddings": 40}}, 40),
        ({"config.json": {"max_position_embeddings": 40, "model_type": "roberta", "pad_token_id": 1}}, 38),
        (
            {
                "config.json": {"max_position_embeddings": 40},
                "sentence_bert_config.json": {"max_seq_length": 30},
            },
            30,
        ),
        (
            {
                "config.json": {"max_position_embeddings": 40},
                "sentence_bert_config.json": {"max_seq_length": 90},
            },
            40,
        ),
        (
            {
                "config.json": {"max_position_embeddings": 40},
                "tokenizer_config.json": {"model_max_length": 20},
            },
            20,
        ),
        ({"config.json": {}, "tokenizer_config.json": {"model_max_length": 10**30}}, 512),
        ({"config.json": {"n_positions": 99}}, 99),
    ],
)
def test_the_longest_text(models_of: Any, files: dict[str, Any], longest: int) -> None:
    models_of.text("m", files)
    settings = read(models_of).text
    assert settings is not None
    assert settings.max_tokens == longest


@pytest.mark.parametrize(
    ("config", "position"),
    [
        ({"model_type": "roberta", "pad_token_id": 1}, 1),
        ({"model_type": "mpnet", "pad_token_id": 0}, 0),
        ({"model_type": "bert", "pad_token_id": 1}, -1),
    ],
)
def test_the_padding_id_that_positions_are_counted_behind(
    models_of: Any, config: dict[str, Any], position: int
) -> None:
    models_of.text("m", {"config.json": config})
    text = read(models_of).specs[0].text
    assert text is not None
    assert text.padding_position == position


@pytest.mark.parametrize(
    ("files", "lower"),
    [
        ({"sentence_bert_config.json": {"do_lower_case": True}}, True),
        ({"sentence_xlnet_config.json": {"max_seq_length": 9, "do_lower_case": True}}, True),
        (
            {
                "sentence_bert_config.json": {"do_lower_case": False},
                "sentence_xlnet_config.json": {"do_lower_case": True},
            },
            False,
        ),
        ({"config.json": CLASSIFIER, "sentence_bert_config.json": {"do_lower_case": True}}, False),
        ({}, False),
    ],
)
def test_texts_in_lower_case(models_of: Any, files: dict[str, Any], lower: bool) -> None:
    classifier = "config.json" in files
    models_of.text("m", files, **({"head": "logits", "width": 2} if classifier else {}))
    settings = read(models_of).text
    assert settings is not None
    encoding = settings.tokenizer.encode("A b QUERY:")
    assert encoding.ids == ([2, 4, 5, 1, 1, 3] if lower else [2, 1, 5, 1, 1, 3])
    assert encoding.offsets[1:-1] == [(0, 1), (2, 3), (4, 9), (9, 10)]
    if lower:
        normalizer = settings.tokenizer.normalizer
        assert normalizer is not None
        for text in ("ÀÉ İstanbul ẞ DŽ", "ΟΔΥΣΣΕΥΣ Σ ΣΟΦΟΣ. Σ1"):
            assert normalizer.normalize_str(text) == text.lower()


def test_the_longest_text_of_a_parameter(models_of: Any) -> None:
    models_of.text("m", config=parameter("max_sequence_length", "16"))
    settings = read(models_of).text
    assert settings is not None
    assert settings.max_tokens == 16
    models_of.config("m", parameter("max_sequence_length", "65"))
    assert "parameters['max_sequence_length'] is 65, but the model has 64 positions" in failure(models_of)


def test_prompts(models_of: Any) -> None:
    prompts = {"prompts": {"query": "query: ", "passage": None}, "default_prompt_name": "query"}
    models_of.text("m", {"config_sentence_transformers.json": prompts})
    settings = read(models_of).text
    assert settings is not None
    assert (dict(settings.prompts), settings.default_prompt) == ({"query": "query: "}, "query")
    models_of.config("m", parameter("default_prompt", ""))
    settings = read(models_of).text
    assert settings is not None
    assert settings.default_prompt == ""
    models_of.config("m", parameter("default_prompt", "nope"))
    assert "parameters['default_prompt'] is 'nope', but the model has the prompts query" in failure(models_of)


def test_labels_of_parameter_file_and_config(models_of: Any) -> None:
    score = 'output { name: "scores" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" } '
    folder = models_of.text("m", {"config.json": CLASSIFIER}, head="logits", width=2, config="")
    (folder / "labels.txt").write_text("bad\ngood\n\n")
    text = 'input { name: "text" data_type: TYPE_STRING dims: [ 1 ] } '
    for config, labels in (
        ("", ("no", "yes")),
        (text + score, ("bad", "good")),
        (text + score + parameter("labels", "down, up"), ("down", "up")),
    ):
        models_of.config("m", config)
        definition = read(models_of)
        assert definition.text is not None
        assert definition.text.labels == labels
        assert definition.labels["scores"] == labels


def test_flags(models_of: Any) -> None:
    config = {**CLASSIFIER, "problem_type": "multi_label_classification"}
    models_of.text("m", {"config.json": config}, head="logits", width=2)
    settings = read(models_of).text
    assert settings is not None
    assert (settings.multi_label, settings.normalize) == (True, True)
    models_of.config("m", parameter("multi_label", "false") + parameter("normalize", "false"))
    settings = read(models_of).text
    assert settings is not None
    assert (settings.multi_label, settings.normalize) == (False, False)


def test_declared_tensors_make_it_a_model_of_tensors(models_of: Any) -> None:
    models_of.text("m", config='input { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }')
    definition = read(models_of)
    assert (definition.task, definition.text, definition.specs[0].text) == (Task.TENSORS, None, None)


def test_tasks_that_need_a_tokenizer(models_of: Any) -> None:
    models_of.add("m", config=parameter("task", "embed"))
    assert "m: task 'embed' needs tokenizer.json beside the model" in failure(models_of)
    models_of.config("m", parameter("task", "classify"))
    definition = read(models_of)
    assert (definition.task, definition.text) == (Task.CLASSIFY, None)


def test_links_out_of_the_repository_are_refused(models_of: Any, tmp_path: Any) -> None:
    folder = models_of.text("m")
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    assert "m/tokenizer.json is a link that leads out" in failure(models_of)


@pytest.mark.parametrize(
    ("config", "logits"),
    [
        ({}, False),
        ({"problem_type": "single_label_classification"}, False),
        ({"problem_type": "regression"}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, True),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, False),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, True),
        (
            {
                "sentence_transformers": {
                    "activation_fn": "torch.nn.modules.activation.Sigmoid",
                    "version": "5",
                }
            },
            False,
        ),
        ({"sentence_transformers": None, "sbert_ce_default_activation_function": None}, False),
    ],
)
def test_cross_encoders_whose_scores_are_logits(models_of: Any, config: dict[str, Any], logits: bool) -> None:
    classifier = {**CLASSIFIER, "id2label": {"0": "LABEL_0"}, **config}
    models_of.text("m", {"config.json": classifier}, head="logits", width=1)
    settings = read(models_of).text
    assert settings is not None
    assert settings.logits is logits


def test_the_chat_template_of_an_embedder(models_of: Any) -> None:
    config = {"chat_template": "{{ messages[0].content }}", "cls_token": "[CLS]"}
    models_of.text("m", {"tokenizer_config.json": config})
    settings = read(models_of).text
    assert settings is not None
    assert settings.chat_templates == {"default": config["chat_template"]}
    assert settings.special_tokens["cls_token"] == "[CLS]"
