"""Models that generate text: how they are told from others, their settings, what callers see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.wire import Loaded
from headrace.server.errors import LoadFailedError
from headrace.server.repository.chat_files import (
    DEFAULT_TEMPLATE,
    chat_templates,
    eos_ids,
    sampling_defaults,
    special_tokens,
)
from headrace.server.repository.generation_tensors import INPUT, INPUTS, OUTPUT, OUTPUTS, named
from headrace.server.repository.huggingface import CONFIG, TOKENIZER, HuggingFaceFolder
from headrace.server.repository.model import GenerationSettings, Task
from headrace.server.repository.parameters import ModelParameters
from headrace.server.repository.text import load_tokenizer
from headrace.server.tasks.tool_calls import TOOL_PARSERS, detect_tool_parser

DEFAULT_MOST_TOKENS: Final = 8192
"""Longest sequence where no parameter says so and the model would take more."""

UNKNOWN_MOST_TOKENS: Final = 2048
"""The same where the model does not say what it takes; GPT-2's successors had this many positions."""

CPU_SEQUENCES: Final = 32
CUDA_SEQUENCES: Final = 256
CUDA_STEP_TOKENS: Final = 2048
CUDA_PREFILL_TOKENS: Final = 8192

CPU_CACHE_BYTES: Final = 3 << 29
"""Size of the KV cache in float32 that the default of ``kv_tokens`` stays below on a CPU (1.5 GiB). Slots and
the pool of cached prefixes may hold as much each."""

_CAUSAL: Final = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class GenerationModel:
    """What the server and its workers need to serve a model that generates.

    Attributes:
        settings: for the server.
        spec: for the engine.
        max_queue: requests that may wait; None for the server's own limit.
        kv_token_bytes: size of one token in a float32 KV cache as far as the files tell, else 0.
    """

    settings: GenerationSettings
    spec: GenerationSpec
    max_queue: int | None
    kv_token_bytes: int

    def signature(self, loaded: Loaded, config: ModelConfig) -> Loaded:
        """Return the tensors that callers see in place of token ids, as far as ``config`` names them."""
        return Loaded(
            inputs=named(INPUTS, INPUT, (tensor.name for tensor in config.input)),
            outputs=named(OUTPUTS, OUTPUT, (tensor.name for tensor in config.output)),
            platform=loaded.platform,
        )


def generates(files: HuggingFaceFolder, config: ModelConfig, parameters: ModelParameters) -> bool:
    """Whether a folder holds a model that generates.

    It does when the ``task`` parameter says so; or when nothing says otherwise: no task, no tensors but
    ``text_input`` in the configuration, no modules of an embedder, and the files of a causal language model.

    Raises:
        LoadFailedError: the task says so and there is no tokeniser or no configuration of the model.
    """
    if parameters.task is not None:
        if parameters.task is not Task.GENERATE:
            return False
        for name in (TOKENIZER, CONFIG):
            if files.find(name) is None:
                raise LoadFailedError(
                    f"{files.folder.name}: task '{parameters.task}' needs {name} beside the model; write it "
                    "with save_pretrained(folder) of the model or of AutoTokenizer.from_pretrained(folder)",
                    model=config.name,
                )
        return True
    declared = [tensor.name for tensor in config.input]
    if (declared or config.output) and INPUT not in declared:
        return False
    embedder = files.find("modules.json") is not None or files.find(f"1_Pooling/{CONFIG}") is not None
    return files.is_text and not embedder and any(name.endswith(_CAUSAL) for name in files.architectures)


