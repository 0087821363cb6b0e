"""What the two text classifiers share: labels, config.json and config.pbtxt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.runtimes.convert import pbtxt
from headrace.runtimes.convert.job import Job


def write_config(
    job: Job,
    labels: Sequence[str],
    *,
    config: Mapping[str, Any],
    settings: Mapping[str, str],
    max_batch_size: int,
) -> None:
    """Write config.pbtxt, labels.txt and a Hugging Face config.json with the labels.

    ``config`` is the rest of config.json, ``settings`` the parameters of config.pbtxt besides ``task``.
    """
    names = {str(index): label for index, label in enumerate(labels)}
    content = {**config, "id2label": names, "label2id": {label: int(index) for index, label in names.items()}}
    (job.version / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (job.target / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    pbtxt.write(
        job.target,
        pbtxt.ModelConfig(
            name=job.target.name,
            inputs=[pbtxt.Tensor("text", "STRING", [1])],
            outputs=[pbtxt.Tensor("scores", "FP32", [len(labels)], "labels.txt")],
            max_batch_size=max_batch_size,
            dynamic_batching=True,
            parameters={"task": "classify", **settings},
        ),
    )
