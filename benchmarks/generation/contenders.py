"""Starts the contenders of a scenario: the server once for all of our paths, each peer in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environments import UnavailableError
from benchmarks.generation.client import StreamClient
from benchmarks.generation.paths import ServerPath
from benchmarks.generation.peers.forms import interpreter, locate
from benchmarks.generation.peers.process import PeerProcess
from benchmarks.generation.peers.registry import PEERS
from benchmarks.generation.scenarios import EVERY_PATH, Scenario
from benchmarks.generation.words import Words, endless
from benchmarks.generation.work import Setup
from benchmarks.generation.workload import longest
from benchmarks.processes import Server

SPARE_TOKENS = 32
"""Tokens of a row beyond the longest sequence."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    Attributes:
        repository: the model repository.
        peers: where the peers' environments and models are.
        rounds: times that every contender is measured.
        folder: where logs go.
        arguments: further flags of ``headrace serve``.
    """

    repository: Path
    peers: Path
    rounds: int
    folder: Path
    arguments: tuple[str, ...] = ()


@dataclass(slots=True)
class Started:
    """Loaded contenders by name, in the scenario's order, and why others are not there."""

    running: dict[str, ServerPath | PeerProcess] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    server: Server | None = None


def threads() -> int:
    """Return the cores that this process may use; every contender gets as many threads."""
    return len(os.sched_getaffinity(0))


@contextmanager
def start(
    scenario: Scenario, names: list[str], streams: int, options: Options, say: Callable[[str], None]
) -> Iterator[Started]:
    """Load the contenders ``names`` for up to ``streams`` streams; peers are paused once they are loaded.

    Raises:
        RuntimeError: the server does not start.
    """
    started = Started()
    with ExitStack() as stack:
        for name in names:
            say(f"starting {name}")
            try:
                if name in EVERY_PATH:
                    started.running[name] = _path(scenario, name, started, options, stack)
                else:
                    peer = stack.enter_context(_peer(scenario, name, streams, options))
                    peer.pause()
                    started.running[name] = peer
            except UnavailableError as error:
                started.skipped[name] = str(error)
                if name in EVERY_PATH:
                    break  # without us there is nothing to compare
        yield started


def _path(scenario: Scenario, name: str, started: Started, options: Options, stack: ExitStack) -> ServerPath:
    if not (options.repository / scenario.model).exists():
        raise UnavailableError(f"there is no model '{scenario.model}' in {options.repository}")
    model = options.repository / scenario.model
    if started.server is None:
        log = options.folder / f"server-{scenario.name}.log"
        repository = endless(model, options.folder / scenario.name) if scenario.words else options.repository
        started.server = stack.enter_context(Server(repository, scenario.model, log, options.arguments))
    words = Words(model / "1" / "tokenizer.json") if scenario.words else None
    return ServerPath(name, scenario.model, started.server, stack.enter_context(StreamClient()), words)


def _peer(scenario: Scenario, name: str, streams: int, options: Options) -> PeerProcess:
    peer = PEERS[name]
    setup = Setup(
        str(locate(peer.form, options.repository, scenario.model, options.peers)), threads(), streams,
        longest(scenario) + SPARE_TOKENS, dict(peer.options),
    )  # fmt: skip
    python = interpreter(peer.environment, options.peers)
    return PeerProcess(name, python, peer.module, setup, options.folder / f"{scenario.name}-{name}.log")
