"""How a worker process ends when its server does not end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from headrace.runtimes.convert.arithmetic import addsub_graph, save

TIMEOUT_S = 60

PARENT = """
import os, socket, subprocess, sys
from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.regions import Region
from headrace.runtimes.wire import Load, frame
(data, theirs), (control, commands) = socket.socketpair(), socket.socketpair()
regions = [Region.create("r") for _ in range(4)]
numbers = [theirs.fileno(), commands.fileno(), *(region.fd for region in regions)]
child = subprocess.Popen([sys.executable, "-m", "headrace.runtimes.worker", "--data-fd", str(numbers[0]),
    "--control-fd", str(numbers[1]), "--regions", ",".join(map(str, numbers[2:]))], pass_fds=numbers)
data.sendall(frame(Load(InstanceSpec("addsub", "onnx", sys.argv[1]))))
data.recv(4)
# A copy of the server's ends that outlives it: only the kernel can end the worker now.
keeper = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=0,
    stdout=subprocess.DEVNULL, pass_fds=[data.fileno(), control.fileno()])
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx", addsub_graph(batched=True))
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    child = int(parent.stdout.readline())
    assert parent.wait(TIMEOUT_S) == -signal.SIGKILL
    deadline = time.monotonic() + TIMEOUT_S
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(child)
    parent.stdin.close()
    parent.stdout.close()


def _alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_whose_parent_is_gone_leaves() -> None:
    data, theirs = socket.socketpair()
    control, commands = socket.socketpair()
    control.close()
    fds = [theirs.fileno(), commands.fileno(), os.memfd_create("in"), os.memfd_create("out")]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "headrace.runtimes.worker"),
            *("--data-fd", str(fds[0]), "--control-fd", str(fds[1]), "--regions", f"{fds[2]},{fds[3]}"),
        ],
        pass_fds=fds,
    )
    assert process.wait(TIMEOUT_S) == 0
    for end in (data, theirs, commands):
        end.close()
    for fd in fds[2:]:
        os.close(fd)
