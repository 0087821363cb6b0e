"""What every object and every chunk of an answer says of itself."""

from __future__ import annotations

import time
from typing import Any, NamedTuple
from uuid import uuid4


class Identity(NamedTuple):
    """The members that all parts of one answer have in common.

    Attributes:
        id: of the answer.
        created: unix seconds.
        model: name of the model that answers.
        fingerprint: of the server; changes with its version.
    """

    id: str
    created: int
    model: str
    fingerprint: str

    def common(self, kind: str) -> dict[str, Any]:
        """Return the first members of an object or chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def of_chunks(self, kind: str) -> dict[str, Any]:
        """Return the first members of every chunk: clients of Text Generation Inference need the last one."""
        return {**self.common(kind), "system_fingerprint": self.fingerprint}


def identity(prefix: str, model: str, fingerprint: str, request_id: str | None = None) -> Identity:
    """Name a new answer: the prefix, and the caller's id or a new one."""
    return Identity(f"{prefix}{request_id or uuid4().hex}", int(time.time()), model, fingerprint)
