"""The domain errors, and the one table that says what each is on the wire.

::

    HeadraceError
    ├── ModelNotFoundError          no such model, or no available version of it
    ├── ModelNotReadyError          loading, unloading or failed
    ├── LoadFailedError             a load request could not be carried out
    ├── ModelControlDisabledError   load and unload are switched off
    ├── TaskNotSupportedError       the model exists but does something else
    ├── InvalidArgumentError        the request is wrong
    │   ├── InvalidTensorError      … its tensors do not fit the model
    │   │   └── TensorRefusedError  … the model itself says so
    │   ├── InvalidJsonError        … its body is not the JSON that was expected
    │   ├── InputEmptyError         … nothing to work on
    │   ├── RequestRefusedError     … the engine says so
    │   ├── ChatTemplateError       … the conversation cannot be written as a prompt
    │   ├── InputTooLongError       … more tokens than the model takes
    │   └── BatchTooLargeError      … more items than one request may carry
    ├── PayloadTooLargeError        more bytes than the server takes
    ├── UnauthenticatedError        no valid API key
    ├── UnsupportedError            understood, but not offered
    ├── QueueFullError              no room in the model's queue
    ├── QueueTimeoutError           waited in the queue longer than its policy allows
    ├── DeadlineExceededError       the caller's deadline passed
    ├── CancelledError              the caller has gone
    ├── WorkerCrashedError          the process that ran the request died
    ├── ExecutionFailedError        the model raised
    └── ServerDrainingError         the server is stopping

Code raises these; only services and interceptors look at :data:`STATUSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import grpc

from headrace.errors.v1.errors_pb2 import ErrorReason


class HeadraceError(Exception):
    """Any failure that a caller may be told about.

    Args:
        message: names what was wrong, what was expected and what to do.
        metadata: machine-readable facts (model, limit, …) for ``google.rpc.ErrorInfo``.
    """

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class ModelNotFoundError(HeadraceError):
    """No such model, or no available version of it."""


class ModelNotReadyError(HeadraceError):
    """The model exists but is loading, unloading or failed."""


class LoadFailedError(HeadraceError):
    """A load request could not be carried out; the message has the reason."""


class ModelControlDisabledError(HeadraceError):
    """Load and unload are switched off by the configuration."""


class TaskNotSupportedError(HeadraceError):
    """The model exists but does something else."""


class InvalidArgumentError(HeadraceError):
    """The request is wrong."""


class InvalidTensorError(InvalidArgumentError):
    """The request's tensors do not fit the model."""


class TensorRefusedError(InvalidTensorError):
    """The model that was to run refuses the values of the request's tensors."""


class InvalidJsonError(InvalidArgumentError):
    """The body is not the JSON that was expected."""


class InputEmptyError(InvalidArgumentError):
    """There is nothing to work on."""


class InputTooLongError(InvalidArgumentError):
    """An input has more tokens than the model takes, and truncation is off."""


class RequestRefusedError(InvalidArgumentError):
    """The engine that was to generate refuses the request: its grammar, most often, or its beams."""


class ChatTemplateError(InvalidArgumentError):
    """The chat template is wrong, or refuses the conversation."""


class BatchTooLargeError(InvalidArgumentError):
    """More items than one request may carry."""


class PayloadTooLargeError(HeadraceError):
    """More bytes than the server takes."""


class UnauthenticatedError(HeadraceError):
    """The caller has no valid API key."""


class UnsupportedError(HeadraceError):
    """Understood, but not offered."""


class QueueFullError(HeadraceError):
    """The model's queue has no room."""


class QueueTimeoutError(HeadraceError):
    """The request waited in the queue longer than its policy allows."""


class DeadlineExceededError(HeadraceError):
    """The caller's deadline passed."""


class CancelledError(HeadraceError):
    """The caller has gone."""


class WorkerCrashedError(HeadraceError):
    """The process that ran the request died."""


class ExecutionFailedError(HeadraceError):
    """The model raised."""


class ServerDrainingError(HeadraceError):
    """The server is stopping."""


class Status(NamedTuple):
    """What an error is on the wire: gRPC code, reason, and the HTTP status where no family says otherwise."""

    code: grpc.StatusCode
    reason: ErrorReason
    http: int


_Code = grpc.StatusCode
STATUSES: Final[Mapping[type, Status]] = MappingProxyType(
    {
        ModelNotFoundError: Status(_Code.NOT_FOUND, ErrorReason.ERROR_REASON_MODEL_NOT_FOUND, 404),
        ModelNotReadyError: Status(_Code.UNAVAILABLE, ErrorReason.ERROR_REASON_MODEL_NOT_READY, 503),
        LoadFailedError: Status(_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_MODEL_LOAD_FAILED, 400),
        ModelControlDisabledError: Status(
            _Code.UNAVAILABLE, ErrorReason.ERROR_REASON_MODEL_CONTROL_DISABLED, 503
        ),
        TaskNotSupportedError: Status(
            _Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_TASK_NOT_SUPPORTED, 400
        ),
        InvalidArgumentError: Status(_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INVALID_ARGUMENT, 400),
        InvalidTensorError: Status(_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INVALID_TENSOR, 400),
        InvalidJsonError: Status(_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INVALID_JSON, 400),
        InputEmptyError: Status(_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INPUT_EMPTY, 400),
        InputTooLongError: Status(_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INPUT_TOO_LONG, 400),
        BatchTooLargeError: Status(_Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_BATCH_TOO_LARGE, 400),
        PayloadTooLargeError: Status(
            _Code.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_PAYLOAD_TOO_LARGE, 413
        ),
        UnauthenticatedError: Status(_Code.UNAUTHENTICATED, ErrorReason.ERROR_REASON_UNAUTHENTICATED, 401),
        UnsupportedError: Status(_Code.UNIMPLEMENTED, ErrorReason.ERROR_REASON_UNSUPPORTED, 501),
        QueueFullError: Status(_Code.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_QUEUE_FULL, 429),
        QueueTimeoutError: Status(_Code.UNAVAILABLE, ErrorReason.ERROR_REASON_QUEUE_TIMEOUT, 503),
        DeadlineExceededError: Status(
            _Code.DEADLINE_EXCEEDED, ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED, 504
        ),
        CancelledError: Status(_Code.CANCELLED, ErrorReason.ERROR_REASON_CANCELLED, 499),
        WorkerCrashedError: Status(_Code.UNAVAILABLE, ErrorReason.ERROR_REASON_WORKER_CRASHED, 503),
        ExecutionFailedError: Status(_Code.INTERNAL, ErrorReason.ERROR_REASON_EXECUTION_FAILED, 500),
        ServerDrainingError: Status(_Code.UNAVAILABLE, ErrorReason.ERROR_REASON_SERVER_DRAINING, 503),
        HeadraceError: Status(_Code.INTERNAL, ErrorReason.ERROR_REASON_INTERNAL, 500),
    }
)
"""Every error class → its status; a subclass that is not listed has its nearest listed ancestor's."""


def status_of(error: HeadraceError) -> Status:
    """Return the wire status of ``error``: its own class's, else its nearest listed ancestor's."""
    for cls in type(error).__mro__:
        status = STATUSES.get(cls)
        if status is not None:
            return status
    return STATUSES[HeadraceError]
