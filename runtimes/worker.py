"""The worker process: loads one model instance and runs the batches that the server sends it.

Started as ``python -m headrace.runtimes.worker --data-fd N --control-fd M --regions in0,out0,in1,out1``
with every descriptor inherited: two stream sockets and, for each slot, the memory files of its inputs
and outputs.

The main thread does all the work, blocking in ``recv`` between batches, so a batch crosses no thread on its
way to the native runtime. A daemon thread waits on the control socket for ``wire.Cancel``.
The process ends with status 0 when the server closes the data socket, and is killed by the kernel when the
*thread* that started it ends (``PR_SET_PDEATHSIG``): start workers from a thread that lives as long as the
server. A native crash leaves a traceback on standard error, and the server sees the closed socket.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec

from headrace.runtimes.base import (
    InstanceSpec,
    InvalidInputError,
    ModelError,
    Run,
    RunCancelledError,
    TensorModel,
    padding_of,
)
from headrace.runtimes.blocks import read_block, write_block
from headrace.runtimes.frames import FrameReader
from headrace.runtimes.generation.base import GenerationSpec
from headrace.runtimes.placement import Placement
from headrace.runtimes.regions import Region
from headrace.runtimes.registry import decoder_loader, loader
from headrace.runtimes.text import TextEncoder
from headrace.runtimes.wire import (
    INLINE_LIMIT,
    SLOTS,
    Cancel,
    Execute,
    Executed,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Request,
    frame,
)

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_REMEMBERED_CANCELS: Final = 8 * SLOTS
"""Cancels kept for batches not seen yet: more than there can be, as a worker holds ``SLOTS`` batches."""

ModelT = TypeVar("ModelT")


class Cancels:
    """Which batches were cancelled: the running one is stopped, one still waiting is remembered."""

    def __init__(self) -> None:
        """Start with nothing running and nothing cancelled."""
        self._lock = threading.Lock()
        self._running: tuple[int, Run] | None = None
        self._waiting: dict[int, None] = {}

    def begin(self, batch: int, run: Run) -> None:
        """Note that ``batch`` runs as ``run``, which is cancelled at once if its cancel came first."""
        with self._lock:
            self._running = (batch, run)
            cancelled = batch in self._waiting
            self._waiting.pop(batch, None)
        if cancelled:
            run.cancel()

    def end(self) -> None:
        """Note that nothing runs."""
        with self._lock:
            self._running = None

    def cancel(self, batch: int) -> None:
        """Stop ``batch`` if it runs, else remember it for the moment it begins."""
        with self._lock:
            running = self._running
            if running is None or running[0] != batch:
                # A cancel that comes too late for its batch is remembered too, and falls out here.
                while len(self._waiting) >= _REMEMBERED_CANCELS:
                    del self._waiting[next(iter(self._waiting))]
                self._waiting[batch] = None
                return
        running[1].cancel()

    def cancel_running(self) -> None:
        """Stop whatever runs."""
        with self._lock:
            running = self._running
        if running is not None:
            running[1].cancel()


class Slot(NamedTuple):
    """The shared memory of one batch."""

    inputs: Region
    outputs: Region


class Executor:
    """Runs batches of one loaded model."""

    def __init__(
        self, model: TensorModel, slots: Sequence[Slot], cancels: Cancels, placement: Placement
    ) -> None:
        """Run ``model`` on blocks inside frames or in ``slots``, where ``placement`` says."""
        self._model = model
        self._placement = placement
        self._slots = slots
        self._cancels = cancels

    def execute(self, request: Execute) -> Executed | Failed:
        """Run one batch; every way it can fail becomes a reply."""
        run = Run(lone=request.lone)
        self._placement.settle(beside=request.beside)
        self._cancels.begin(request.batch, run)
        try:
            return self._execute(request, run)
        except RunCancelledError:
            return Failed(request.batch, "cancelled", "the batch was cancelled")
        except InvalidInputError as error:
            return Failed(request.batch, "invalid", str(error))
        except ModelError as error:
            return Failed(request.batch, "execution", str(error))
        except Exception as error:  # noqa: BLE001 - a batch must not end the worker
            traceback.print_exc()
            return Failed(request.batch, "execution", describe(error))
        finally:
            self._cancels.end()

    def _execute(self, request: Execute, run: Run) -> Executed:
        run.check()
        started = time.perf_counter_ns()
        block = request.block
        arrays = read_block(
            request.inputs,
            self._slots[request.slot].inputs.view(request.size) if block is None else block,
        )
        ready = time.perf_counter_ns()
        results = self._model.execute(arrays, request.outputs, run)
        inferred = time.perf_counter_ns()
        inline: bytearray | None = None

        def allocate(size: int) -> memoryview:
            nonlocal inline
            if size > INLINE_LIMIT:
                return self._slots[request.slot].outputs.view(size)
            inline = bytearray(size)
            return memoryview(inline)

        tensors, size = write_block(results, allocate)
        return Executed(
            batch=request.batch,
            outputs=tensors,
            size=size,
            block=None if inline is None else bytes(inline),
            input_ns=ready - started,
            infer_ns=inferred - ready,
            output_ns=time.perf_counter_ns() - inferred,
        )


def describe(error: BaseException) -> str:
    """Say in one line what an exception that nobody expected was."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def load(instance: InstanceSpec) -> TensorModel:
    """Load an instance with its runtime, behind the token-id head if it has one.

    Raises:
        ModelError: the runtime is unknown or refuses the model.
    """
    model = loader(instance.runtime)(instance)
    return model if instance.text is None else TextEncoder(model, instance.text)


