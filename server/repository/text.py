"""Text models: which task a folder is for, its tokeniser and settings, and the tensors that callers see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, Tokenizer, normalizers

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.base import TensorSpec, TextSpec
from headrace.runtimes.datatypes import BYTES
from headrace.runtimes.lfs import pointer
from headrace.runtimes.pooling import SPLADES
from headrace.runtimes.wire import Loaded
from headrace.server.errors import LoadFailedError
from headrace.server.repository.chat_files import chat_templates, special_tokens
from headrace.server.repository.huggingface import CONFIG, MODULES, TOKENIZER, HuggingFaceFolder
from headrace.server.repository.labels import labels_of_id2label
from headrace.server.repository.model import Task, TextSettings
from headrace.server.repository.parameters import ModelParameters
from headrace.server.repository.sentence_modules import dense_layers, gives_logits
from headrace.server.repository.sentence_modules import pooling as files_pooling

TEXT_TASKS: Final = frozenset({Task.EMBED, Task.CLASSIFY, Task.RERANK})
INPUT: Final = "text"
EMBEDDING: Final = "embedding"
TOKEN_EMBEDDINGS: Final = "token_embeddings"
SCORES: Final = "scores"

DEFAULT_MAX_TOKENS: Final = 512
"""Where neither a parameter nor a file says how long a text may be; BERT's length."""

_WRITE_TOKENIZER: Final = "write it with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"

_SEQUENCE_CLASSIFIER: Final = "ForSequenceClassification"
_HEADLESS: Final = ("Model", "ForMaskedLM", "ForPreTraining")
_GENERATORS: Final = ("LMHeadModel", "DoubleHeadsModel")


@dataclass(frozen=True, slots=True)
class TextModel:
    """What the server and its workers need to serve texts.

    ``width`` is the size of the one output (dimensions or labels) as far as the files say, else 0.
    """

    task: Task
    settings: TextSettings
    spec: TextSpec
    width: int

    def signature(self, loaded: Loaded, label: str) -> Loaded:
        """Return the tensors that callers see in place of token ids.

        Raises:
            LoadFailedError: the model has another number of scores than there are labels.
        """
        width = loaded.outputs[0].shape[-1] if loaded.outputs and loaded.outputs[0].shape else -1
        if width < 1:
            width = self.width or -1
        wanted = 1 if self.task is Task.RERANK else len(self.settings.labels)
        if wanted and width > 0 and width != wanted:
            listed = ", ".join(self.settings.labels[:8]) or "task rerank takes one score"
            raise LoadFailedError(
                f"{label}: the model gives {width} scores, but there should be {wanted} ({listed}); set "
                "parameter 'labels' to the names of the scores, or another 'task'"
            )
        name = EMBEDDING if self.task is Task.EMBED else SCORES
        return Loaded(
            inputs=(TensorSpec(INPUT, BYTES, (-1, 1)),),
            outputs=(TensorSpec(name, "FP32", (-1, width)),),
            platform=loaded.platform,
        )


def text_task(files: HuggingFaceFolder, config: ModelConfig, parameters: ModelParameters) -> Task | None:
    """Return the task of a text model; None when the folder holds a model of tensors.

    It is one when the ``task`` parameter says so and a tokeniser is there, or when nothing says otherwise: no
    task, no tensors but ``text`` in the configuration, and the files of a Hugging Face text model.

    Raises:
        LoadFailedError: the task or the modules of sentence-transformers need texts and there is no
            tokeniser, or the folder does not tell the task.
    """
    if parameters.task is not None:
        if parameters.task not in TEXT_TASKS:
            return None
        if files.find(TOKENIZER) is None:
            if parameters.task is Task.CLASSIFY and not _declares_text(config):
                return None  # classifies something else, such as images
            raise LoadFailedError(
                f"{files.folder.name}: task '{parameters.task}' needs {TOKENIZER} beside the model; "
                f"{_WRITE_TOKENIZER}",
                model=config.name,
            )
        return parameters.task
    if (config.input or config.output) and not _declares_text(config):
        return None
    if files.find(MODULES) is not None and files.find(TOKENIZER) is None:
        # Only embedders have such modules: serving one as tensors would leave them out without a word.
        raise LoadFailedError(
            f"{files.folder.name}: the model of {MODULES} needs {TOKENIZER} beside it; {_WRITE_TOKENIZER}, "
            f"or set parameter 'task' to '{Task.TENSORS}' to serve it without texts",
            model=config.name,
        )
    return _task_of_files(files) if files.is_text else None


