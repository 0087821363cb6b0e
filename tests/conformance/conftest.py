from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import requests
from tokenizers import Tokenizer

from running import ServerProcess


@pytest.fixture(scope="session")
def session() -> Iterator[requests.Session]:
    """An HTTP connection that is kept for many requests."""
    with requests.Session() as kept:
        yield kept


@pytest.fixture
async def http(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP to the server that all tests share."""
    async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(120)) as client:
        yield client


@pytest.fixture(scope="session")
def tokenizer(demo_repository: Path) -> Tokenizer:
    """The tokenizer of the demo model that generates."""
    return Tokenizer.from_file(str(demo_repository / "smollm2" / "1" / "tokenizer.json"))
