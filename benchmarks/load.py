"""The load generator: a process of its own, so that its work is not counted as the server's."""

from __future__ import annotations

import contextlib
import gc
from multiprocessing.connection import Connection
from typing import Final

from benchmarks.child import Child
from benchmarks.load_job import Job, Outcome

GRACE_SECONDS: Final = 120.0
"""How long the slowest request may go on after the window."""


class LoadGenerator(Child):
    """The parent's end of the load generator. Use as a context manager."""

    def __init__(self) -> None:
        """Start the process."""
        super().__init__(_serve)

    def begin(self, job: Job) -> None:
        """Hand over a job; it starts at once."""
        self.connection.send(job)

    def outcome(self, job: Job) -> Outcome:
        """Wait for what came of the job.

        Raises:
            TimeoutError: requests hang.
        """
        if not self.connection.poll(job.window.seconds + GRACE_SECONDS):
            raise TimeoutError(f"{job.target} at {job.clients} clients: requests were not answered in time")
        result = self.connection.recv()
        if isinstance(result, Exception):
            raise result
        if not isinstance(result, Outcome):
            raise TypeError("the load generator did not answer with an outcome")
        return result


def _serve(connection: Connection) -> None:
    import uvloop

    # Imported here so that it is not loaded for the first time inside a measurement.
    from benchmarks import http2_client, http_client  # noqa: F401

    gc.collect()
    gc.freeze()
    connection.send("ready")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            job = connection.recv()
            gc.disable()
            try:
                answer: Outcome | Exception = uvloop.run(_drive(job))
            except Exception as error:  # noqa: BLE001 - the parent raises it
                answer = RuntimeError(f"{type(error).__name__}: {error}")
            gc.enable()
            connection.send(answer)


async def _drive(job: Job) -> Outcome:
    from benchmarks import http2_client, http_client
    from benchmarks.closed_loop import ClosedLoop

    open_callers = http2_client.callers if job.protocol == "grpc" else http_client.callers
    async with open_callers(job) as asks:
        return await ClosedLoop(job.bodies, job.weights, job.window).run(asks)
