"""A peer as a process: started, asked until it answers, stopped while others are measured."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Final, Self

import psutil

from benchmarks.encoding.peers.launch import CREATE, HOST, LAUNCHERS, ROOT, Layout
from benchmarks.encoding.peers.registry import Peer
from benchmarks.environments import UnavailableError, there
from benchmarks.payloads import Payload
from benchmarks.process_tree import ProcessTree, last_words
from benchmarks.verify import WrongAnswerError, answers

READY_SECONDS: Final = 180.0
STOP_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.5


class PeerServer:
    """A running peer. Use as a context manager."""

    def __init__(self, peer: Peer, repository: Path, peers: Path, folder: Path, cores: int) -> None:
        """Start it on ``cores`` cores, with files in ``folder`` and its environment below ``peers``.

        Raises:
            UnavailableError: it is not installed, or its model is not there.
        """
        self.name = peer.name
        remedy = f"run `{CREATE} {peers}`"
        folder.mkdir()
        layout = Layout(
            there(peers / peer.program / "bin" / "python", remedy).parents[1],
            there(repository / "minilm" / "1" / "model.onnx", "run `make demo`").parent,
            there(repository / "minilm-torch" / "1" / "model.safetensors", "run `make demo`").parent,
            folder,
            cores if peer.wide else 1,
            1 if peer.wide else cores,
        )
        command = LAUNCHERS[peer.program](layout)
        self.grpc, self.http = (f"{HOST}:{port}" for port in (command.grpc, command.http))
        self._shared = command.shared
        self._stoppable = command.stoppable
        path = f"{layout.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        search = os.pathsep.join(filter(None, (str(ROOT), command.environment.get("PYTHONPATH"))))
        environment = {
            **os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
            **command.environment, "PYTHONPATH": search,
        }  # fmt: skip
        self._log = folder / "log.txt"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command.words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        self._tree = ProcessTree(self._process)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it and whatever it started."""
        self._tree.end(self._process.terminate, STOP_SECONDS)
        if self._shared:
            for left in Path("/dev/shm").glob(f"{self._shared}*"):  # noqa: S108 - Linux' shared memory
                left.unlink(missing_ok=True)

    def wait(self, payload: Payload) -> None:
        """Wait until it answers ``payload``.

        Raises:
            UnavailableError: it ended, or only gives errors.
        """
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                answers(self.grpc, self.http, payload, 1)
            except (WrongAnswerError, OSError) as error:
                if self._process.poll() is not None:
                    raise UnavailableError(last_words(self.name, self._log)) from None
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{self.name} does not answer: {error}"[:400]) from None
                time.sleep(_PAUSE_SECONDS)
            else:
                return

    def last_words(self) -> str:
        """Return how its log ends."""
        return last_words(self.name, self._log)

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return its processes now."""
        return {"peer": self._tree.processes()}

    def pause(self) -> None:
        """Stop all its processes where they are, if it bears that."""
        if self._stoppable:
            self._tree.pause()

    def resume(self) -> None:
        """Let them go on."""
        self._tree.resume()
