"""The parent's end of a contender: a child process with a Python of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

import psutil

from benchmarks.generation.peers.forms import UnavailableError
from benchmarks.generation.work import Setup, Trace, Work

ROOT: Final = Path(__file__).resolve().parents[3]
LOAD_SECONDS: Final = 300.0
RUN_SECONDS: Final = 600.0
STOP_SECONDS: Final = 3.0


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
        return {"peer": self._tree()}

    def pause(self) -> None:
        """Stop all its processes where they are."""
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Let them go on."""
        for process in reversed(self._tree()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        """End it and whatever it started; some peers leave processes behind that ignore SIGTERM."""
        self.resume()
        tree = self._tree()
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            unsent = memoryview(json.dumps(question).encode() + b"\n")
            while unsent:
                unsent = unsent[stdin.write(unsent) or 0 :]
        except BrokenPipeError:
            raise RuntimeError(self._last_words()) from None
        answer = bytearray()
        deadline = time.monotonic() + seconds
        while not answer.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise RuntimeError(f"{self.name} did not answer within {seconds:.0f} s")
            piece = os.read(stdout.fileno(), 1 << 20)
            if not piece:
                raise RuntimeError(self._last_words())
            answer += piece
        decoded: dict[str, Any] = json.loads(answer)
        if "error" in decoded:
            raise RuntimeError(decoded["error"])
        return decoded

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{self.name} ended: {lines[-1][:300] if lines else 'no output'}"
