"""Parameters of an inference request: the protocol's own keys, and the model's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from headrace.server.codecs.kserve_json import boolean, unsigned
from headrace.server.errors import InvalidArgumentError, InvalidJsonError, UnsupportedError
from headrace.server.tasks.tensors import Parameter

if TYPE_CHECKING:
    from headrace.kserve.v2.grpc_service_pb2 import InferParameter

_KIND: Final = "parameter_choice"
_RESERVED: Final = "parameter keys starting with 'triton_' are reserved for Triton usage"
_EMPTY_FINAL: Final = "triton_enable_empty_final_response"


class RequestParameters(NamedTuple):
    """``priority`` 0 is the default level, ``timeout_us`` 0 the model's own; ``custom`` is for the model."""

    priority: int
    timeout_us: int
    custom: Mapping[str, Parameter]


NO_PARAMETERS: Final = RequestParameters(0, 0, MappingProxyType({}))


def decode_parameters(parameters: Mapping[str, InferParameter]) -> RequestParameters:
    """Read the parameters of a gRPC request.

    ``sequence_*`` are checked and left out: models that keep state are not served, and to others these keys
    mean nothing.

    Raises:
        InvalidArgumentError: a value of the wrong kind, or a reserved key.
    """
    priority = timeout_us = 0
    custom: dict[str, Parameter] = {}
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof(_KIND)
        if key == "priority":
            _expect(key, kind, "int64_param or uint64_param", "int64_param", "uint64_param")
            priority = parameter.int64_param or parameter.uint64_param
            _not_negative(key, priority)
        elif key == "timeout":
            _expect(key, kind, "int64_param", "int64_param")
            timeout_us = parameter.int64_param
            _not_negative(key, timeout_us)
        elif key == "sequence_id":
            _expect(key, kind, "int64_param or string_param", "int64_param", "string_param")
        elif key in ("sequence_start", "sequence_end", _EMPTY_FINAL):
            _expect(key, kind, "bool_param", "bool_param")
        elif key.startswith("triton_"):
            msg = f"{_RESERVED}. Only the following keys starting with 'triton_' are allowed: {_EMPTY_FINAL}"
            raise InvalidArgumentError(msg, field="parameters", value=key)
        else:
            expected = "int64_param, bool_param, or string_param"
            kind = _expect(
                key, kind, expected, "int64_param", "bool_param", "string_param", "double_param", end="."
            )
            custom[key] = getattr(parameter, kind)
    return RequestParameters(priority, timeout_us, custom)


def decode_json_parameters(parameters: Mapping[str, Any]) -> tuple[RequestParameters, bool]:
    """Read the parameters of a REST request; the second value is ``binary_data_output``.

    Raises:
        InvalidArgumentError: a value of the wrong type, or a reserved key.
    """
    priority = timeout_us = 0
    binary = False
    custom: dict[str, Parameter] = {}
    for key, value in parameters.items():
        if key == "priority":
            priority = unsigned(value, key)
        elif key == "timeout":
            timeout_us = unsigned(value, key)
        elif key == "sequence_id":
            if not isinstance(value, str):
                unsigned(value, key)
        elif key in ("sequence_start", "sequence_end"):
            boolean(value, key)
        elif key == "binary_data_output":
            binary = boolean(value, key)
        elif key.startswith("triton_"):
            raise InvalidArgumentError(
                f"{_RESERVED} and should not be specified.", field="parameters", value=key
            )
        elif isinstance(value, (bool, int, float, str)):
            custom[key] = value
        else:
            msg = f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'."
            raise InvalidJsonError(msg, field=f"parameters.{key}")
    return RequestParameters(priority, timeout_us, custom), binary


def decode_classification(parameters: Mapping[str, InferParameter]) -> int:
    """Return how many top classes a requested gRPC output asks for, 0 for its values.

    Raises:
        InvalidArgumentError: ``classification`` is not a positive integer.
        UnsupportedError: the output is to be put in shared memory.
    """
    classification = 0
    if "classification" in parameters:
        parameter = parameters["classification"]
        _expect("classification", parameter.WhichOneof(_KIND), "int64_param", "int64_param", end="")
        classification = parameter.int64_param
        if classification < 1:
            msg = "invalid value for 'classification' parameter, expected >= 0"
            raise InvalidArgumentError(msg, field="classification", value=str(classification))
    if "shared_memory_region" in parameters:
        if classification:
            msg = "output can't set both 'shared_memory_region' and 'classification'"
            raise InvalidArgumentError(msg, field="shared_memory_region")
        refuse_shared_memory()
    return classification


def refuse_shared_memory() -> None:
    """Refuse a tensor in shared memory.

    Raises:
        UnsupportedError: always.
    """
    msg = "shared memory regions are not offered by this server; send and receive tensors in the messages"
    raise UnsupportedError(msg, field="shared_memory_region")


def _expect(key: str, kind: str | None, expected: str, *kinds: str, end: str = ".") -> str:
    """Return ``kind`` if it is one of ``kinds``."""
    if kind is None or kind not in kinds:
        msg = f"invalid value type for '{key}' parameter, expected {expected}{end}"
        raise InvalidArgumentError(msg, field=f"parameters.{key}")
    return kind


def _not_negative(key: str, value: int) -> None:
    if value < 0:
        msg = f"invalid value for '{key}', expected value >= 0."
        raise InvalidArgumentError(msg, field=f"parameters.{key}", value=str(value))
