from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted_generation import Context

from headrace.server.services.call import Call
from headrace.server.tasks.generate import Generating
from headrace.server.tasks.tokenization import Tokenizing


@pytest.fixture
def generating() -> Iterator[Generating]:
    """What generates, with one thread that tokenises."""
    tokenizing = Tokenizing(1)
    yield Generating(tokenizing)
    tokenizing.close()


@pytest.fixture
def call() -> Call:
    """A call of the typed API without a deadline."""
    return Call(Context(), "headrace")  # type: ignore[arg-type]
