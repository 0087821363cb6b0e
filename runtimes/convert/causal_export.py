"""Exports a Hugging Face causal language model as the ONNX graph that the ONNX decoder runs.

ONNX Runtime GenAI's model builder writes the graph (it knows the architectures); :mod:`causal_graph` changes
its ends. Nothing of GenAI is used when the model is served.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import onnx

from headrace.runtimes.convert.causal_graph import adapt
from headrace.runtimes.convert.job import ConversionError

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"
_READABLE: Final = 0o644
_BUILDER: Final = "onnxruntime_genai.models.builder"
_LOG_LINES: Final = 12


def export(folder: Path, target: Path, *, say: Callable[[str], None]) -> None:
    """Write ``target``/model.onnx and its weights, model.onnx.data, in float32.

    ``folder`` is a Hugging Face folder with config.json, safetensors and the tokenizer; code that it may
    contain is not run.

    Raises:
        ConversionError: the builder does not know the architecture or failed; the end of its output is in
            the message.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _build(folder, Path(scratch, "built"), Path(scratch, "cache"), say)
        say("rewriting the graph's ends")
        built = Path(scratch, "built")
        model = onnx.load(built / MODEL)
        decoder = json.loads((built / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
        save(adapt(model, head_size=int(decoder["head_size"]), window=_window(folder)), target)


def save(model: onnx.ModelProto, target: Path) -> None:
    """Write ``model`` with its weights in one file beside it, where ONNX Runtime maps them into memory."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, DATA):
        (target / name).unlink(missing_ok=True)
    onnx.save(model, target / MODEL, save_as_external_data=True, all_tensors_to_one_file=True, location=DATA)
    (target / DATA).chmod(_READABLE)


def _window(folder: Path) -> int:
    """How many tokens back all layers look; 0 for all, or where layers differ (the builder sets that)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "layer_types" in config or not config.get("use_sliding_window", True):
        return 0
    return int(config.get("sliding_window") or 0)


def _build(folder: Path, target: Path, cache: Path, say: Callable[[str], None]) -> None:
    """Run the builder; its progress goes to ``say``."""
    if importlib.util.find_spec(_BUILDER.partition(".")[0]) is None:
        msg = "the ONNX export needs onnxruntime-genai; pip install 'headrace[convert]'"
        raise ConversionError(msg)
    command = [sys.executable, "-m", _BUILDER, "-i", str(folder), "-o", str(target), "-c", str(cache)]
    command += ["-p", "fp32", "-e", "cpu", "--extra_options", "hf_token=false"]
    # Every layer keeps its whole cache: rows are copied, cut and shared by token.
    command += ["windowed_kv_cache=false"]
    last: deque[str] = deque(maxlen=_LOG_LINES)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    ) as child:
        try:
            for line in child.stdout or ():
                last.append(line.rstrip()[-500:])
                if line.startswith("Reading "):
                    say(f"exporting: {line.strip().removeprefix('Reading ')}")
        except BaseException:
            child.terminate()
            raise
    if child.returncode:
        end = "\n".join(last)
        if "is not currently supported" in end:
            kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
            msg = f"architecture {', '.join(kind or ['(none named)'])} cannot be exported to ONNX"
            raise ConversionError(msg)
        msg = f"the ONNX export of '{folder.name}' failed (status {child.returncode}):\n{end}"
        raise ConversionError(msg)
