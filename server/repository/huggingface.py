"""The small files of a Hugging Face folder: what the model is, and how its texts become tokens and vectors.

Sources: the files that transformers and sentence-transformers write with ``save_pretrained`` and ``save``.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.server.errors import LoadFailedError
from headrace.server.repository.layout import ModelFolder
from headrace.server.repository.names import is_inside, lies_in

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
MODULES: Final = "modules.json"
_SENTENCE_CONFIGS: Final = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_PROMPTS: Final = "config_sentence_transformers.json"
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

    def field(self, name: str, key: str, expected: str, fits: Callable[[Any], bool]) -> Any:
        """Return a field of a JSON file, None when it is absent or null.

        Args:
            name: the file.
            key: the field.
            expected: what messages say that it should be.
            fits: whether a value is that.

        Raises:
            LoadFailedError: it is something else.
        """
        value = self.read(name).get(key)
        if value is not None and not fits(value):
            raise self._wrong(name, key, expected, value)
        return value

    def text(self, name: str, key: str) -> str:
        """Return a field that is text, "" when it is absent or null.

        Raises:
            LoadFailedError: it is something else.
        """
        value: str | None = self.field(name, key, "text", _is_text)
        return value or ""

    def whole(self, name: str, key: str) -> int | None:
        """Return a field that is a whole number, None when it is absent or null.

        Raises:
            LoadFailedError: it is something else.
        """
        value: int | None = self.field(
            name, key, "a whole number", lambda value: _is_number(value) and isinstance(value, int)
        )
        return value

    @property
    def is_text(self) -> bool:
        """Whether there are the files of a text model."""
        return self.find(CONFIG) is not None and self.find(TOKENIZER) is not None

    @property
    def architectures(self) -> list[str]:
        """Class names of the model, usually one.

        Raises:
            LoadFailedError: the field is no list of text.
        """
        return self.field(CONFIG, "architectures", "a list of class names", _is_texts) or []

    def modules(self) -> list[tuple[str, str]]:
        """Return (type without its package, folder) of the modules of sentence-transformers, in order.

        Raises:
            LoadFailedError: an entry is no object with such text, or leads out of the folder.
        """
        found: list[tuple[str, str]] = []
        for number, entry in enumerate(self.read(MODULES, list)):
            if not isinstance(entry, dict):
                raise self._wrong(MODULES, f"[{number}]", "an object with path and type", entry)
            for key in ("path", "type"):
                if entry.get(key) is not None and not isinstance(entry[key], str):
                    raise self._wrong(MODULES, f"[{number}].{key}", "text", entry[key])
            path, kind = entry.get("path") or "", entry.get("type") or ""
            if path and not is_inside(path):
                raise LoadFailedError(f"{self.folder.name}: {MODULES}: path '{path}' leads out of the folder")
            found.append((kind.rpartition(".")[2], path))
        return found

    def most_positions(self) -> int:
        """Return the longest sequence that the model has positions for; 0 when it does not say.

        Raises:
            LoadFailedError: it says something else than a number.
        """
        positions = self._first_count(CONFIG, ("max_position_embeddings", "n_positions"))
        return max(positions - self.padding_position() - 1, 0)

    def padding_position(self) -> int:
        """Return the padding id that the model counts positions from behind; -1 when it counts from 0.

        Raises:
            LoadFailedError: the type of the model is no text, or its padding id no whole number.
        """
        if self.text(CONFIG, "model_type") not in _OFFSET_POSITIONS:
            return -1
        return self.whole(CONFIG, "pad_token_id") or 0

    def max_tokens(self) -> int:
        """Return the longest sequence that the folder's files allow; 0 when none says.

        Raises:
            LoadFailedError: one says something else than a number.
        """
        for name in _SENTENCE_CONFIGS:
            length = self._first_count(name, ("max_seq_length",))
            if length:
                return length
        limits = [
            self.most_positions(),
            self._first_count("tokenizer_config.json", ("model_max_length", "max_len")),
        ]
        return min((limit for limit in limits if limit), default=0)

    def lower_cases(self) -> bool:
        """Whether sentence-transformers puts texts into lower case before it tokenises them."""
        name = next((name for name in _SENTENCE_CONFIGS if self.find(name) is not None), None)
        return name is not None and self.read(name).get("do_lower_case") is True

    def prompts(self) -> tuple[dict[str, str], str]:
        """Return the prompts by name, and the name of the one to use by default ("" for none).

        Raises:
            LoadFailedError: the file has something else than texts by name, or than a name.
        """
        prompts = self.field(_PROMPTS, "prompts", "an object of name → text", _is_prompts) or {}
        texts = {name: text for name, text in prompts.items() if text is not None}
        return texts, self.text(_PROMPTS, "default_prompt_name")

    def _first_count(self, name: str, keys: Sequence[str]) -> int:
        """Return the first of a file's fields that is a usable limit, else 0: models write -1 for none."""
        for key in keys:
            value = self.field(name, key, "a number", _is_number)
            if value is not None and 0 < value < _ENDLESS:
                return int(value)
        return 0

    def _wrong(self, name: str, place: str, expected: str, value: object) -> LoadFailedError:
        path = self.find(name)
        label = self.folder.label(path) if path is not None else f"{self.folder.name}/{name}"
        return LoadFailedError(
            f"{label}: {place}: expected {expected}, got {reprlib.repr(value)}", model=self.folder.name
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_prompts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str | None) for text in value.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
