"""Prints the API of generated modules as JSON: `python proto_dump.py MODULE…`.

A process of its own, because two modules that define the same protobuf package cannot live in one.

The JSON has `messages` (message → field → [number, type, oneof or null]), `enums` (enum → value → number) and
`rpcs` (service.rpc → [request, response]); names are full names without the package. All files of the same
package that the modules import are included.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

SCALARS = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def files(root: FileDescriptor) -> Iterator[FileDescriptor]:
    """The file and everything that it imports from its own package; a file may come more than once."""
    yield root
    for imported in root.dependencies:
        if imported.package == root.package:
            yield from files(imported)


def short(descriptor: Descriptor | EnumDescriptor) -> str:
    """The full name without the package."""
    return descriptor.full_name.removeprefix(f"{descriptor.file.package}.")


def type_of(field: FieldDescriptor) -> str:
    """The type as a .proto file spells it, message and enum names in full."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return f"map<{type_of(key)},{type_of(value)}>"
    if message is not None:
        name = short(message)
    elif field.enum_type is not None:
        name = short(field.enum_type)
    else:
        name = SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def enum_values(enum: EnumDescriptor) -> dict[str, int]:
    """Value names and numbers."""
    return {value.name: value.number for value in enum.values}


def dump(modules: list[str]) -> dict[str, dict[str, object]]:
    """The API of the modules in the form that the module docstring describes."""
    messages: dict[str, object] = {}
    enums: dict[str, object] = {}
    rpcs: dict[str, object] = {}

    def add(message: Descriptor) -> None:
        messages[short(message)] = {
            field.name: [
                field.number,
                type_of(field),
                field.containing_oneof.name if field.containing_oneof else None,
            ]
            for field in message.fields
        }
        enums.update({short(enum): enum_values(enum) for enum in message.enum_types})
        for nested in message.nested_types:
            if not nested.GetOptions().map_entry:
                add(nested)

    for module in modules:
        for file in files(importlib.import_module(module).DESCRIPTOR):
            for message in file.message_types_by_name.values():
                add(message)
            enums.update({short(enum): enum_values(enum) for enum in file.enum_types_by_name.values()})
            for service in file.services_by_name.values():
                for rpc in service.methods:
                    streams = ("stream " * rpc.client_streaming, "stream " * rpc.server_streaming)
                    names = (short(rpc.input_type), short(rpc.output_type))
                    rpcs[f"{service.full_name}.{rpc.name}"] = [
                        a + b for a, b in zip(streams, names, strict=True)
                    ]
    return {"messages": messages, "enums": enums, "rpcs": rpcs}


if __name__ == "__main__":
    json.dump(dump(sys.argv[1:]), sys.stdout)
