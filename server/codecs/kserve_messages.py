"""Protobuf messages as the JSON that Triton's REST clients read: proto names, plain numbers, all defaults."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from google.protobuf.message import Message


def to_plain(message: Message) -> dict[str, Any]:
    """Convert a message to JSON values.

    Fields are in the order of their declaration and have their proto names. Scalars are always there, unless
    they belong to a oneof and are not set; messages only when they are set. 64-bit integers are numbers,
    enums names, bytes base64.
    """
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            item = entry.fields_by_name["value"]
            result[field.name] = {str(key): _value(item, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            result[field.name] = [_value(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            result[field.name] = _value(field, value)
    return result


def _value(field: Any, value: Any) -> Any:
    # Descriptors are of the C extension's class, which the type stubs take for another one.
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    return value
