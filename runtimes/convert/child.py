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
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.runtimes.convert.job import Checks, ConversionError, Job
from headrace.runtimes.convert.recipes import RECIPES


@dataclass(frozen=True)
class Order:
    """What the child is to build; paths are absolute strings."""

    name: str
    packages: dict[str, str]
    repository: str
    target: str


def build_in_child(order: Order, say: Callable[[str], None]) -> Checks:
    """Run a child for ``order`` and return what its builder measured.

    Raises:
        ConversionError: the builder failed or the child died; the end of what it printed is in the message.
    """
    command = [sys.executable, "-m", "headrace.runtimes.convert.child"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        with subprocess.Popen(  # noqa: S603 -- our own interpreter and module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
        ) as child:
            try:
                checks = _converse(child, order, say)
            except BaseException:
                child.terminate()
                raise
        if checks is not None:
            return checks
        log.seek(0)
        tail = "".join(deque(log, maxlen=20))
        msg = f"{order.name}: the builder ended with status {child.returncode}:\n{tail}"
        raise ConversionError(msg)


def _converse(child: subprocess.Popen[str], order: Order, say: Callable[[str], None]) -> Checks | None:
    """Send the order and read the answers; None when the child went without checks."""
    assert child.stdin is not None
    assert child.stdout is not None
    with child.stdin as orders:
        orders.write(json.dumps(asdict(order)))
    checks: Checks | None = None
    for line in child.stdout:
        answer = json.loads(line)
        if "say" in answer:
            say(answer["say"])
        elif "error" in answer:
            msg = f"{order.name}: {answer['error']}"
            raise ConversionError(msg)
        else:
            checks = answer["checks"]
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
    )
    try:
        checks = RECIPES[order.name].load()(job)
    except (ConversionError, ImportError) as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)
        return 1
    print(json.dumps({"checks": dict(checks)}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