def serve(data: socket.socket, control: socket.socket, slots: Sequence[Slot]) -> int:
    """Load the instance and run it until the server closes ``data``; returns the exit status."""
    reader = FrameReader(data)
    requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
    first = reader.read(requests)
    if not isinstance(first, Load):
        return 0 if first is None else 1
    instance = first.instance
    _set_name(f"hr:{instance.model}")
    if instance.generation is not None:
        return _generate(reader, data, instance, instance.generation)
    model = _loaded(data, instance, load)
    if model is None:
        return 1
    cancels = Cancels()
    executor = Executor(model, slots, cancels, Placement(instance))
    threading.Thread(target=_listen, args=(control, cancels), name="control", daemon=True).start()
    loaded = Loaded(tuple(model.inputs), tuple(model.outputs), model.platform, padding_of(model))
    data.sendall(frame(loaded))
    while isinstance(request := reader.read(requests), Execute):
        data.sendall(frame(executor.execute(request)))
    model.close()
    return 0


def _generate(
    reader: FrameReader, data: socket.socket, instance: InstanceSpec, generation: GenerationSpec
) -> int:
    """Load a decoder and generate until the server closes ``data``; returns the exit status."""
    # tensor models need neither the engine nor what it imports
    from headrace.runtimes.generation import loop

    decoder = _loaded(data, instance, lambda instance: decoder_loader(instance.runtime)(instance))
    if decoder is None:
        return 1
    data.sendall(frame(Loaded((), (), decoder.platform)))
    loop.serve(reader, data, decoder, generation)
    return 0


def _loaded(
    data: socket.socket, instance: InstanceSpec, load_model: Callable[[InstanceSpec], ModelT]
) -> ModelT | None:
    """Load an instance; None, and the server is told, when that fails."""
    try:
        model = load_model(instance)
    except ModelError as error:
        data.sendall(frame(LoadFailed(str(error))))
        return None
    except BaseException as error:  # noqa: BLE001 - whatever a model's code raises is the user's answer
        traceback.print_exc()
        data.sendall(frame(LoadFailed(f"unexpected error while loading: {describe(error)}")))
        return None
    # What loading left behind lives as long as the process: keep it out of every later collection.
    gc.collect()
    gc.freeze()
    return model


def _listen(control: socket.socket, cancels: Cancels) -> None:
    """Carry out cancels until the server closes the control socket; nobody waits for anything after that."""
    reader = FrameReader(control)
    decoder = msgspec.msgpack.Decoder(Cancel)
    while (message := reader.read(decoder)) is not None:
        cancels.cancel(message.batch)
    cancels.cancel_running()


def _set_name(name: str) -> None:
    """Name the process for ``ps`` and ``top``; the kernel keeps 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def _die_with_parent(control: socket.socket) -> None:
    """Have the kernel kill this process when its parent dies, and leave if that has already happened."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    poll = select.poll()
    poll.register(control.fileno(), 0)
    if any(events & select.POLLHUP for _, events in poll.poll(0)):
        sys.exit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker on inherited descriptors."""
    parser = argparse.ArgumentParser(prog="headrace-worker", description="Run one model instance.")
    parser.add_argument("--data-fd", type=int, required=True, help="socket of requests and replies")
    parser.add_argument("--control-fd", type=int, required=True, help="socket of cancels")
    parser.add_argument("--regions", required=True, help="memory files: in0,out0,in1,out1,...")
    arguments = parser.parse_args(argv)
    # Ctrl-C reaches the whole process group; only the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    control = socket.socket(fileno=arguments.control_fd)
    _die_with_parent(control)
    regions = [Region(int(fd)) for fd in arguments.regions.split(",")]
    slots = [Slot(*pair) for pair in zip(regions[::2], regions[1::2], strict=True)]
    with socket.socket(fileno=arguments.data_fd) as data:
        try:
            return serve(data, control, slots)
        except (BrokenPipeError, ConnectionResetError):
            return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Without the interpreter's end: a thread that still loads a session in native code would abort there.
    os._exit(status)
