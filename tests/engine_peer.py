"""The worker's end of a generation engine's connection: a test says what the engine answers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from headrace.runtimes import wire
from headrace.runtimes.generation.messages import EngineStats, Event, Outputs, Tokens


class Peer(asyncio.Protocol):
    """The worker's end of one connection."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self._steps = self._generated = 0
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= wire.HEADER_SIZE:
            end = wire.HEADER_SIZE + wire.frame_size(self._buffer[: wire.HEADER_SIZE])
            if len(self._buffer) < end:
                return
            self.received.append(msgspec.msgpack.decode(self._buffer[wire.HEADER_SIZE : end]))
            del self._buffer[:end]

    def ids(self, tag: str) -> list[int]:
        """Requests of all messages of a kind, in order."""
        return [message[1] for message in self.received if message[0] == tag]

    def answer(self, *events: Event) -> None:
        assert self._transport is not None
        self._steps += 1
        self._generated += sum(len(event.token_ids) for event in events if isinstance(event, Tokens))
        stats = EngineStats(steps=self._steps, generated_tokens=self._generated)
        self._transport.write(wire.frame(Outputs(events, stats)))

    def die(self) -> None:
        assert self._transport is not None
        self._transport.abort()
