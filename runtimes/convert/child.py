"""The child process that builds one model: ``python -m headrace.runtimes.convert.child``.

It gets one JSON object on standard input (:class:`Order`) and answers with JSON lines on standard output:
``{"say": …}`` any number of times, then ``{"checks": {…}}`` or ``{"error": …}``. What libraries print goes to
standard error. torch, onnx and the rest live and die with this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from headrace.runtimes.convert.job import Checks, ConversionError, Job
from headrace.runtimes.convert.recipes import RECIPES, Recipe

LOG_LINES: Final = 20
"""How much of a failed builder's output goes into the error."""


@dataclass(frozen=True)
class Order:
    """What the child is to build; paths are absolute strings.

    ``builder`` is ``module:function`` as in a recipe; empty means that of the recipe called ``name``.
    """

    name: str
    packages: dict[str, str]
    repository: str
    target: str
    builder: str = ""
    options: dict[str, str] = field(default_factory=dict)


def build_in_child(order: Order, say: Callable[[str], None]) -> Checks:
    """Run a child for ``order`` and return what its builder measured.

    Raises:
        ConversionError: the builder failed or the child died; the end of what it printed is in the message.
    """
    command = [sys.executable, "-m", "headrace.runtimes.convert.child"]
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+b") as orders, tempfile.TemporaryFile("w+b") as log:
        orders.write(json.dumps(asdict(order)).encode())
        orders.seek(0)
        with subprocess.Popen(command, stdin=orders, stdout=subprocess.PIPE, stderr=log) as child:
            try:
                for line in child.stdout or ():
                    last = json.loads(line)
                    if "say" in last:
                        say(last["say"])
            except BaseException:
                child.terminate()
                raise
        if "checks" not in last:
            log.seek(0)
            tail = b"".join(deque(log, maxlen=LOG_LINES)).decode(errors="replace")
            reason = last.get("error") or f"the builder ended with status {child.returncode}:\n{tail}"
            msg = f"{order.name}: {reason}"
            raise ConversionError(msg)
    checks: Checks = last["checks"]
    return checks


def main() -> int:
    """Build what standard input orders; exit status 0 when the answer holds checks."""
    # Libraries print what they like: only this module may write to the real standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    order = Order(**json.load(sys.stdin))
    job = Job(
        packages={name: Path(path) for name, path in order.packages.items()},
        repository=Path(order.repository),
        target=Path(order.target),
        say=lambda text: print(json.dumps({"say": text}), file=answers, flush=True),
        options=order.options,
    )
    recipe = Recipe(order.builder) if order.builder else RECIPES[order.name]
    try:
        checks = recipe.load()(job)
    except (ConversionError, ImportError) as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return 1
    print(json.dumps({"checks": dict(checks)}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
