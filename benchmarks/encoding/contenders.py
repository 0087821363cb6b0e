"""Starts the peers of a scenario, each verified before it is measured and stopped until its turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.encoding.peers.registry import PEERS
from benchmarks.encoding.peers.server import PeerServer
from benchmarks.environments import UnavailableError
from benchmarks.payloads import Payload
from benchmarks.processes import Server
from benchmarks.verify import WrongAnswerError, check
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Place:
    """What peers are given: the model repository, their environments, a new folder for files, cores."""

    repository: Path
    peers: Path
    folder: Path
    cores: int


@dataclass(slots=True)
class Started:
    """Peers that run, by name, and why others do not."""

    running: dict[str, PeerServer] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def give_up(self, name: str, reason: str) -> None:
        """Leave out a peer that failed while it was measured; what it did before counts."""
        self.skipped[name] = f"{reason}; {self.running.pop(name).last_words()}"


@contextmanager
def start(
    wanted: Mapping[str, Payload], work: Workload, items: int, place: Place, say: Callable[[str], None]
) -> Iterator[Started]:
    """Start the peers ``wanted``, compare their answers to ``items`` items a request, and stop them."""
    started = Started()
    place.folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        for name, payload in wanted.items():
            say(f"start {name}")
            try:
                peer = stack.enter_context(
                    PeerServer(PEERS[name], place.repository, place.peers, place.folder / name, place.cores)
                )
                peer.wait(payload)
                check(peer.grpc, peer.http, payload, work, items)
            except (UnavailableError, WrongAnswerError) as error:
                started.skipped[name] = str(error)
            else:
                peer.pause()
                started.running[name] = peer
        yield started


@contextmanager
def at_work(target: Server | PeerServer) -> Iterator[None]:
    """Let a peer go on while it is measured; our server is never stopped: idle, it has to cost nothing."""
    if not isinstance(target, PeerServer):
        yield
        return
    target.resume()
    try:
        yield
    finally:
        target.pause()
