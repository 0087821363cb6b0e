"""The parent's end of a contender: a child process with a Python of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

import psutil

from benchmarks.environments import UnavailableError
from benchmarks.generation.work import Setup, Trace, Work
from benchmarks.process_tree import ProcessTree, last_words

ROOT: Final = Path(__file__).resolve().parents[3]
LOAD_SECONDS: Final = 300.0
RUN_SECONDS: Final = 600.0


class PeerProcess:
    """A loaded contender. It is stopped while others are measured, so that it cannot disturb them."""

    def __init__(self, name: str, python: Path, module: str, setup: Setup, log: Path) -> None:
        """Start ``module`` with ``python`` and load the model.

        Raises:
            UnavailableError: it does not load; the text is its error, or the end of its log.
        """
        self.name = name
        self._log = log
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "OMP_NUM_THREADS": str(setup.threads), "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1",
            "VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.generation.peers.{module}"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment, cwd=log.parent,
                start_new_session=True, bufsize=0,
            )  # fmt: skip
        self._tree = ProcessTree(self._process)
        try:
            self.title: str = self._ask({"load": asdict(setup)}, LOAD_SECONDS)["ready"]
        except RuntimeError as error:
            self.close()
            raise UnavailableError(str(error)) from None

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def run(self, work: Work) -> Trace:
        """Let it do ``work``.

        Raises:
            RuntimeError: it failed or died.
        """
        return Trace(**self._ask({"run": asdict(work)}, RUN_SECONDS)["trace"])

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return its processes now."""
        return {"peer": self._tree.processes()}

    def pause(self) -> None:
        """Stop all its processes where they are."""
        self._tree.pause()

    def resume(self) -> None:
        """Let them go on."""
        self._tree.resume()

    def close(self) -> None:
        """End it and whatever it started."""
        assert self._process.stdin is not None
        self._tree.end(self._process.stdin.close)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            unsent = memoryview(json.dumps(question).encode() + b"\n")
            while unsent:
                unsent = unsent[stdin.write(unsent) or 0 :]
        except BrokenPipeError:
            raise RuntimeError(last_words(self.name, self._log)) from None
        answer = bytearray()
        deadline = time.monotonic() + seconds
        while not answer.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise RuntimeError(f"{self.name} did not answer within {seconds:.0f} s")
            piece = os.read(stdout.fileno(), 1 << 20)
            if not piece:
                raise RuntimeError(last_words(self.name, self._log))
            answer += piece
        decoded: dict[str, Any] = json.loads(answer)
        if "error" in decoded:
            raise RuntimeError(decoded["error"])
        return decoded
