"""Which runtime loads a version, and from which file: from the configuration, else from what lies there."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.runtimes.onnx.files import CANDIDATES
from headrace.server.errors import LoadFailedError
from headrace.server.repository.layout import ModelFolder, contents

_BACKENDS: Final = MappingProxyType(
    {"onnxruntime": "onnx", "onnx": "onnx", "pytorch": "torch", "torch": "torch", "libtorch": "torch"}
)
_PLATFORMS: Final = MappingProxyType(
    {"onnxruntime_onnx": "onnx", "pytorch_libtorch": "torch", "pytorch_aoti": "torch"}
)
_SUFFIXES: Final = MappingProxyType(
    {".onnx": "onnx", ".pt": "torch", ".pt2": "torch", ".pth": "torch", ".safetensors": "torch"}
)
BACKEND_OF: Final = MappingProxyType({"onnx": "onnxruntime", "torch": "pytorch"})
"""Runtime → the backend that Triton's configurations name; other runtimes go by their own names."""

_CANDIDATES: Final = MappingProxyType(
    {
        "onnx": CANDIDATES,
        "torch": ("model.pt2", "model.pt", "model.safetensors", "model.safetensors.index.json"),
    }
)
"""Runtime → file names in order of preference; a runtime earlier in the table wins."""

_PICKLES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_WEIGHTS: Final = (".safetensors", ".safetensors.index.json", *_PICKLES)


class ModelFile(NamedTuple):
    """What a worker loads.

    Attributes:
        runtime: name in the table of runtimes.
        path: the file, or the folder when the runtime reads a whole Hugging Face folder.
        filename: ``default_model_filename`` of the configuration.
    """

    runtime: str
    path: Path
    filename: str


def find_model_file(
    folder: ModelFolder, version: Path, config: ModelConfig, label: str, *, preferred: str = ""
) -> ModelFile:
    """Decide runtime and file of a version; ``label`` is what messages call the configuration.

    Where the configuration names no runtime, ``preferred`` is taken if it has a file.

    Raises:
        LoadFailedError: there is no file that the runtime could load, or several and none has a known name.
    """
    runtime = _configured_runtime(config)
    if config.default_model_filename:
        name = config.default_model_filename
        path = folder.file(version, name, f"{label}: default_model_filename")
        runtime = runtime or ("torch" if name.endswith(_WEIGHTS) else _SUFFIXES.get(path.suffix, ""))
        if not runtime:
            raise LoadFailedError(
                f"{label}: must specify 'platform' or 'backend' for '{config.name}': the file name '{name}' "
                f"does not tell the runtime; expected a backend of {', '.join(BACKEND_OF.values())}",
                model=config.name,
            )
        return _model_file(runtime, path, name)
    if runtime and runtime not in _CANDIDATES:
        return ModelFile(runtime, version, "")  # a third party's runtime knows its own files
    if not runtime and preferred and _present(version, preferred):
        runtime = preferred
    name = _present(version, runtime)
    if not name:
        wanted = [file for key, files in _CANDIDATES.items() if runtime in ("", key) for file in files]
        raise LoadFailedError(
            f"{folder.label(version)}: there is no model file for '{config.name}': expected one of "
            f"{', '.join(wanted)}; the folder has {contents(version)}{_advice(version)}",
            model=config.name,
        )
    path = folder.file(version, name, folder.label(version))
    return _model_file(runtime or _SUFFIXES.get(path.suffix, "torch"), path, name)


def _configured_runtime(config: ModelConfig) -> str:
    if config.backend:
        return _BACKENDS.get(config.backend, config.backend)
    return _PLATFORMS.get(config.platform, config.platform)


def _model_file(runtime: str, path: Path, name: str) -> ModelFile:
    if name.endswith(_WEIGHTS):
        return ModelFile(runtime, path.parent, name)
    if path.is_dir() and (path / path.name).is_file():  # Triton: a folder `model.onnx` with its external data
        return ModelFile(runtime, path / path.name, name)
    return ModelFile(runtime, path, name)


def _present(version: Path, runtime: str) -> str:
    """Return the name of the model's file: a known one, else the only one with a known suffix, else ""."""
    for key, names in _CANDIDATES.items():
        if runtime in ("", key):
            for name in names:
                if (version / name).exists():
                    return name
    single = [
        path.name
        for path in version.iterdir()
        if path.is_file() and path.suffix in _SUFFIXES and runtime in ("", _SUFFIXES[path.suffix])
    ]
    return single[0] if len(single) == 1 else ""


def _advice(version: Path) -> str:
    """Say what to do about files that look like a model and are not loaded."""
    if any(version.glob("pytorch_model*.bin")):
        return (
            "; pytorch_model.bin is a pickle and can run code: convert it to safetensors, or trust it with "
            "default_model_filename: 'pytorch_model.bin' and parameter allow_pickle: 'true'"
        )
    if (version / "model.py").exists():
        return "; model.py (Triton's Python backend) is not supported"
    return ""
