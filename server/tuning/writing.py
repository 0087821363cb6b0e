"""Writing what was chosen into config.pbtxt, in a part of its own: nothing else in the file changes."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.server.tuning.application import chosen_parameters
from headrace.server.tuning.candidates import free_fields
from headrace.server.tuning.workload import NotTunableError

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition
    from headrace.server.tuning.candidates import Candidate

BEGIN: Final = "# Measured by `headrace tune`"
END: Final = "# End of what was measured"
_PART: Final = re.compile(rf"\n?^{re.escape(BEGIN)}.*?^{re.escape(END)}[^\n]*\n?", re.MULTILINE | re.DOTALL)


def without_measured(text: str) -> str:
    """Return a configuration without the part that an earlier measurement has written.

    Raises:
        NotTunableError: the part has no end, so that nobody knows what belongs to it.
    """
    left = _PART.sub("", text)
    if any(line.startswith((BEGIN, END)) for line in left.splitlines()):
        raise NotTunableError(f"config.pbtxt has a line '{BEGIN}' or '{END}' without the other; remove it")
    return left


def with_measured(text: str, definition: ModelDefinition, candidate: Candidate, note: str) -> str:
    """Return ``text`` with the fields of ``candidate`` that it leaves open, at its end.

    Args:
        text: of config.pbtxt, without a measured part.
        definition: read from ``text``.
        candidate: what was chosen.
        note: one line that says where and how well.
    """
    lines = [f"{BEGIN}: {note}"]
    if free_fields(definition).instances:
        lines.append(f"instance_group {{ count: {candidate.layout.instances} kind: KIND_CPU }}")
    lines += [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in chosen_parameters(definition, candidate).items()
    ]
    lines.append(f"{END}; the next `headrace tune --write` replaces it.")
    before = f"{text.rstrip()}\n\n" if text.strip() else ""
    return before + "\n".join(lines) + "\n"


def write_text(path: Path, text: str) -> None:
    """Replace a file whole or not at all; it keeps its permissions.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = path.resolve()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".config-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
