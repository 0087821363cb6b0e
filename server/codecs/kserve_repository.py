"""Requests and answers of Triton's model repository extension, gRPC and REST."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from headrace.kserve.v2.grpc_service_pb2 import RepositoryIndexResponse
from headrace.server.codecs.kserve_json import boolean, members, parse_object, string
from headrace.server.errors import InvalidArgumentError, UnsupportedError

if TYPE_CHECKING:
    from headrace.kserve.v2.grpc_service_pb2 import ModelRepositoryParameter
    from headrace.server.repository.lifecycle import IndexEntry


class LoadOverrides(NamedTuple):
    """What a load request replaces: the configuration (JSON), and files by path below the model folder."""

    config: str | None
    files: Mapping[str, bytes]


def check_repository(name: str) -> None:
    """Refuse to single out a repository: all of them are one name space.

    Raises:
        UnsupportedError: ``name`` is not empty.
    """
    if name:
        raise UnsupportedError("'repository_name' specification is not supported", field="repository_name")


def encode_index(entries: Iterable[IndexEntry]) -> RepositoryIndexResponse:
    """Encode the repository index."""
    return RepositoryIndexResponse(
        models=[
            RepositoryIndexResponse.ModelIndex(
                name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
            )
            for entry in entries
        ]
    )


def index_json(entries: Iterable[IndexEntry]) -> list[dict[str, str]]:
    """Return the REST form: an array whose entries have no empty members."""
    named = (
        {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
        for entry in entries
    )
    return [{key: value for key, value in entry.items() if value} for entry in named]


def decode_load(parameters: Mapping[str, ModelRepositoryParameter]) -> LoadOverrides:
    """Read the parameters of a gRPC load request.

    Raises:
        InvalidArgumentError: an unknown key or a value of the wrong kind.
    """
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if key == "config":
            _expect(key, kind, "string_param")
            config = parameter.string_param
        elif key.startswith("file:"):
            _expect(key, kind, "bytes_param")
            files[key.removeprefix("file:")] = parameter.bytes_param
        else:
            raise _unknown(key)
    return LoadOverrides(config, files)


def decode_json_load(body: bytes) -> LoadOverrides:
    """Read the optional body of a REST load request; files are base64.

    Raises:
        InvalidJsonError: not JSON, or a member of the wrong type.
        InvalidArgumentError: an unknown key, or a file that is not base64.
    """
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, value in _json_parameters(body).items():
        if key == "config":
            config = string(value, key)
        elif key.startswith("file:"):
            try:
                files[key.removeprefix("file:")] = base64.b64decode(string(value, key), validate=True)
            except (binascii.Error, ValueError):
                msg = f"invalid value for load parameter '{key}', expected base64."
                raise InvalidArgumentError(msg, field=key) from None
        else:
            raise _unknown(key)
    return LoadOverrides(config, files)


def decode_unload(parameters: Mapping[str, ModelRepositoryParameter]) -> bool:
    """Return ``unload_dependents`` of a gRPC unload request.

    Raises:
        InvalidArgumentError: the value is not a boolean.
    """
    if "unload_dependents" not in parameters:
        return False
    parameter = parameters["unload_dependents"]
    if parameter.WhichOneof("parameter_choice") != "bool_param":
        msg = "invalid value type for 'unload_dependents' parameter, expected bool_param."
        raise InvalidArgumentError(msg, field="unload_dependents")
    return parameter.bool_param


def decode_json_unload(body: bytes) -> bool:
    """Return ``unload_dependents`` of a REST unload request, whose body is optional.

    Raises:
        InvalidJsonError: not JSON, or a member of the wrong type.
    """
    return boolean(_json_parameters(body).get("unload_dependents", False), "unload_dependents")


def decode_json_index(body: bytes) -> bool:
    """Return ``ready`` of a REST index request, whose body is optional.

    Raises:
        InvalidJsonError: not JSON, or ``ready`` is not a boolean.
    """
    return boolean(parse_object(body).get("ready", False), "ready")


def _json_parameters(body: bytes) -> dict[str, Any]:
    return members(parse_object(body).get("parameters"), "Unable to parse 'parameters'")


def _expect(key: str, kind: str | None, expected: str) -> None:
    if kind != expected:
        msg = f"invalid value type for load parameter '{key}', expected {expected}."
        raise InvalidArgumentError(msg, field=key)


def _unknown(key: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"unrecognized load parameter '{key}'.", field="parameters", value=key)
