"""Before anything is timed: does the server give the numbers that the bare model gives?"""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.payloads import Payload
from benchmarks.raw import session_of
from benchmarks.workloads import Workload

TOLERANCE: Final = 1e-3
LEAST_COSINE: Final = 0.999
CHECKED: Final = 32
"""Items that every contender is asked for before it is measured; a request may have more."""

TIMEOUT_SECONDS: Final = 60.0


class WrongAnswerError(Exception):
    """The server answered with an error, or with other numbers than the model's."""


class Agreement(NamedTuple):
    """How far answers are from the bare model's: the largest difference of a value, the least cosine."""

    difference: float
    cosine: float


def expected(workload: Workload, items: int) -> NDArray[Any]:
    """Return what the bare model makes of the first ``items`` items, one by one; [items, values]."""
    session = session_of(workload, 1, spinning=False)
    return np.concatenate([workload.run(session, feed) for feed in workload.feeds(1, 1)[:items]])


def answers(grpc_address: str, http_address: str, payload: Payload, count: int) -> list[bytes]:
    """Send the first ``count`` requests of a payload and return the bodies of the answers.

    Raises:
        WrongAnswerError: an answer is an error.
    """
    bodies = payload.bodies[:count]
    if payload.protocol == "grpc":
        return _calls(grpc_address, payload.target, bodies)
    return _posts(http_address, payload.target, dict(payload.headers), bodies)


def check(grpc_address: str, http_address: str, payload: Payload, work: Workload, items: int) -> Agreement:
    """Compare answers to requests of ``items`` items each with the bare model's.

    Raises:
        WrongAnswerError: an answer is an error, or its values are not the model's.
    """
    count = min(len(payload.bodies), max(1, CHECKED // items))
    given = [payload.decode(answer) for answer in answers(grpc_address, http_address, payload, count)]
    return compare(payload.target, np.concatenate(given), expected(work, count * items))


def compare(what: str, values: NDArray[Any], truth: NDArray[Any]) -> Agreement:
    """Relate values to the bare model's, both [items, values].

    Raises:
        WrongAnswerError: they are too far from each other, or the shapes differ.
    """
    if values.shape != truth.shape:
        raise WrongAnswerError(f"{what}: shape {values.shape}, the model gives {truth.shape}")
    ours, theirs = values.astype(np.float64), truth.astype(np.float64)
    largest = float(np.abs(ours - theirs).max())
    if not largest <= TOLERANCE * max(1.0, float(np.abs(theirs).max())):
        raise WrongAnswerError(f"{what}: values differ from the model's by up to {largest}")
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosine = float(((ours * theirs).sum(axis=1) / lengths).min())
    if not cosine > LEAST_COSINE:
        raise WrongAnswerError(f"{what}: the cosine to the model's values is only {cosine}")
    return Agreement(largest, cosine)


def _calls(address: str, method: str, bodies: Sequence[bytes]) -> list[bytes]:
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        try:
            return [channel.unary_unary(method, None, None)(body, timeout=TIMEOUT_SECONDS) for body in bodies]
        except grpc.RpcError as error:
            raise WrongAnswerError(f"{method}: {error}") from error


def _posts(address: str, path: str, headers: dict[str, str], bodies: Sequence[bytes]) -> list[bytes]:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_SECONDS)
    given = []
    try:
        for body in bodies:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            given.append(response.read())
            if response.status != 200:
                raise WrongAnswerError(f"{path}: {response.status} {given[-1][:300]!r}")
    finally:
        connection.close()
    return given
