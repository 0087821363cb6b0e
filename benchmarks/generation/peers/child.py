"""The child's end of the protocol: a JSON document a line, questions on stdin, answers on stdout.

``{"load": Setup}`` is answered by ``{"ready": "name and version"}``, ``{"run": Work}`` by
``{"trace": Trace}``, and either by ``{"error": text}``. The end of stdin ends the child.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.generation.work import Setup, Trace, Work


class Contender(Protocol):
    """A loaded model that does work."""

    title: str
    """Name and version."""

    def run(self, work: Work) -> Trace:
        """Do it all and say when each token was there."""


def serve(load: Callable[[Setup], Contender]) -> None:
    """Answer until stdin ends. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender: Contender | None = None
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any]
        try:
            if "load" in question:
                contender = load(Setup(**question["load"]))
                answer = {"ready": contender.title}
            elif contender is None:
                answer = {"error": "nothing is loaded"}
            else:
                answer = {"trace": contender.run(Work(**question["run"])).data()}
        except Exception as error:  # noqa: BLE001 - the parent decides what to do without this contender
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def static(work: Work) -> None:
    """Refuse work that a static batch cannot do.

    Raises:
        ValueError: lengths differ, or requests do not begin together.
    """
    if not work.uniform:
        raise ValueError("a static batch needs requests of equal lengths that begin together")
