"""What lies beside the weights of a causal language model: tokenizer, configuration, config.pbtxt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from headrace.runtimes.convert import pbtxt

FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_files(source: Path, target: Path) -> None:
    """Copy those of :data:`FILES` that ``source`` has."""
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def write_config(target: Path, backend: str, *, default: bool = False) -> None:
    """Write ``target``/config.pbtxt of a model that generates text; ``target``'s name is the model's.

    ``default`` makes it the one for requests that name no model.
    """
    pbtxt.write(
        target,
        pbtxt.ModelConfig(
            name=target.name,
            backend=backend,
            inputs=[pbtxt.Tensor("text_input", "STRING", [1])],
            outputs=[pbtxt.Tensor("text_output", "STRING", [-1])],
            parameters={"task": "generate"} | ({"default": "true"} if default else {}),
        ),
    )
