"""The chunks of streamed chat and completion answers. Encoding one is on the path of every token."""

from __future__ import annotations

from typing import Any, Final

import orjson

from headrace.server.codecs.json_body import encode

CHAT: Final = (b',"delta":{"content":', b'},"logprobs":null,"finish_reason":null}')
COMPLETION: Final = (b',"text":', b',"logprobs":null,"finish_reason":null,"stop_reason":null}')


class ChunkEncoder:
    """Encodes the chunks of one answer as server-sent events.

    What all chunks have in common is encoded once; a chunk of plain text is that with the text put in.

    Args:
        common: ``id``, ``object``, ``created`` and ``model``.
        around_text: :data:`CHAT` or :data:`COMPLETION`: what stands before and after the text in a choice.
        choices: how many choices the answer has.
        usage_null: say ``"usage": null`` where a chunk has none.
    """

    __slots__ = ("_after", "_close", "_heads", "_open", "_tail")

    def __init__(
        self, common: dict[str, Any], around_text: tuple[bytes, bytes], choices: int, *, usage_null: bool
    ) -> None:
        before, self._after = around_text
        self._open = b"data: " + encode(common)[:-1] + b',"choices":['
        self._close = b'],"usage":null}\n\n' if usage_null else b"]}\n\n"
        self._heads = [self._open + b'{"index":%d' % index + before for index in range(choices)]
        self._tail = self._after + self._close

    def text(self, index: int, text: str, usage: dict[str, Any] | None = None) -> bytes:
        """Encode new text of a choice, with the usage so far where it is wanted."""
        if usage is None:
            return self._heads[index] + orjson.dumps(text) + self._tail
        told = b'],"usage":' + orjson.dumps(usage) + b"}\n\n"
        return self._heads[index] + orjson.dumps(text) + self._after + told

    def choice(self, choice: dict[str, Any], **rest: Any) -> bytes:
        """Encode any choice; ``rest`` are members of the chunk itself, such as ``usage``."""
        return self._open + orjson.dumps(choice) + (self._end(rest) if rest else self._close)

    def usage(self, usage: dict[str, Any], **rest: Any) -> bytes:
        """Encode the extra chunk without choices."""
        return self._open + self._end({"usage": usage, **rest})

    def _end(self, rest: dict[str, Any]) -> bytes:
        return b"]," + orjson.dumps(rest)[1:] + b"\n\n"
