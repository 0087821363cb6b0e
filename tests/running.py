"""Starting, stopping and asking a real server; what tests of the running system share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 180.0


@dataclass(frozen=True)
class ServerProcess:
    """A running ``headrace serve``: its addresses and its process."""

    grpc: str
    http: str
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        """Base URL of the REST port."""
        return f"http://{self.http}"


def spawn_server(*arguments: str, log: Path) -> subprocess.Popen[str]:
    """Start a server on free ports and do not wait for it; its log goes to ``log``."""
    command = [
        sys.executable, "-m", "headrace.server.cli", "serve",
        "--grpc-port", "0", "--http-port", "0", "--log-format", "json", *arguments,
    ]  # fmt: skip
    with log.open("w") as stream:
        return subprocess.Popen(
            command, stderr=stream, stdout=stream, text=True, cwd=ROOT,
            # nothing is measured on larger machines either, unless a flag says so
            env=os.environ | {"HEADRACE_TUNING": "off"},
        )  # fmt: skip


def start_server(*arguments: str, log: Path) -> ServerProcess:
    """Start a server on free ports and wait until it says it is ready; its log goes to ``log``."""
    process = spawn_server(*arguments, log=log)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"server ready"' in line:
                entry = json.loads(line)
                return ServerProcess(entry["grpc"], entry["rest"], process)
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise RuntimeError(f"the server did not become ready:\n{log.read_text()[-4000:]}")


def stop_server(server: ServerProcess) -> int:
    """Ask the server to drain and return its exit status."""
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise


def get_json(url: str) -> tuple[int, object]:
    """GET ``url`` and return its status and JSON body."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")
