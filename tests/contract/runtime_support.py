"""A worker process driven over its real sockets and regions, as the server drives it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.datatypes import to_array, to_raw
from headrace.runtimes.regions import Region
from headrace.runtimes.wire import (
    HEADER_SIZE,
    INLINE_LIMIT,
    SLOTS,
    Cancel,
    Execute,
    Executed,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Reply,
    Tensor,
    frame,
    frame_size,
)

REPLY_TIMEOUT_S = 60


class WorkerProcess:
    """One real worker and the server's ends of its sockets and regions."""

    def __init__(self) -> None:
        """Start the process; nothing is loaded yet."""
        self.data, data = socket.socketpair()
        self.control, control = socket.socketpair()
        self.regions = [Region.create(f"test-{number}") for number in range(2 * SLOTS)]
        self.data.settimeout(REPLY_TIMEOUT_S)
        self._decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
        descriptors = [data.fileno(), control.fileno(), *(region.fd for region in self.regions)]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "headrace.runtimes.worker"),
                *("--data-fd", str(data.fileno()), "--control-fd", str(control.fileno())),
                *("--regions", ",".join(str(region.fd) for region in self.regions)),
            ],
            pass_fds=descriptors,
        )
        data.close()
        control.close()

    def load(self, instance: InstanceSpec) -> Loaded | LoadFailed:
        """Load an instance and return the worker's answer."""
        self.data.sendall(frame(Load(instance)))
        reply = self.receive()
        assert isinstance(reply, Loaded | LoadFailed)
        return reply

    def send(
        self,
        batch: int,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str] = (),
        *,
        slot: int = 0,
        lone: bool = False,
    ) -> None:
        """Send a batch without waiting for its answer."""
        tensors: list[Tensor] = []
        parts: list[tuple[int, bytes | memoryview]] = []
        end = 0
        for name, array in inputs.items():
            datatype, raw = to_raw(array)
            start = -(-end // 64) * 64
            tensors.append(Tensor(name, datatype, array.shape, start, len(raw)))
            parts.append((start, raw))
            end = start + len(raw)
        inline = bytearray(end) if end <= INLINE_LIMIT else None
        block = self.regions[2 * slot].view(end) if inline is None else memoryview(inline)
        for start, raw in parts:
            block[start : start + len(raw)] = raw
        self.data.sendall(
            frame(
                Execute(
                    batch=batch,
                    slot=slot,
                    lone=lone,
                    inputs=tuple(tensors),
                    outputs=tuple(outputs),
                    size=end,
                    block=None if inline is None else bytes(inline),
                )
            )
        )

    def cancel(self, batch: int) -> None:
        """Cancel a batch over the control socket."""
        self.control.sendall(frame(Cancel(batch)))

    def receive(self) -> Reply:
        """Wait for the next reply."""
        return self._decoder.decode(self._exactly(frame_size(self._exactly(HEADER_SIZE))))

    def arrays(self, reply: Reply, slot: int = 0) -> dict[str, NDArray[Any]]:
        """Copy the outputs out of an answer that must be a success."""
        assert isinstance(reply, Executed), reply
        block = self.regions[2 * slot + 1].view(reply.size) if reply.block is None else reply.block
        view = memoryview(block)
        return {
            tensor.name: to_array(
                tensor.datatype, tensor.shape, view[tensor.offset : tensor.offset + tensor.size]
            ).copy()
            for tensor in reply.outputs
        }

    def run(
        self, batch: int, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = (), *, slot: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Run a batch that must succeed."""
        self.send(batch, inputs, outputs, slot=slot)
        return self.arrays(self.receive(), slot)

    def failure(self, batch: int, inputs: Mapping[str, NDArray[Any]]) -> Failed:
        """Run a batch that must fail."""
        self.send(batch, inputs)
        reply = self.receive()
        assert isinstance(reply, Failed), reply
        return reply

    def descriptors(self) -> int:
        """Count the worker's open descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def maps(self) -> int:
        """Count the worker's memory mappings."""
        with open(f"/proc/{self.process.pid}/maps", encoding="utf-8") as lines:
            return sum(1 for _ in lines)

    def close(self) -> int:
        """End the worker the way the server does and return its exit status."""
        self.data.close()
        self.control.close()
        for region in self.regions:
            region.close()
        try:
            return self.process.wait(REPLY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def _exactly(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            part = self.data.recv(size - len(received))
            if not part:
                msg = f"the worker closed its socket (status {self.process.poll()})"
                raise EOFError(msg)
            received += part
        return bytes(received)


def random_rows(rows: int, width: int, seed: int = 0) -> NDArray[Any]:
    """Return reproducible FP32 rows."""
    return np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
