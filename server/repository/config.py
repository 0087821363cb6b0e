"""config.pbtxt: reading, printing, and the JSON form that a load request may send instead."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Final

from google.protobuf import json_format, text_format

from headrace.kserve.v2.model_config_pb2 import ModelConfig
from headrace.server.errors import InvalidArgumentError, LoadFailedError

_JSON_DEPTH: Final = 32
_POSITION: Final = re.compile(r"^(\d+):\d+ : ")
_QUOTED_LINE: Final = re.compile(r"^'.*?': (?=[A-Z])", re.DOTALL)
_PARAMETER: Final = re.compile(
    r"^parameters \{\n  key: (\".*\")\n  value \{\n    string_value: (\".*\")\n  \}\n\}$", re.MULTILINE
)
_SHOWN: Final = 80
"""Characters of the wrong line that a message repeats."""
_UNKNOWN_FIELD: Final = re.compile(r'Message type "([\w.]+)" has no field named "(\w+)"')
_UNKNOWN_VALUE: Final = re.compile(r'Enum type "([\w.]+)" has no value named (\w+)')


def read_config(path: Path, label: str) -> ModelConfig:
    """Read a file in protobuf's text format; ``label`` is what messages call it.

    Raises:
        LoadFailedError: the file cannot be read or is wrong; the text has the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadFailedError(f"{label}: the file cannot be read: {_reason(error)}") from error
    return parse_text(text, label)


def parse_text(text: str, label: str) -> ModelConfig:
    """Parse protobuf's text format; see :func:`read_config`."""
    try:
        parsed: ModelConfig = text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise LoadFailedError(_located(str(error), text, label)) from error
    return parsed


def parse_json(text: str) -> ModelConfig:
    """Parse protobuf's JSON: camelCase or the proto's own names, 64-bit integers as numbers or strings.

    Raises:
        InvalidArgumentError: it is not JSON, or not a model configuration.
    """
    if not text.lstrip().startswith("{"):
        raise InvalidArgumentError(
            "Invalid config override: expected a JSON object with the fields of ModelConfig"
        )
    try:
        parsed: ModelConfig = json_format.Parse(text, ModelConfig(), max_recursion_depth=_JSON_DEPTH)
    except (json_format.ParseError, RecursionError) as error:
        detail = _explained(str(error).splitlines()[0] if str(error) else "nested too deeply")
        raise InvalidArgumentError(f"Invalid config override: {detail}") from error
    return parsed


def print_config(config: ModelConfig) -> str:
    """Print a configuration as config.pbtxt."""
    text: str = text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True)
    return _PARAMETER.sub(r"parameters { key: \1 value { string_value: \2 } }", text)


def _located(message: str, text: str, label: str) -> str:
    """Turn protobuf's ``line:column : [line: ]what`` into ``file:line: what (in: line)``."""
    position = _POSITION.match(message)
    if position is None:
        return f"{label}: {_explained(message)}"
    lines = text.splitlines()
    number = int(position[1])
    line = lines[number - 1].strip() if number <= len(lines) else ""
    shown = f" (in: {line[:_SHOWN]})" if line else ""
    return f"{label}:{number}: {_explained(_QUOTED_LINE.sub('', message[position.end() :]))}{shown}"


def _explained(detail: str) -> str:
    """Reword what protobuf says about names that it does not know, and suggest the nearest that it does."""
    pool = ModelConfig.DESCRIPTOR.file.pool
    if unknown := _UNKNOWN_FIELD.search(detail):
        known = [field.name for field in pool.FindMessageTypeByName(unknown[1]).fields]
        return f"unknown field '{unknown[2]}' in {_short(unknown[1])}{_suggestion(unknown[2], known)}"
    if unknown := _UNKNOWN_VALUE.search(detail):
        known = [value.name for value in pool.FindEnumTypeByName(unknown[1]).values]
        return f"unknown value '{unknown[2]}' of {_short(unknown[1])}{_suggestion(unknown[2], known)}"
    return detail.rstrip(".")


def _suggestion(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; it has {', '.join(known)}"


def _short(full_name: str) -> str:
    return full_name.removeprefix("inference.")


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
