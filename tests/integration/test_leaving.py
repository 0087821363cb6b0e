"""The end of a server under load: every REST client has an answer, or finds the port closed."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from running import start_server, stop_server

CLIENTS = 16
RETRY_SECONDS = 0.02


@pytest.mark.parametrize("fronts", [1, 2])
async def test_nobody_is_cut_when_the_server_stops(
    tmp_path: Path, demo_repository: Path, fronts: int
) -> None:
    """Clients that keep their connections and ask again while they read 503, as clients that retry do."""
    running = await asyncio.to_thread(
        start_server, "--model-repository", str(demo_repository), "--load-models", "iris",
        "--front-processes", str(fronts), log=tmp_path / "server.log",
    )  # fmt: skip
    statuses: Counter[int] = Counter()

    async def ask(session: aiohttp.ClientSession) -> str:
        while True:
            try:
                async with session.post(f"{running.url}/predict", json=[[5.1, 3.5, 1.4, 0.2]]) as answer:
                    await answer.read()
                    statuses[answer.status] += 1
            except aiohttp.ClientConnectorError:
                return "closed"
            except aiohttp.ClientError as error:
                return f"cut: {error!r}"
            if answer.status == 503:
                await asyncio.sleep(RETRY_SECONDS)

    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            asking = [asyncio.create_task(ask(session)) for _ in range(CLIENTS)]
            await asyncio.sleep(1)
            running.process.send_signal(signal.SIGTERM)
            ends = Counter(await asyncio.gather(*asking))
    finally:
        assert await asyncio.to_thread(stop_server, running) == 0
    assert ends == {"closed": CLIENTS}
    assert statuses[200] > CLIENTS
    assert set(statuses) == {200, 503}
