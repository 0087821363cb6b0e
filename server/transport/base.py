"""What the parts of the transport ask of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from headrace.server.transport.connection import Connection
    from headrace.server.transport.messages import BadMessageError
    from headrace.server.transport.stream import Stream


class Calls(Protocol):
    """What answers the streams of all connections."""

    def opened(self, connection: Connection) -> None:
        """Note a connection."""

    def closed(self, connection: Connection) -> None:
        """Note that a connection has ended."""

    def begin(self, stream: Stream) -> None:
        """Take a request whose headers are there."""

    def received(self, stream: Stream) -> None:
        """Note that messages are there, or that none will come."""

    def refuse(self, stream: Stream, error: BadMessageError) -> None:
        """End an RPC whose messages cannot be read."""

    def cut(self, stream: Stream) -> None:
        """End an RPC, as the server does."""


class FrameTaker(Protocol):
    """What frames are for. Views are of memory that is used again after the call.

    Each may raise :class:`BrokenProtocolError`, which ends the connection.
    """

    def greeted(self) -> None:
        """Note that the caller speaks HTTP/2."""

    def take_frame(self, kind: int, flags: int, number: int, payload: memoryview) -> None:
        """Take a whole frame that is not one of DATA, unless that is padded."""

    def begin_data(self, number: int, size: int, flags: int) -> None:
        """Note a DATA frame with ``size`` bytes of payload, which come next."""

    def take_data(self, data: memoryview, *, last: bool) -> None:
        """Take a part of that payload, with ``last`` its end."""
