"""Wire-free tensor requests and responses: what every family's codec decodes to and encodes from.

``data`` is always the raw form: little-endian, row-major, no padding, ``BOOL`` one byte per element,
``BYTES`` each element as a little-endian uint32 length and its bytes. Raw in, raw out: nothing on the way to
the runtime converts it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Parameter = bool | int | float | str


@dataclass(slots=True)
class InputTensor:
    """One input as the caller gave it, not yet checked against the model."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes | memoryview


@dataclass(slots=True)
class RequestedOutput:
    """One output that the caller named; ``classification`` > 0 asks for that many top classes instead."""

    name: str
    classification: int = 0


@dataclass(slots=True)
class InferRequest:
    """A tensor inference request.

    Attributes:
        model: model name, not empty.
        version: "" for the newest ready version, else a positive integer in text.
        id: the caller's id for this request, "" when none was given; echoed.
        inputs: in request order.
        outputs: empty for all outputs of the model.
        priority: 0 for the model's default level, 1 is the most urgent.
        timeout_us: queue timeout in microseconds, 0 for the model's own.
        parameters: whatever else the caller sent, for the model.
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: list[InputTensor] = field(default_factory=list)
    outputs: list[RequestedOutput] = field(default_factory=list)
    priority: int = 0
    timeout_us: int = 0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(slots=True)
class OutputTensor:
    """One output of a response."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: bytes


@dataclass(slots=True)
class InferResponse:
    """A tensor inference response; ``version`` is the concrete version that answered."""

    model: str
    version: str
    id: str
    outputs: list[OutputTensor]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
