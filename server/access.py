"""Who may call: the server's API keys, and what is open without one."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from hashlib import sha256
from typing import Final

from headrace.server.errors import UnauthenticatedError

HEADER: Final = "authorization"

OPEN: Final = frozenset(
    {
        ("ops", "Health"),
        ("ops", "Metrics"),
        ("ops", "DescribeApi"),
        ("ops", "ShowApi"),
        ("endpoint", "Info"),
        ("openai", "GetModel"),
        ("openai", "ListModels"),
        ("tgi", "ChatTokenize"),
        ("vllm", "Version"),
        *((family, name) for family in ("kserve", "kserve-rest") for name in ("ServerLive", "ServerReady")),
    }
)
"""(family, RPC) that need no key: what probes, dashboards and autoscalers ask, as in TGI."""


class Access:
    """Checks keys; without any, everybody may call.

    Args:
        keys: one of them has to come with a request, as ``Authorization: Bearer KEY``.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(sha256(key.encode()).digest() for key in keys)
        # an RPC is a task with a context of its own: whatever serves it finds the caller without being told
        self._tenant: ContextVar[str] = ContextVar("tenant", default="")

    def tenant(self) -> str:
        """Return what tells the caller of the present RPC from others; "" where no two keys are known."""
        return self._tenant.get()

    def check(self, family: str, name: str, headers: Mapping[str, str]) -> None:
        """Let a call pass and note whose it is, or refuse it.

        Raises:
            UnauthenticatedError: the call needs a key and has none, or a wrong one.
        """
        if not self._digests or (family, name) in OPEN:
            return
        scheme, _, key = headers.get(HEADER, "").partition(" ")
        given = sha256(key.strip().encode()).digest()
        # All are compared, so that the time tells nothing of which one is near.
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            raise UnauthenticatedError(
                "no valid API key: send one of the server's keys as `Authorization: Bearer KEY`"
            )
        if len(self._digests) > 1:
            self._tenant.set(given.hex())
