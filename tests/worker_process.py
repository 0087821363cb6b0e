"""A real worker process and the server's ends of its sockets and regions, for tests that drive it."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TypeVar

import msgspec

from headrace.runtimes.frames import FrameReader
from headrace.runtimes.regions import Region
from headrace.runtimes.wire import SLOTS, frame

REPLY_TIMEOUT_S = 60
MessageT = TypeVar("MessageT")


class WorkerProcess:
    """The process, and what the server has in its hands."""

    def __init__(self) -> None:
        """Start it."""
        self.data, data = socket.socketpair()
        self.control, control = socket.socketpair()
        self.data.settimeout(REPLY_TIMEOUT_S)
        self.regions = [Region.create(f"test-{number}") for number in range(2 * SLOTS)]
        self._reader = FrameReader(self.data)
        files = [region.fd for region in self.regions]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "headrace.runtimes.worker"),
                *("--data-fd", str(data.fileno()), "--control-fd", str(control.fileno())),
                *("--regions", ",".join(map(str, files))),
            ],
            pass_fds=[data.fileno(), control.fileno(), *files],
        )
        data.close()
        control.close()

    def send(self, message: msgspec.Struct) -> None:
        """Send on the data socket."""
        self.data.sendall(frame(message))

    def receive(self, decoder: msgspec.msgpack.Decoder[MessageT]) -> MessageT:
        """Wait for the next message.

        Raises:
            EOFError: the worker has ended.
        """
        message = self._reader.read(decoder)
        if message is None:
            raise EOFError
        return message

    def close(self) -> int:
        """End the worker the way the server does and return its exit status."""
        self.data.close()
        self.control.close()
        for region in self.regions:
            region.close()
        self.regions.clear()
        try:
            return self.process.wait(REPLY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
