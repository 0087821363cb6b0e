"""Prompts that are the same work as text and as ids, for a model that never stops by itself."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

_WORD: Final = re.compile(r"Ġ[a-z]{3,}\Z")
"""A token of a byte-level vocabulary that is a whole word with the space before it."""

_ENDS: Final = {"config.json": "eos_token_id", "generation_config.json": "eos_token_id",
                "tokenizer_config.json": "eos_token"}  # fmt: skip


class Prompt(NamedTuple):
    """The same tokens twice; ``text`` is "" where only ids are asked for."""

    ids: list[int]
    text: str


class Words:
    """The words that are one token each."""

    def __init__(self, tokenizer: Path) -> None:
        """Read the vocabulary of ``tokenizer.json``.

        Raises:
            ValueError: it has no such words.
        """
        content: dict[str, Any] = json.loads(tokenizer.read_text(encoding="utf-8"))
        vocabulary: dict[str, int] = content["model"]["vocab"]
        self._words = sorted(
            (number, token[1:]) for token, number in vocabulary.items() if _WORD.match(token)
        )
        if not self._words:
            raise ValueError(f"{tokenizer}: there are no words with a space before them")

    def write(self, ids: Sequence[int]) -> Prompt:
        """Write as many words as there are ids; equal ids become equal words."""
        chosen = [self._words[number % len(self._words)] for number in ids]
        return Prompt([number for number, _ in chosen], "".join(f" {word}" for _, word in chosen))


def endless(model: Path, folder: Path) -> Path:
    """Make a repository in ``folder`` with ``model``, but without any token that ends a text.

    Most of the wires have no ``ignore_eos``, and a text that ends early is less work.
    """
    target = folder / model.name
    for source in sorted(path for path in model.rglob("*") if path.is_file()):
        copy = target / source.relative_to(model)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.name in _ENDS:
            content: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
            content.pop(_ENDS[source.name], None)
            copy.write_text(json.dumps(content), encoding="utf-8")
            continue
        try:
            os.link(source, copy)
        except OSError:  # another file system
            shutil.copy(source, copy)
    return folder
