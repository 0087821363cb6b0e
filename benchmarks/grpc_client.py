"""Callers over gRPC: bytes in, bytes out, so that the client costs as little as grpc.aio can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import grpc

from benchmarks.closed_loop import Ask
from benchmarks.load_job import Job

OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # or equal channels would share one connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


@asynccontextmanager
async def callers(job: Job) -> AsyncIterator[list[Ask]]:
    """Open one channel a client."""
    channels = [grpc.aio.insecure_channel(job.address, options=OPTIONS) for _ in range(job.clients)]
    try:
        yield [_ask(channel, job) for channel in channels]
    finally:
        for channel in channels:
            await channel.close(None)


def _ask(channel: grpc.aio.Channel, job: Job) -> Ask:
    call = cast("Callable[..., Awaitable[Any]]", channel.unary_unary(job.target, None, None))
    if not job.headers:
        return call
    return lambda body: call(body, metadata=job.headers)
