"""The peers of text encoding, as data."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Program = Literal["triton", "mlserver", "kserve", "infinity"]
"""A key of ``launch.LAUNCHERS``, and the folder of its environment below ``--peers``."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One server in one layout.

    Attributes:
        name: what ``--route`` takes and reports say.
        program: how it is started.
        title: what it is, for people.
        wide: as many instances of one thread as there are cores; else one instance with all threads. The
            first suits many clients, the second a single one.
        most: clients that it is asked by at most: a layout is measured where it is a good one.
        payload: the cheapest wire that it has, a key of ``payloads.BUILDERS``.
    """

    name: str
    program: Program
    title: str
    wide: bool = False
    most: int = 32
    payload: str = "infer-text"


_ALL: Final = (
    Peer("triton", "triton", "Triton 2.51, python backend, an instance a core, dynamic batching", wide=True),
    Peer("triton-deep", "triton", "the same, one instance with all threads", most=1),
    Peer("mlserver", "mlserver", "MLServer 1.7.1, adaptive batching"),
    Peer("kserve", "kserve", "KServe 0.21.0, a session a core", wide=True),
    Peer("kserve-deep", "kserve", "the same, one session with all threads", most=1),
    Peer("infinity", "infinity", "infinity-emb 0.0.78, torch, batches of 8", payload="embed-openai"),
)
PEERS: Final = MappingProxyType({peer.name: peer for peer in _ALL})