def load_generation(
    files: HuggingFaceFolder, parameters: ModelParameters, label: str, *, cuda: bool
) -> GenerationModel:
    """Read everything about a model that generates; slow, for the tokeniser has to be built.

    Args:
        files: the model's folder.
        parameters: win over the files.
        label: what messages call the configuration.
        cuda: the instances run on GPUs.

    Raises:
        LoadFailedError: a file is missing or wrong, or a parameter does not fit the files.
    """
    tokenizer, _ = load_tokenizer(files)
    config = files.read(CONFIG)
    tokens = special_tokens(files)
    ends = eos_ids(files, tokenizer, tokens)
    templates = chat_templates(files, parameters.chat_template, label)
    max_tokens = _max_tokens(files, config, parameters, label)
    max_sequences = parameters.max_sequences or (CUDA_SEQUENCES if cuda else CPU_SEQUENCES)
    block_tokens = parameters.block_tokens or 16
    token_bytes = kv_token_bytes(config)
    kv_tokens = parameters.kv_tokens or _kv_tokens(
        max_tokens, max_sequences, block_tokens, 0 if cuda else token_bytes
    )
    if kv_tokens // block_tokens * block_tokens < max_tokens:
        raise LoadFailedError(
            f"{label}: parameters['kv_tokens'] is {kv_tokens}, whose blocks of {block_tokens} hold less "
            f"than one sequence of max_tokens {max_tokens}; raise the one or lower the other",
            model=files.folder.name,
        )
    path = files.find(TOKENIZER)
    return GenerationModel(
        settings=GenerationSettings(
            tokenizer=tokenizer,
            max_tokens=max_tokens,
            vocabulary_size=_count(config, "vocab_size") or tokenizer.get_vocab_size(),
            eos_ids=ends,
            special_tokens=tokens,
            chat_templates=templates,
            defaults=sampling_defaults(files),
            tool_parser=_tool_parser(files, templates, parameters.tool_parser, label),
        ),
        spec=GenerationSpec(
            max_tokens=max_tokens,
            max_sequences=max_sequences,
            kv_tokens=kv_tokens,
            block_tokens=block_tokens,
            step_tokens=parameters.step_tokens or (CUDA_STEP_TOKENS if cuda else 128),
            prefill_tokens=parameters.prefill_tokens or (CUDA_PREFILL_TOKENS if cuda else 1024),
            prefix_cache=parameters.prefix_cache is not False,
            draft_tokens=parameters.draft_tokens or 0,
            mixed_runs=parameters.mixed_runs is not False,
            eos_ids=ends,
            tokenizer=str(path) if path is not None else "",
        ),
        max_queue=parameters.max_queue,
        kv_token_bytes=token_bytes,
    )


def kv_token_bytes(config: Mapping[str, Any]) -> int:
    """Return the size of one token in a float32 KV cache; 0 when ``config.json`` does not tell."""
    layers = _count(config, "num_hidden_layers", "n_layer")
    heads = _count(config, "num_attention_heads", "n_head")
    kv_heads = _count(config, "num_key_value_heads") or heads
    width = _count(config, "head_dim") or (_count(config, "hidden_size", "n_embd") // heads if heads else 0)
    return layers * kv_heads * width * 2 * 4


def _kv_tokens(max_tokens: int, max_sequences: int, block_tokens: int, token_bytes: int) -> int:
    """Return how much the cache holds by default: whole blocks, and at least one longest sequence."""
    wanted = max(4 * max_tokens, 1024 * max_sequences)
    if token_bytes:
        wanted = min(wanted, CPU_CACHE_BYTES // token_bytes)
    return -(-max(wanted, max_tokens) // block_tokens) * block_tokens


def _max_tokens(
    files: HuggingFaceFolder, config: Mapping[str, Any], parameters: ModelParameters, label: str
) -> int:
    most = files.most_positions() or _count(config, "max_position_embeddings", "n_ctx", "max_seq_len")
    wanted = parameters.max_tokens
    if wanted is None:
        return min(most, DEFAULT_MOST_TOKENS) if most else UNKNOWN_MOST_TOKENS
    if most and wanted > most:
        raise LoadFailedError(
            f"{label}: parameters['max_tokens'] is {wanted}, but the model has {most} positions",
            model=files.folder.name,
        )
    return wanted


def _tool_parser(
    files: HuggingFaceFolder, templates: Mapping[str, str], wanted: str | None, label: str
) -> str:
    if wanted is None:
        return detect_tool_parser(templates.get("tool_use") or templates.get(DEFAULT_TEMPLATE) or "")
    if wanted and wanted not in TOOL_PARSERS:
        raise LoadFailedError(
            f"{label}: parameters['tool_parser'] is '{wanted}': expected {', '.join(TOOL_PARSERS)} or "
            "nothing",
            model=files.folder.name,
        )
    return wanted


def _count(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of the fields that is a positive number, at the top or in ``text_config``; else 0."""
    nested = config.get("text_config")
    for source in (config, nested if isinstance(nested, dict) else {}):
        for name in names:
            value = source.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0
