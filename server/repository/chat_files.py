"""What a Hugging Face folder says about chats and sampling: templates, special tokens, defaults.

Sources: the files that transformers writes with ``save_pretrained`` of tokenizers and generation settings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.server.errors import LoadFailedError
from headrace.server.repository.huggingface import CONFIG, HuggingFaceFolder
from headrace.server.repository.model import SamplingDefaults
from headrace.server.repository.names import is_inside

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERATION_CONFIG: Final = "generation_config.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS: Final = "special_tokens_map.json"
TEMPLATE_FILE: Final = "chat_template.jinja"
TEMPLATE_FOLDER: Final = "additional_chat_templates"
DEFAULT_TEMPLATE: Final = "default"

MAX_TEMPLATE_BYTES: Final = 256 << 10
"""Largest chat template; those of published models have some kilobytes."""

_TOKENS: Final = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_RANGES: Final = (
    ("temperature", 0.0, math.inf),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, math.inf),
)
_COUNTS: Final = ("top_k", "max_new_tokens")


def special_tokens(files: HuggingFaceFolder) -> dict[str, str]:
    """Return the named special tokens as chat templates see them, ``bos_token`` and its kin → text."""
    tokens: dict[str, str] = {}
    for name in (SPECIAL_TOKENS, TOKENIZER_CONFIG):  # the later one wins
        content = files.read(name)
        extra = content.get("extra_special_tokens")
        named = {**(extra if isinstance(extra, dict) else {}), **{key: content.get(key) for key in _TOKENS}}
        for key, token in named.items():
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                tokens[key] = text
    return tokens


def eos_ids(files: HuggingFaceFolder, tokenizer: Tokenizer, tokens: Mapping[str, str]) -> tuple[int, ...]:
    """Return all ids that end a text, without repetitions: of the generation, the model and the tokeniser.

    Raises:
        LoadFailedError: a file has something else than ids.
    """
    found: dict[int, None] = {}
    for name in (GENERATION_CONFIG, CONFIG):
        value = files.read(name).get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for number in ids:
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise LoadFailedError(
                    f"{files.folder.name}/{name}: eos_token_id: expected token ids, got {value!r}",
                    model=files.folder.name,
                )
            found[number] = None
    own = tokenizer.token_to_id(tokens["eos_token"]) if "eos_token" in tokens else None
    if own is not None:
        found[own] = None
    return tuple(found)


def sampling_defaults(files: HuggingFaceFolder) -> SamplingDefaults:
    """Return what ``generation_config.json`` sets.

    Raises:
        LoadFailedError: a value is out of its range.
    """
    config = files.read(GENERATION_CONFIG)
    values: dict[str, Any] = {}
    for name, least, most in _RANGES:
        value = config.get(name)
        if value is None:
            continue
        if not _is_number(value) or not least <= value <= most or not math.isfinite(value):
            raise _wrong(files, name, value, f"a number from {least:g} to {most:g}")
        values[name] = float(value)
    for name in _COUNTS:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(files, name, value, "a whole number")
        values[name] = max(0, value)  # transformers and vLLM write -1 for "all"
    if not values.get("repetition_penalty", 1.0):
        raise _wrong(files, "repetition_penalty", 0, "a number above 0")
    return SamplingDefaults(**values)


def chat_templates(files: HuggingFaceFolder, chosen: str | None, label: str) -> dict[str, str]:
    """Return the chat templates by name; the one used when a request names none is ``default``.

    Args:
        files: the model's folder.
        chosen: the ``chat_template`` parameter: the name of a template, or a file in the folder; None leaves
            the choice to the files.
        label: what messages call the configuration.

    Raises:
        LoadFailedError: a template is too large or not text, or there is no such one.
    """
    templates = _of_tokenizer_config(files)
    path = files.find(TEMPLATE_FILE)
    if path is not None:
        templates[DEFAULT_TEMPLATE] = _read(files, path)
    for path in _additional(files):
        templates[path.stem] = _read(files, path)
    if chosen is None:
        return templates
    if not chosen:
        templates.pop(DEFAULT_TEMPLATE, None)
    elif chosen in templates:
        templates[DEFAULT_TEMPLATE] = templates[chosen]
    else:
        path = files.find(chosen) if is_inside(chosen) else None
        if path is None:
            known = f"the templates {', '.join(templates)}" if templates else "no templates"
            raise LoadFailedError(
                f"{label}: parameters['chat_template'] is '{chosen}', which is neither a template nor a file "
                f"of the model; it has {known}",
                model=files.folder.name,
            )
        templates[DEFAULT_TEMPLATE] = _read(files, path)
    return templates


def _of_tokenizer_config(files: HuggingFaceFolder) -> dict[str, str]:
    value = files.read(TOKENIZER_CONFIG).get("chat_template")
    if value is None:
        return {}
    entries = value if isinstance(value, list) else [{"name": DEFAULT_TEMPLATE, "template": value}]
    templates: dict[str, str] = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        text = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise LoadFailedError(
                f"{files.folder.name}/{TOKENIZER_CONFIG}: chat_template: expected text, or a list of objects "
                "with name and template",
                model=files.folder.name,
            )
        _check_size(files, f"{files.folder.name}/{TOKENIZER_CONFIG}: chat_template", len(text.encode()))
        templates[name] = text
    return templates


def _additional(files: HuggingFaceFolder) -> Iterator[Path]:
    """Yield the files of further templates; those of the version's folder come last and win."""
    for base in (files.folder.path, files.version):
        for path in sorted((base / TEMPLATE_FOLDER).glob("*.jinja")):
            found = files.find(str(path.relative_to(base)))
            if found is not None:
                yield found


def _read(files: HuggingFaceFolder, path: Path) -> str:
    label = files.folder.label(path)
    try:
        _check_size(files, label, path.stat().st_size)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadFailedError(f"{label}: the chat template cannot be read: {error}") from error


def _check_size(files: HuggingFaceFolder, label: str, size: int) -> None:
    if size > MAX_TEMPLATE_BYTES:
        raise LoadFailedError(
            f"{label}: the chat template has {size} bytes, more than the possible {MAX_TEMPLATE_BYTES}",
            model=files.folder.name,
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(files: HuggingFaceFolder, name: str, value: object, expected: str) -> LoadFailedError:
    return LoadFailedError(
        f"{files.folder.name}/{GENERATION_CONFIG}: {name} is {value!r}: expected {expected}",
        model=files.folder.name,
    )
