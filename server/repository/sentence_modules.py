"""What sentence-transformers' files say of a model behind its encoder: pooling, dense layers, scores."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from headrace.runtimes.base import DenseLayer
from headrace.runtimes.pooling import SPLADES
from headrace.server.errors import LoadFailedError
from headrace.server.repository.huggingface import CONFIG, MODULES, HuggingFaceFolder

_MODES: Final = MappingProxyType(
    {
        "cls_token": "cls",
        "max_tokens": "max",
        "mean_tokens": "mean",
        "mean_sqrt_len_tokens": "mean_sqrt",
        "weightedmean_tokens": "weighted_mean",
        "lasttoken": "last",
    }
)
"""sentence-transformers' names, without the prefix ``pooling_mode_`` of its older files."""
_SHORT_MODES: Final = MappingProxyType({long.partition("_token")[0]: name for long, name in _MODES.items()})
"""The names of its newer files, as far as they differ."""
_SPLADES: Final = MappingProxyType(
    {
        ("max", "relu"): "splade",
        ("sum", "relu"): "splade_sum",
        ("max", "log1p_relu"): "splade_log1p",
        ("sum", "log1p_relu"): "splade_sum_log1p",
    }
)
"""``pooling_strategy`` and ``activation_function`` of SpladePooling."""
_POOLINGS: Final = ", ".join((*_MODES.values(), *SPLADES))
_HARMLESS: Final = frozenset({"Dropout", "MLMTransformer", "Transformer"})
_SENTENCE: Final = "sentence_embedding"


def pooling(files: HuggingFaceFolder) -> str:
    """Return how token vectors become one, a name of ``runtimes.pooling``; ``mean`` when no file says.

    Raises:
        LoadFailedError: the model pools in another way, or the file that its modules name is not there.
    """
    modules = files.modules()
    splade = next((path for kind, path in modules if kind == "SpladePooling"), None)
    if splade is not None:
        return _splade(files, splade)
    named = next((path for kind, path in modules if kind == "Pooling"), None)
    file = _file("1_Pooling" if named is None else named, CONFIG)
    if named is not None and files.find(file) is None:
        raise LoadFailedError(
            f"{files.folder.name}/{MODULES} names pooling '{named}', but there is no {file}: download it, or "
            f"set parameter 'pooling' to what the model was trained with ({_POOLINGS})",
            model=files.folder.name,
        )
    config = files.read(file)
    if not config:
        return "mean"
    place = f"{files.folder.name}/{file}"
    given = config.get("pooling_mode")
    if given is None:
        prefix = "pooling_mode_"
        given = [name.removeprefix(prefix) for name, on in config.items() if name.startswith(prefix) and on]
    modes = [str(mode) for mode in (given if isinstance(given, list) else [given])]
    known = [name for mode in modes if (name := _MODES.get(mode) or _SHORT_MODES.get(mode))]
    if not known or len(known) < len(modes):
        raise LoadFailedError(
            f"{place}: pooling {' + '.join(modes) or 'unknown'} is not supported; supported are "
            f"{_POOLINGS}, which parameter 'pooling' may choose",
            model=files.folder.name,
        )
    if config.get("include_prompt") is False and files.prompts()[0]:
        raise LoadFailedError(
            f"{place}: include_prompt is false, but leaving the prompt out of the pooling is not supported",
            model=files.folder.name,
        )
    return "+".join(known)


def _splade(files: HuggingFaceFolder, path: str) -> str:
    config = files.read(_file(path, CONFIG))
    given = str(config.get("pooling_strategy", "max")), str(config.get("activation_function", "relu"))
    if given not in _SPLADES:
        raise LoadFailedError(
            f"{files.folder.name}/{_file(path, CONFIG)}: pooling_strategy {given[0]!r} with "
            f"activation_function {given[1]!r} is not supported; expected max or sum with relu or log1p_relu",
            model=files.folder.name,
        )
    return _SPLADES[given]


def dense_layers(files: HuggingFaceFolder) -> tuple[DenseLayer, ...]:
    """Return the dense layers behind the pooling, in order.

    Raises:
        LoadFailedError: a module cannot be served, stands in the wrong place, has no weights, or its file has
            something else than names.
    """
    layers: list[DenseLayer] = []
    pooled = normalized = False
    for kind, path in files.modules():
        if kind == "Dense":
            layers.append(_dense(files, path, in_place=pooled and not normalized))
        elif kind in ("Pooling", "SpladePooling"):
            pooled = True
        elif kind == "Normalize":
            normalized = True
        elif kind not in _HARMLESS:
            raise _unserved(
                files,
                f"{kind} ('{path}') changes the embeddings and is not supported; export the whole pipeline "
                "as one ONNX model",
            )
    return tuple(layers)


def _dense(files: HuggingFaceFolder, path: str, *, in_place: bool) -> DenseLayer:
    file = _file(path, CONFIG)
    ends = {files.text(file, f"module_{end}_name") or _SENTENCE for end in ("input", "output")}
    if not in_place or ends != {_SENTENCE}:
        raise _unserved(
            files, f"Dense ('{path}') does not work on the pooled vector, before it is normalised"
        )
    weights = files.find(_file(path, "model.safetensors"))
    if weights is None:
        raise _unserved(files, f"Dense ('{path}') has no model.safetensors; its pickle is not read")
    activation = (files.text(file, "activation_function") or "Tanh").rpartition(".")[2]
    return DenseLayer(str(weights), activation)


def _file(path: str, name: str) -> str:
    """Return where a module's file is; ``path`` is empty for a module in the model's own folder."""
    return f"{path}/{name}" if path else name


def _unserved(files: HuggingFaceFolder, reason: str) -> LoadFailedError:
    return LoadFailedError(f"{files.folder.name}/{MODULES}: module {reason}", model=files.folder.name)


def gives_logits(files: HuggingFaceFolder) -> bool:
    """Whether the scores of a classifier are its logits: a regression, or a CrossEncoder that says so.

    Sources: ``problem_type`` of transformers; the activation that sentence-transformers' CrossEncoder writes
    to ``config.json``, in its newer form and in the older one.
    """
    config = files.read(CONFIG)
    own = config.get("sentence_transformers")
    activation = own.get("activation_fn") if isinstance(own, dict) else None
    activation = activation or config.get("sbert_ce_default_activation_function") or ""
    return config.get("problem_type") == "regression" or str(activation).endswith(".Identity")
