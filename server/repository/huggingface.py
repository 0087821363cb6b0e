"""The small files of a Hugging Face folder: what the model is, and how its texts become tokens and vectors.

Sources: the files that transformers and sentence-transformers write with ``save_pretrained`` and ``save``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.server.errors import LoadFailedError
from headrace.server.repository.layout import ModelFolder
from headrace.server.repository.names import is_inside, lies_in

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
_SENTENCE_CONFIGS: Final = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_OFFSET_POSITIONS: Final = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""Model types whose positions begin behind the padding id, so that as many positions are never used."""

_ENDLESS: Final = 10**9
"""Tokenisers without a limit write a huge ``model_max_length``."""


@dataclass(frozen=True, slots=True)
class HuggingFaceFolder:
    """Reads the files that lie in the version's folder, else in the model's."""

    folder: ModelFolder
    version: Path

    def find(self, name: str) -> Path | None:
        """Return where a file is, None when it is absent.

        Raises:
            LoadFailedError: it is a link that leads out of the repositories.
        """
        for base in (self.version, self.folder.path):
            path = base / name
            if path.is_file():
                if not lies_in(path, self.folder.roots):
                    raise LoadFailedError(
                        f"{self.folder.label(path)} is a link that leads out of the model repositories",
                        model=self.folder.name,
                    )
                return path
        return None

    def read(self, name: str, kind: type = dict) -> Any:
        """Return a JSON file's object (or list), an empty one when the file is absent.

        Raises:
            LoadFailedError: the file is something else.
        """
        path = self.find(name)
        if path is None:
            return kind()
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise LoadFailedError(f"{self.folder.label(path)}: not JSON: {error}") from error
        if not isinstance(value, kind):
            wanted = "an object" if kind is dict else "a list"
            raise LoadFailedError(f"{self.folder.label(path)}: expected {wanted} at the top")
        return value

    @property
    def is_text(self) -> bool:
        """Whether there are the files of a text model."""
        return self.find(CONFIG) is not None and self.find(TOKENIZER) is not None

    @property
    def architectures(self) -> list[str]:
        """Class names of the model, usually one."""
        return [name for name in self.read(CONFIG).get("architectures") or [] if isinstance(name, str)]

    def modules(self) -> list[tuple[str, str]]:
        """Return (type without its package, folder) of the modules of sentence-transformers, in order.

        Raises:
            LoadFailedError: an entry leads out of the folder.
        """
        found: list[tuple[str, str]] = []
        for entry in self.read("modules.json", list):
            path, kind = str(entry.get("path", "")), str(entry.get("type", ""))
            if path and not is_inside(path):
                raise LoadFailedError(
                    f"{self.folder.name}: modules.json: path '{path}' leads out of the folder"
                )
            found.append((kind.rpartition(".")[2], path))
        return found

    def most_positions(self) -> int:
        """Return the longest sequence that the model has positions for; 0 when it does not say."""
        config = self.read(CONFIG)
        positions = _first_count(config, ("max_position_embeddings", "n_positions"))
        return max(positions - self.padding_position() - 1, 0)

    def padding_position(self) -> int:
        """Return the padding id that the model counts positions from behind; -1 when it counts from 0."""
        config = self.read(CONFIG)
        return config.get("pad_token_id") or 0 if config.get("model_type") in _OFFSET_POSITIONS else -1

    def max_tokens(self) -> int:
        """Return the longest sequence that the folder's files allow; 0 when none says."""
        for name in _SENTENCE_CONFIGS:
            length = _first_count(self.read(name), ("max_seq_length",))
            if length:
                return length
        limits = [
            self.most_positions(),
            _first_count(self.read("tokenizer_config.json"), ("model_max_length", "max_len")),
        ]
        return min((limit for limit in limits if limit), default=0)

    def lower_cases(self) -> bool:
        """Whether sentence-transformers puts texts into lower case before it tokenises them."""
        name = next((name for name in _SENTENCE_CONFIGS if self.find(name) is not None), None)
        return name is not None and self.read(name).get("do_lower_case") is True

    def prompts(self) -> tuple[dict[str, str], str]:
        """Return the prompts by name, and the name of the one to use by default ("" for none)."""
        config = self.read("config_sentence_transformers.json")
        prompts = config.get("prompts") or {}
        texts = {str(name): str(text) for name, text in prompts.items() if text is not None}
        return texts, str(config.get("default_prompt_name") or "")


def _first_count(config: dict[str, Any], names: Sequence[str]) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _ENDLESS:
            return int(value)
    return 0
