"""The builder behind ``headrace convert``; runs in the child process."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import MappingProxyType
from typing import Final

import onnx

from headrace.runtimes.convert.causal_check import Graph
from headrace.runtimes.convert.causal_export import MODEL, export, save
from headrace.runtimes.convert.causal_files import copy_files, write_config
from headrace.runtimes.convert.causal_quality import (
    Quality,
    compare,
    passes,
    sample,
    transformers_logits,
)
from headrace.runtimes.convert.causal_quantize import quantize
from headrace.runtimes.convert.job import Checks, ConversionError, Job

QUALITY: Final = "quality.json"
_BITS: Final = MappingProxyType({"int8": 8, "int4": 4})


def build(job: Job) -> Checks:
    """Export, check against transformers, quantise if asked, check against the float32 graph.

    Raises:
        ConversionError: the export is wrong, or the quantised model differs too much and is not forced.
    """
    source, precision = Path(job.options["source"]), job.options["precision"]
    windows = sample(source)
    with tempfile.TemporaryDirectory(dir=job.target.parent) as scratch:
        plain = job.version if precision == "fp32" else Path(scratch)
        export(source, plain, say=job.say)
        job.say("comparing to transformers")
        graph = Graph(plain / MODEL)
        exported = compare(transformers_logits(source, windows[:1]), graph.logits, windows[:1])
        if not passes(exported, "fp32"):
            msg = f"the exported graph does not compute what transformers does: {exported.text()}"
            raise ConversionError(msg)
        found = exported
        if precision != "fp32":
            job.say("quantizing")
            save(quantize(onnx.load(plain / MODEL), _BITS[precision], say=job.say), job.version)
            job.say("comparing to float32")
            found = compare(graph.logits, Graph(job.version / MODEL).logits, windows)
            _judge(found, precision, forced=job.options["force"] == "1")
    copy_files(source, job.version)
    write_config(job.target, "onnxruntime")
    checks = {"precision": precision, **found.numbers()}
    (job.version / QUALITY).write_text(json.dumps(checks, indent=2) + "\n", encoding="utf-8")
    return checks


def _judge(found: Quality, precision: str, *, forced: bool) -> None:
    if not passes(found, precision) and not forced:
        other = "int8" if precision == "int4" else "fp32"
        msg = (
            f"{precision} changes this model too much: {found.text()}; use {other}, or --force to write it "
            "all the same"
        )
        raise ConversionError(msg)
