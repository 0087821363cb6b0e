"""The events of ``/generate_stream``. Encoding one is on the path of every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from headrace.server.codecs.sse import event
from headrace.server.codecs.tgi_answers import finish_reason, token_object, top_objects
from headrace.server.codecs.tgi_errors import incomplete_event

if TYPE_CHECKING:
    from headrace.server.tasks.generation import Delta, TokenDetail
    from headrace.server.tasks.text_stream import TextStream


class TokenEvents:
    """Makes the events of one stream: one for each token, the last with the whole text.

    Args:
        stream: what is told of.
        prefix: put before the whole text.
        special: ids of the vocabulary's special tokens.
        eos_id: of the model, told where an output ends without a token.
        details: the last event has them.
        top: tell the alternatives to each token.
    """

    __slots__ = ("_details", "_eos_id", "_index", "_special", "_stream", "_texts", "_top")

    def __init__(
        self,
        stream: TextStream,
        prefix: str,
        special: frozenset[int],
        eos_id: int,
        *,
        details: bool,
        top: bool,
    ) -> None:
        self._stream = stream
        self._special = special
        self._eos_id = eos_id
        self._details = details
        self._top = top
        self._texts = [prefix]
        self._index = 0

    def events(self, delta: Delta) -> bytes:
        """Encode the tokens of a delta."""
        self._texts.append(delta.text)
        details = delta.details
        if delta.finish is None:
            if len(details) == 1:
                return self._token(details[0], delta.texts[0])
            return b"".join([self._token(*pair) for pair in zip(details, delta.texts, strict=True)])
        if delta.finish == "abort":
            return incomplete_event()
        told = b"".join([self._token(*pair) for pair in zip(details[:-1], delta.texts[:-1], strict=True)])
        return told + self._last(delta)

    def _token(self, detail: TokenDetail, text: str) -> bytes:
        """Encode a token in the middle of the text."""
        self._index += 1
        dumps = orjson.dumps
        token = b'data: {"index":%d,"token":{"id":%d,"text":%b,"logprob":%b,"special":%b}' % (
            self._index,
            detail.token_id,
            dumps(detail.text if detail.special else text),
            dumps(detail.logprob),
            b"true" if detail.special else b"false",
        )
        if self._top:
            token += b',"top_tokens":' + dumps(top_objects(detail, self._special))
        return token + b',"generated_text":null,"details":null}\n\n'

    def _last(self, delta: Delta) -> bytes:
        """Encode the last token, with the whole text."""
        self._index += 1
        found: dict[str, Any] = {"index": self._index}
        if delta.details:
            detail = delta.details[-1]
            found["token"] = token_object(detail, delta.texts[-1])
            if self._top:
                found["top_tokens"] = top_objects(detail, self._special)
        else:
            found["token"] = {"id": self._eos_id, "text": "", "logprob": None, "special": True}
        found["generated_text"] = "".join(self._texts)
        found["details"] = None
        if self._details:
            found["details"] = {
                "finish_reason": finish_reason(delta.finish or "stop", delta.stop),
                "generated_tokens": self._stream.generated_tokens,
                "seed": self._stream.seed,
                "input_length": len(self._stream.prompt_ids),
            }
        return event(found)