def load_text(
    files: HuggingFaceFolder, parameters: ModelParameters, task: Task, labels: tuple[str, ...], label: str
) -> TextModel:
    """Read everything about the texts of a model; slow, for tokenisers have to be built.

    Args:
        files: the model's folder.
        parameters: win over the files.
        task: of :func:`text_task`.
        labels: of the configuration's label file, if it has one.
        label: what messages call the configuration.

    Raises:
        LoadFailedError: a file is missing or wrong, or a parameter does not fit the files.
    """
    head = "embed" if task is Task.EMBED else "classify"
    tokenizer, pad_id = load_tokenizer(files)
    if head == "embed" and files.lower_cases():
        _lower_case(tokenizer)
    config = files.read(CONFIG)
    names = parameters.labels or labels
    if not names and head == "classify" and config.get("id2label") is not None:
        names = labels_of_id2label(config["id2label"], f"{files.folder.name}/{CONFIG}: id2label")
    multi_label = parameters.multi_label
    if multi_label is None:
        multi_label = config.get("problem_type") == "multi_label_classification"
    prompts, default_prompt = files.prompts()
    if parameters.default_prompt is not None:
        default_prompt = parameters.default_prompt
    if default_prompt and default_prompt not in prompts:
        raise LoadFailedError(
            f"{label}: parameters['default_prompt'] is '{default_prompt}', but the model has "
            + (f"the prompts {', '.join(prompts)}" if prompts else "no prompts"),
            model=files.folder.name,
        )
    width = len(names) if head == "classify" else _hidden_size(config)
    pooling = parameters.pooling or (files_pooling(files) if head == "embed" else "mean")
    spec = TextSpec(
        head=head,
        pooling=pooling,
        pad_id=pad_id,
        dense=dense_layers(files) if head == "embed" else (),
        padding_position=files.padding_position(),
    )
    tokens = special_tokens(files)
    settings = TextSettings(
        tokenizer=tokenizer,
        max_tokens=_max_tokens(files, parameters, label),
        prompts=prompts,
        default_prompt=default_prompt,
        normalize=parameters.normalize if parameters.normalize is not None else pooling not in SPLADES,
        labels=names if head == "classify" else (),
        multi_label=multi_label,
        pooling=pooling,
        logits=head == "classify" and gives_logits(files),
        special_tokens=tokens,
        chat_templates=chat_templates(files, parameters.chat_template, label),
    )
    return TextModel(task, settings, spec, width)


def _declares_text(config: ModelConfig) -> bool:
    return any(tensor.name == INPUT for tensor in config.input)


def _task_of_files(files: HuggingFaceFolder) -> Task:
    architectures = files.architectures
    if any(name.endswith(_SEQUENCE_CLASSIFIER) for name in architectures):
        names = files.field(CONFIG, "id2label", "an object of index → name", _is_object)
        count = len(names) if names else files.whole(CONFIG, "num_labels") or 2
        return Task.RERANK if count == 1 else Task.CLASSIFY
    if files.modules() or files.find("1_Pooling/config.json") is not None:
        return Task.EMBED
    if all(name.endswith(_HEADLESS) and not name.endswith(_GENERATORS) for name in architectures):
        return Task.EMBED
    raise LoadFailedError(
        f"{files.folder.name}/{CONFIG}: architecture {', '.join(architectures)} does not tell a task that "
        f"this server has; set parameter 'task' to {', '.join(sorted(TEXT_TASKS))} to serve it as that",
        model=files.folder.name,
    )


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def load_tokenizer(files: HuggingFaceFolder) -> tuple[Tokenizer, int]:
    """Return the tokeniser without padding and truncation, and the id that pads."""
    path = files.find(TOKENIZER)
    if path is None:
        raise LoadFailedError(f"{files.folder.name}: there is no {TOKENIZER}", model=files.folder.name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        reason = pointer(path) or f"not a tokeniser: {error}"
        raise LoadFailedError(f"{files.folder.label(path)}: {reason}") from error
    padding = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pad_id = padding["pad_id"] if padding else files.read(CONFIG).get("pad_token_id")
    if not isinstance(pad_id, int):
        token = files.read("tokenizer_config.json").get("pad_token")
        text = token.get("content") if isinstance(token, dict) else token
        pad_id = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return tokenizer, pad_id if isinstance(pad_id, int) else 0


def _lower_case(tokenizer: Tokenizer) -> None:
    """Have texts put into lower case as ``str.lower`` does, before all that the tokeniser itself changes.

    The tokeniser does it, not the callers, so that offsets are those of the text as it was given.
    """
    # Lowercase looks at single characters; a sigma that ends a word has a form of its own.
    last_sigma = normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς")
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([last_sigma, normalizers.Lowercase(), *own])


def _max_tokens(files: HuggingFaceFolder, parameters: ModelParameters, label: str) -> int:
    most = files.most_positions()
    wanted = parameters.max_sequence_length
    if wanted is None:
        length = files.max_tokens() or DEFAULT_MAX_TOKENS
        return min(length, most) if most else length
    if most and wanted > most:
        raise LoadFailedError(
            f"{label}: parameters['max_sequence_length'] is {wanted}, but the model has {most} positions",
            model=files.folder.name,
        )
    return wanted


def _hidden_size(config: dict[str, object]) -> int:
    size = config.get("hidden_size") or config.get("dim") or config.get("d_model")
    return size if isinstance(size, int) else 0
