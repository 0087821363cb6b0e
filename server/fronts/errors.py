"""Errors that cross the socket: what the front raises is what the core's schedulers raised."""

from __future__ import annotations

import pickle

import structlog

from headrace.server.errors import HeadraceError

log = structlog.get_logger(__name__)


def pack_error(error: Exception) -> bytes:
    """Return a domain error as bytes, its class and facts kept; any other is logged here and named only."""
    if not isinstance(error, HeadraceError):
        log.error("internal error", exc_info=error)
        error = RuntimeError("the core failed; its log has the reason")
    return pickle.dumps(error)


def unpack_error(data: bytes) -> Exception:
    """Return what :func:`pack_error` was given."""
    error: Exception = pickle.loads(data)  # noqa: S301 - from the core of this server, over a socket it made
    return error
