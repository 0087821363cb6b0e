"""Messages between the core and a front, framed as ``headrace.runtimes.wire`` frames them.

Both processes are of one installation and the socket is inherited, so what is no message of its own
(settings, models, errors, counters) travels pickled. Tensors are the bytes that they were in the request: a
front copies them once, into the frame, and the core once, out of it into the batch.
"""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.runtimes.generation.messages import Event
from headrace.runtimes.generation.parameters import Sampling


class Begin(msgspec.Struct, array_like=True, frozen=True, tag="begin"):
    """Core → front, first: who it is, and where it listens.

    ``address`` is ``host:port`` and shared with the other fronts, ``socket`` the path of its own Unix socket,
    ``core`` that of the core's gRPC server. ``created`` is when the core's repository was made, Unix seconds.
    """

    index: int
    address: str
    socket: str
    core: str
    created: int
    settings: bytes


class VersionEntry(msgspec.Struct, array_like=True, frozen=True):
    """How a version stands; ``model`` is the number of what serves it, 0 while nothing does."""

    version: int
    state: str
    reason: str
    model: int = 0


class ModelEntry(msgspec.Struct, array_like=True, frozen=True):
    """How a name stands: its versions, or (state, reason) of the whole as long as they are not known."""

    name: str
    versions: tuple[VersionEntry, ...]
    whole: tuple[str, str] | None = None


class Catalogue(msgspec.Struct, array_like=True, frozen=True, tag="catalogue"):
    """Core → front: all there is now, in the order of the repository.

    ``models`` are those that the front does not have yet: number → pickle. ``serving`` is whether the server
    takes requests, ``started`` whether the models of the configuration were loaded.
    """

    number: int
    serving: bool
    started: bool
    entries: tuple[ModelEntry, ...]
    models: tuple[tuple[int, bytes], ...]


class Output(msgspec.Struct, array_like=True, frozen=True):
    """One tensor of a part's result; the bytes belong to the receiver."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class Ran(msgspec.Struct, array_like=True, frozen=True, tag="ran"):
    """Core → front: the results of a request's parts, and its durations: those of ``Pending``."""

    request: int
    results: tuple[tuple[Output, ...], ...]
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    all_queue_ns: int
    all_infer_ns: int


class Refused(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """Core → front: the request ends with this pickled error."""

    request: int
    error: bytes


class Admitted(msgspec.Struct, array_like=True, frozen=True, tag="admitted"):
    """Core → front: a request for text has its place; what happens to it follows."""

    request: int


class News(msgspec.Struct, array_like=True, frozen=True, tag="news"):
    """Core → front: what an engine told of a request; ``last`` when nothing follows."""

    request: int
    events: tuple[Event, ...]
    last: bool


class Report(msgspec.Struct, array_like=True, frozen=True, tag="report"):
    """Core → front: answer with :class:`Counted` of this number."""

    number: int


class Abort(msgspec.Struct, array_like=True, frozen=True, tag="abort-named"):
    """Core → front: end the running requests that their callers gave this name."""

    number: int
    name: str


class Drain(msgspec.Struct, array_like=True, frozen=True, tag="drain"):
    """Core → front: take no new RPCs, finish what runs within so many seconds, exit."""

    seconds: float


class Listening(msgspec.Struct, array_like=True, frozen=True, tag="listening"):
    """Front → core: it takes RPCs."""


class StartFailed(msgspec.Struct, array_like=True, frozen=True, tag="start-failed"):
    """Front → core: it cannot listen; it exits."""

    message: str


class Applied(msgspec.Struct, array_like=True, frozen=True, tag="applied"):
    """Front → core: new requests see the catalogue of this number."""

    number: int


class Released(msgspec.Struct, array_like=True, frozen=True, tag="released"):
    """Front → core: no request here uses the model any more."""

    model: int


class Input(msgspec.Struct, array_like=True, frozen=True):
    """One tensor of a part; ``data`` is a view of its bytes, of the frame's where it was received."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview


class PartMessage(msgspec.Struct, array_like=True, frozen=True):
    """One part; ``key`` is its key in bytes that are equal where keys are."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    rows: int
    tokens: int
    key: bytes


class Run(msgspec.Struct, array_like=True, frozen=True, tag="run"):
    """Front → core: run the parts; answered by :class:`Ran` or :class:`Refused`."""

    request: int
    model: int
    parts: tuple[PartMessage, ...]
    priority: int
    timeout_us: int
    wait: bool


class Submit(msgspec.Struct, array_like=True, frozen=True, tag="submit"):
    """Front → core: generate; answered by :class:`Admitted` and :class:`News`, or :class:`Refused`.

    ``prompt`` is int32 little-endian token ids.
    """

    request: int
    model: int
    prompt: bytes
    sampling: Sampling


class EndSample(msgspec.Struct, array_like=True, frozen=True, tag="end-sample"):
    """Front → core: one sample of a request for text is not wanted any more."""

    request: int
    sample: int


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag="cancel"):
    """Front → core: nobody waits for the request any more; it is not answered."""

    request: int


class Counted(msgspec.Struct, array_like=True, frozen=True, tag="counted"):
    """Front → core: RPCs under way, and (pickled) what was counted since the last report.

    ``number`` is that of the :class:`Report` it answers, 0 when nobody asked.
    """

    number: int
    active: int
    counts: bytes


class Aborted(msgspec.Struct, array_like=True, frozen=True, tag="aborted"):
    """Front → core: how many requests the :class:`Abort` of this number ended."""

    number: int
    count: int


Answer = Ran | Refused | Admitted | News
ToFront = Begin | Catalogue | Ran | Refused | Admitted | News | Report | Abort | Drain
Request = Run | Submit | EndSample | Cancel
ToCore = Listening | StartFailed | Applied | Released | Run | Submit | EndSample | Cancel | Counted | Aborted

TO_FRONT: Final = msgspec.msgpack.Decoder(ToFront)
TO_CORE: Final = msgspec.msgpack.Decoder(ToCore)
