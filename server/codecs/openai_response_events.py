"""Answers of ``/v1/responses``: the events of a stream, and the object that they build up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openai_errors import error_object
from headrace.server.codecs.openai_logprobs import chat_logprobs
from headrace.server.codecs.openai_messages import MessageReader
from headrace.server.codecs.openai_response_items import call_item, message_item, text_part, usage
from headrace.server.codecs.sse import event

if TYPE_CHECKING:
    from headrace.server.codecs.openai_tools import Tools
    from headrace.server.errors import HeadraceError
    from headrace.server.tasks.generation import Delta, FinishReason


class ResponseWriter:
    """Builds one response from deltas, and encodes the events that tell of it.

    Args:
        response: as it begins; changed as it goes on.
        tools: how tools take part.
        with_logprobs: whether tokens are reported.
    """

    def __init__(self, response: dict[str, Any], tools: Tools, *, with_logprobs: bool) -> None:
        self._response = response
        self._reader = MessageReader(tools)
        self._with_logprobs = with_logprobs
        self._number = 0
        self._item: dict[str, Any] | None = None  # the item that is being written
        self._text = ""
        self._logprobs: list[dict[str, Any]] = []
        self._finish: FinishReason = "stop"
        self._output_tokens = 0

    def begin(self) -> bytes:
        """Encode the first events."""
        return self._event("response.created", response=self._response) + self._event(
            "response.in_progress", response=self._response
        )

    def add(self, delta: Delta) -> bytes:
        """Take what is new and encode the events that it makes."""
        self._output_tokens += len(delta.token_ids)
        if delta.finish is not None:
            self._finish = delta.finish
        content, calls = self._reader.feed(delta.text, last=delta.finish is not None)
        pieces = []
        logprobs = chat_logprobs(delta.details)["content"] if self._with_logprobs else []
        if content or (logprobs and not calls):
            pieces.append(self._content(content, logprobs))
        pieces += [self._call(call) for call in calls]
        return b"".join(pieces)

    def end(self, input_tokens: int, cached_tokens: int) -> bytes:
        """Close what is open, and encode the last events."""
        pieces = [] if self._item is not None or self._response["output"] else [self._content("", [])]
        complete = self._finish == "stop"
        pieces.append(self._close("completed" if complete else "incomplete"))
        response = self._response
        response["status"] = "completed" if complete else "incomplete"
        if self._finish == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        response["usage"] = usage(input_tokens, self._output_tokens, cached_tokens)
        pieces.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(pieces)

    def failed(self, error: HeadraceError) -> bytes:
        """Encode the end of a response that cannot go on."""
        found = error_object(error)
        self._response["status"] = "failed"
        self._response["error"] = {"code": "server_error", "message": found["message"]}
        told = {"code": str(found["code"]), "message": found["message"], "param": found["param"]}
        return self._event("error", **told) + self._event("response.failed", response=self._response)

    def json(self) -> bytes:
        """Encode the response as it is now."""
        return encode(self._response)

    def _content(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        pieces = []
        if self._item is None or self._item["type"] != "message":
            pieces.append(self._open(message_item()))
            self._text, self._logprobs = "", []
            pieces.append(self._part("response.content_part.added", part=text_part("", [])))
        self._text += text
        self._logprobs += logprobs
        if text or logprobs:
            pieces.append(self._part("response.output_text.delta", delta=text, logprobs=logprobs))
        return b"".join(pieces)

    def _call(self, call: dict[str, Any]) -> bytes:
        if "id" in call:
            return self._open(call_item(call["id"], call["function"]["name"]))
        item = self._item
        if item is None:  # a parser names a call before it gives arguments
            return b""
        arguments = call["function"]["arguments"]
        item["arguments"] += arguments
        return self._about("response.function_call_arguments.delta", item, delta=arguments)

    def _open(self, item: dict[str, Any]) -> bytes:
        closing = self._close("completed")
        self._item = item
        return closing + self._event("response.output_item.added", output_index=self._index, item=item)

    def _close(self, status: str) -> bytes:
        """Finish the open item, if there is one, and put it into the response."""
        item = self._item
        if item is None:
            return b""
        pieces = []
        if item["type"] == "message":
            part = text_part(self._text, self._logprobs)
            told = {"text": self._text, "logprobs": self._logprobs}
            pieces.append(self._part("response.output_text.done", **told))
            pieces.append(self._part("response.content_part.done", part=part))
            item["content"] = [part]
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            pieces.append(self._about("response.function_call_arguments.done", item, **told))
        item["status"] = status
        pieces.append(self._event("response.output_item.done", output_index=self._index, item=item))
        self._response["output"].append(item)
        self._item = None
        return b"".join(pieces)

    @property
    def _index(self) -> int:
        """Place of the open item in the output."""
        return len(self._response["output"])

    def _part(self, kind: str, **members: Any) -> bytes:
        """Encode an event about the only part of the open message."""
        item = self._item or {}
        return self._about(kind, item, content_index=0, **members)

    def _about(self, kind: str, item: dict[str, Any], **members: Any) -> bytes:
        return self._event(kind, item_id=item["id"], output_index=self._index, **members)

    def _event(self, kind: str, **members: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, **members, "sequence_number": number}, kind)
