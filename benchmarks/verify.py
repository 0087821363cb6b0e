"""Before anything is timed: does the server give the numbers that the bare model gives?"""

from __future__ import annotations

import http.client
from typing import Any, Final

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.payloads import Payload
from benchmarks.raw import session_of
from benchmarks.workloads import Workload

TOLERANCE: Final = 1e-3
TIMEOUT_SECONDS: Final = 60.0


class WrongAnswerError(Exception):
    """The server answered with an error, or with other numbers than the model's."""


def expected(workload: Workload, items: int) -> NDArray[Any]:
    """Return what the bare model makes of the first ``items`` items, one by one; [items, values]."""
    session = session_of(workload, 1, spinning=False)
    return np.concatenate([workload.run(session, feed) for feed in workload.feeds(1, 1)[:items]])


def first_answer(grpc_address: str, http_address: str, payload: Payload) -> bytes:
    """Send the first request of a payload once and return the body of the answer.

    Raises:
        WrongAnswerError: the answer is an error.
    """
    if payload.protocol == "grpc":
        with grpc.insecure_channel(
            grpc_address, options=[("grpc.max_receive_message_length", -1)]
        ) as channel:
            try:
                answer: bytes = channel.unary_unary(payload.target, None, None)(
                    payload.bodies[0], timeout=TIMEOUT_SECONDS
                )
            except grpc.RpcError as error:
                raise WrongAnswerError(f"{payload.target}: {error}") from error
        return answer
    connection = http.client.HTTPConnection(http_address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", payload.target, payload.bodies[0], dict(payload.headers))
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise WrongAnswerError(f"{payload.target}: {response.status} {body[:300]!r}")
    return body


def difference(answer: bytes, payload: Payload, truth: NDArray[Any]) -> float:
    """Return the largest difference between an answer and the bare model's.

    Raises:
        WrongAnswerError: it is too large, or the shapes differ.
    """
    values = payload.decode(answer)
    if values.shape != truth.shape:
        raise WrongAnswerError(f"{payload.target}: shape {values.shape}, the model gives {truth.shape}")
    largest = float(np.abs(values.astype(np.float64) - truth).max())
    if largest > TOLERANCE * max(1.0, float(np.abs(truth).max())):
        raise WrongAnswerError(f"{payload.target}: values differ from the model's by up to {largest}")
    return largest
