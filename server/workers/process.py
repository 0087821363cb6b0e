"""One worker process: how it is spawned, spoken to and reaped.

Two stream sockets (batches; cancellations) and the shared regions are created here and inherited by the
child. The end of the data socket is the end of the worker: it arrives at once when the process dies, however
it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar, cast

import msgspec
import structlog

from headrace.runtimes import wire
from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.regions import Region
from headrace.server.errors import LoadFailedError

log = structlog.get_logger(__name__)

_STOP_SECONDS: Final = 10.0
_BUFFER_BYTES: Final = 1 << 20
_TUNABLES: Final = "GLIBC_TUNABLES"
_HUGE_PAGES: Final = "glibc.malloc.hugetlb=1"


ReplyT = TypeVar("ReplyT")


class WorkerProcess(asyncio.Protocol, Generic[ReplyT]):
    """A running worker.

    Args:
        replies: decodes its messages: the answers to ``wire.Load``, and those that it sends afterwards.
        on_reply: called with every message after the worker has loaded.
        on_exit: called once, when the data socket closes, with what is known of the reason.
    """

    def __init__(
        self,
        replies: msgspec.msgpack.Decoder[wire.Loaded | wire.LoadFailed | ReplyT],
        on_reply: Callable[[ReplyT], None],
        on_exit: Callable[[str], None],
    ) -> None:
        self._replies = replies
        self._on_reply = on_reply
        self._on_exit = on_exit
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[wire.Loaded] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._data: socket.socket | None = None  # until the transport has it
        self._control: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self.inputs: list[Region] = []
        self.outputs: list[Region] = []

    @property
    def pid(self) -> int:
        """The child's process id, 0 before it was spawned."""
        return self._child.pid if self._child else 0

    async def start(self, spec: InstanceSpec) -> wire.Loaded:
        """Spawn the child, have it load ``spec`` and return what it found.

        Raises:
            LoadFailedError: with the worker's own reason, or that it died while loading.
        """
        try:
            data = self._spawn(spec)
            await self._loop.create_connection(lambda: self, sock=data)
        except BaseException:  # given up meanwhile, or the machine is short of something
            self._close()
            raise
        self._data = None  # the transport's
        self.send(wire.Load(spec))
        return await self._loaded

    def _spawn(self, spec: InstanceSpec) -> socket.socket:
        """Start the child; returns our end of the data socket, whose end is the end of the child."""
        self._data, child_data = socket.socketpair()
        with child_data:
            self._control, child_control = socket.socketpair()
            with child_control:
                self._control.setblocking(False)
                for sock in (self._data, child_data):
                    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                        sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
                self._child = self._process(spec, child_data.fileno(), child_control.fileno())
        return self._data

    def _process(self, spec: InstanceSpec, data: int, control: int) -> subprocess.Popen[bytes]:
        for slot in range(wire.SLOTS):
            self.inputs.append(Region.create(f"headrace-in-{slot}"))
            self.outputs.append(Region.create(f"headrace-out-{slot}"))
        regions = [
            fd for pair in zip(self.inputs, self.outputs, strict=True) for fd in (pair[0].fd, pair[1].fd)
        ]
        command = [
            sys.executable, "-m", "headrace.runtimes.worker",
            "--data-fd", str(data),
            "--control-fd", str(control),
            "--regions", ",".join(map(str, regions)),
        ]  # fmt: skip
        return subprocess.Popen(
            command,
            pass_fds=(data, control, *regions),
            stdin=subprocess.DEVNULL,
            env=environment(spec, os.environ),
        )

    def send(self, message: msgspec.Struct) -> None:
        """Write one message to the data socket."""
        if self._transport is not None:
            self._transport.write(wire.frame(message))

    def cancel(self, batch: int) -> None:
        """Write a cancellation to the control socket; a full socket means that many are under way already."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send(wire.frame(wire.Cancel(batch)))

    async def stop(self) -> None:
        """Close the sockets, which ends the child after its batch, and reap it; kill it if it does not go."""
        if self._loaded.cancelled():
            self.kill()  # it would notice when it has loaded, and has nothing to finish
        if self._transport is not None:
            self._transport.close()
        try:
            await self._reap(_STOP_SECONDS)
        finally:
            self._close()

    def kill(self) -> None:
        """End the child at once; :attr:`on_exit` follows."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Cut the stream into messages."""
        buffer = self._received
        buffer += data
        start = 0
        while len(buffer) - start >= wire.HEADER_SIZE:
            body = start + wire.HEADER_SIZE
            end = body + wire.frame_size(memoryview(buffer)[start:body])
            if len(buffer) < end:
                break
            reply = self._replies.decode(memoryview(buffer)[body:end])
            start = end
            self._take(reply)
        if start:
            del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the worker."""
        self._transport = None
        self._loop.create_task(self._report(exc))

    def _take(self, reply: wire.Loaded | wire.LoadFailed | ReplyT) -> None:
        if isinstance(reply, wire.Loaded):
            if not self._loaded.done():
                self._loaded.set_result(reply)
        elif isinstance(reply, wire.LoadFailed):
            if not self._loaded.done():
                self._loaded.set_exception(LoadFailedError(reply.message))
        else:
            self._on_reply(reply)

    async def _report(self, exc: Exception | None) -> None:
        self._on_exit("connection closed" if exc is None else str(exc))
        try:
            code = await self._reap(_STOP_SECONDS)
        finally:  # the server may end before the child was reaped
            self._close()
        reason = f"the worker process ended ({_describe(code)})"
        if not self._loaded.done():
            self._loaded.set_exception(LoadFailedError(f"{reason} while it loaded the model"))
        self._gone.set()

    async def _reap(self, seconds: float) -> int | None:
        child = self._child
        if child is None:
            return None
        try:
            return await asyncio.to_thread(child.wait, seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return await asyncio.to_thread(child.wait)

    def _close(self) -> None:
        for sock in (self._data, self._control):
            if sock is not None:
                sock.close()
        self._data = self._control = None
        for region in (*self.inputs, *self.outputs):
            region.close()


def _describe(code: int | None) -> str:
    if code is None:
        return "unknown exit status"
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def environment(spec: InstanceSpec, own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the worker of ``spec``: ``own``, and what has to be set before it starts.

    A token of a decoder reads all of the weights, so they shall lie in huge pages. The GNU C library asks for
    those when it is told to as the process starts; other libraries ignore it. What the user set stays.
    """
    made = dict(own)
    given = made.get(_TUNABLES, "")
    if spec.generation is not None and _HUGE_PAGES.partition("=")[0] not in given:
        made[_TUNABLES] = f"{given}:{_HUGE_PAGES}" if given else _HUGE_PAGES
    return made
