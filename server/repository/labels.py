"""Class names: from a label file, a parameter, or a Hugging Face configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from headrace.server.errors import LoadFailedError

LARGEST: Final = 1_000_000
"""Most names that one output may have, as many as classification ranks."""


def read_label_file(path: Path, label: str) -> tuple[str, ...]:
    """Read one name a line; the line's number, from 0, is the index. Messages call the file ``label``.

    Raises:
        LoadFailedError: the file is not UTF-8 text, or too long.
    """
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadFailedError(f"{label}: the label file cannot be read: {error}") from error
    while names and not names[-1]:
        names.pop()
    if len(names) > LARGEST:
        raise LoadFailedError(f"{label}: {len(names)} labels are more than the {LARGEST} that are possible")
    return tuple(names)


def parse_label_list(text: str) -> tuple[str, ...]:
    """Read the ``labels`` parameter: names between commas, or a JSON list for names that have commas.

    Raises:
        ValueError: it is a JSON list of something else than text, or a name is empty.
    """
    if text.lstrip().startswith("["):
        names = json.loads(text)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("expected a JSON list of names")
    else:
        names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError("a name is empty")
    return tuple(names)


def labels_of_id2label(value: Any, label: str) -> tuple[str, ...]:
    """Read Hugging Face's ``id2label``: index as text → name; ``label`` is what messages call it.

    Raises:
        LoadFailedError: it is no such object, or its indices have gaps.
    """
    if not isinstance(value, dict) or not all(
        key.isdecimal() and isinstance(name, str) for key, name in value.items()
    ):
        raise LoadFailedError(f'{label}: expected an object of index → name, such as {{"0": "negative"}}')
    by_index = {int(key): name for key, name in value.items()}
    if sorted(by_index) != list(range(len(by_index))):
        raise LoadFailedError(
            f"{label}: the indices must be 0 to {len(by_index) - 1}, got {sorted(by_index)}"
        )
    return tuple(by_index[index] for index in range(len(by_index)))
