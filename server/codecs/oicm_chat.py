"""Chats as the Open Innovation Cluster Manager's guide writes them, read as OpenAI writes them.

Source: the Inference Gateway Guide (``inputs``, ``max_new_tokens``, ``do_sample``, ``chat_template``, the
defaults of temperature and top-p) and its concepts page (``messages`` as a plain text).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from headrace.server.codecs.families import FAMILIES
from headrace.server.errors import InvalidJsonError

if TYPE_CHECKING:
    from headrace.server.codecs.openai_sampling import SamplingBody
    from headrace.server.repository.model import GenerationSettings

SURFACE: Final = "oicm"
"""``Call.surface`` below ``/models/{id}/proxy``."""
VARIABLES: Final = frozenset({"messages"})
"""What the guide lets a request's chat template read."""
_NAMES: Final = (
    ("max_new_tokens", "max_tokens", ("max_tokens", "max_completion_tokens")),
    ("truncate", "truncate_prompt_tokens", ("truncate_prompt_tokens",)),
    ("watermark", "watermarking", ("watermarking",)),
)
"""Field of the guide, OpenAI's or vLLM's name of it, and the fields that go before it."""
_ENDINGS: Final = ("chat_template", "add_generation_prompt", "continue_final_message")
"""Fields that say themselves how a conversation ends."""


class OicmChat(NamedTuple):
    """A request, read.

    Attributes:
        value: the body with OpenAI's names.
        text: what is continued where no chat template is to be used; None for a conversation.
        bare: ``text`` counts even where there is a template.
    """

    value: dict[str, Any]
    text: str | None = None
    bare: bool = False

    def raw(self, settings: GenerationSettings) -> str | None:
        """Return the text that goes to the model as it is; None where a template makes the prompt."""
        templated = bool(settings.chat_templates or self.value.get("chat_template"))
        return None if templated and not self.bare else self.text


def read(value: dict[str, Any], surface: str) -> OicmChat:
    """Read a chat body.

    ``inputs`` is one message of the user, on every surface. What OpenAI's API would refuse or ignore has a
    meaning on OICM's only: a plain text as ``messages``, ``do_sample`` and the other names beside messages,
    and an empty last message of the assistant, after which the answer begins.

    Args:
        value: the body.
        surface: of the call.

    Raises:
        InvalidJsonError: ``inputs`` is no text, or ``do_sample`` no boolean.
    """
    messages, inputs = value.get("messages"), value.get("inputs")
    oicm = surface == SURFACE
    if not oicm and (inputs is None or messages is not None):
        return OicmChat(value)
    value = _renamed(value)
    if messages is None and inputs is not None:
        if not isinstance(inputs, str):
            raise InvalidJsonError("`inputs`: expected `str`", field="inputs")
        return OicmChat({**value, "messages": [{"role": "user", "content": inputs}]}, inputs)
    if isinstance(messages, str):
        return OicmChat({**value, "messages": [{"role": "user", "content": messages}]}, messages, bare=True)
    if isinstance(messages, list) and _is_open(messages) and all(value.get(key) is None for key in _ENDINGS):
        return OicmChat({**value, "messages": messages[:-1]})
    return OicmChat(value)


def _renamed(value: dict[str, Any]) -> dict[str, Any]:
    found = dict(value)
    for name, ours, before in _NAMES:
        if found.get(name) is not None and all(found.get(other) is None for other in before):
            found[ours] = found[name]
    sample = found.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise InvalidJsonError("`do_sample`: expected `bool`", field="do_sample")
    if sample is False:
        found["temperature"] = 0  # greedy, whatever else is said
    return found


def _is_open(messages: list[Any]) -> bool:
    """Tell whether a conversation ends with a message of the assistant that has still to be written."""
    last = messages[-1] if len(messages) > 1 else None
    return (
        isinstance(last, dict)
        and last.get("role") == "assistant"
        and not last.get("content")
        and not last.get("tool_calls")
    )


def settle(sampling: SamplingBody) -> None:
    """Put OICM's defaults where the request says nothing, and check OICM's ranges.

    Raises:
        InvalidArgumentError: a value is out of range.
    """
    family = FAMILIES[SURFACE]
    for field, default in family.defaults.items():
        given = getattr(sampling, field)
        if given is None:
            setattr(sampling, field, default)
        else:
            family.check(field, given)
