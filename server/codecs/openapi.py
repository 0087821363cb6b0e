"""An OpenAPI document of the REST routes, from their ``google.api.http`` rules and the bodies' structures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from headrace.envoy.descriptors import bindings
from headrace.server.codecs.json_body import encode
from headrace.server.codecs.openapi_bodies import BODIES, Form

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from headrace.envoy.descriptors import Binding

VERSION: Final = "3.1.0"  # whose schemas are JSON Schema, which msgspec writes

_VARIABLE: Final = re.compile(r"\{([^=}]+)(?:=[^}]*)?\}")
_REFERENCES: Final = "#/components/schemas/{name}"
_ANYTHING: Final[Mapping[str, Any]] = MappingProxyType({"application/json": {}})


def document(services: Sequence[ServiceDescriptor], summaries: Mapping[str, str], version: str) -> bytes:
    """Describe all REST routes of ``services``.

    Args:
        services: those without REST routes are passed over.
        summaries: full name of an RPC → what it does.
        version: of the server.

    Returns:
        OpenAPI 3.1 as JSON; paths are templates with one ``{variable}`` each, as OpenAPI has them.
    """
    methods = {
        f"/{service.full_name}/{method.name}": method for service in services for method in service.methods
    }
    types = list(dict.fromkeys(each for forms in BODIES.values() for form in forms for each in form))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCES)
    known = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for binding in bindings(services):
        path = _VARIABLE.sub(r"{\1}", binding.template)
        operation = _operation(binding, methods[binding.rpc], summaries, known)
        paths.setdefault(path, {})[binding.verb.lower()] = operation
    return encode(
        {
            "openapi": VERSION,
            "info": {"title": "Headrace", "version": version, "description": _ABOUT},
            "paths": paths,
            "components": {"schemas": {name: _plain(schema) for name, schema in components.items()}},
        }
    )


_ABOUT: Final = (
    "Every route exists below /models/{model}/proxy too, where the URL chooses the model. A route that is "
    "listed without a schema takes any JSON that its family defines."
)


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Take the mark-up of docstrings out of a description."""
    if "description" in schema:
        text = re.sub(r":\w+:`([^`]+)`", r"`\1`", schema["description"])
        schema = {**schema, "description": text.replace("``", "`")}
    return schema


def _operation(
    binding: Binding, method: MethodDescriptor, summaries: Mapping[str, str], known: Mapping[type, Any]
) -> dict[str, Any]:
    """Describe one verb of one path; ids are unique because an RPC's further paths are part of them."""
    service = method.containing_service.name
    variables = _VARIABLE.findall(binding.template)
    words = re.findall(r"\w+", binding.template)
    operation: dict[str, Any] = {
        "tags": [service.removesuffix("Service")],
        "operationId": "_".join((method.name, binding.verb.lower(), *words)),
        "summary": summaries.get(method.full_name, method.name),
        "parameters": [*_parameters(method, variables, binding.body)],
        "responses": {
            "200": _answer(binding),
            "default": {
                "description": "Why not, in the form of the route's family",
                "content": dict(_ANYTHING),
            },
        },
    }
    if binding.body:
        forms = BODIES.get(f"{service}.{method.name}")
        schema: dict[str, Any] = {} if forms is None else _any([_all(form, known) for form in forms])
        required = forms is not None
        content = {"application/json": {"schema": schema} if schema else {}}
        operation["requestBody"] = {"required": required, "content": content}
    return operation


def _parameters(method: MethodDescriptor, variables: Sequence[str], body: str) -> Iterator[dict[str, Any]]:
    for name in variables:
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for field in method.input_type.fields:
        if field.name not in variables and field.name != body and field.message_type is None:
            schema = {"type": "boolean" if field.type == field.TYPE_BOOL else "string"}
            yield {"name": field.name, "in": "query", "required": False, "schema": schema}


def _answer(binding: Binding) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {}}
    if binding.streaming:
        content["text/event-stream"] = {}
    return {"description": "The answer", "content": content}


def _all(form: Form, known: Mapping[type, Any]) -> Any:
    schemas = [known[each] for each in form]
    return schemas[0] if len(schemas) == 1 else {"allOf": schemas}


def _any(schemas: Sequence[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def page(description: Mapping[str, Any]) -> bytes:
    """Write a page for people out of what :func:`document` returned, parsed; it needs no other file."""
    tagged: dict[str, list[str]] = {}
    for path, verbs in description["paths"].items():
        for verb, operation in verbs.items():
            tagged.setdefault(operation["tags"][0], []).append(_entry(path, verb, operation))
    info = description["info"]
    parts: Iterable[str] = (
        f"<h2>{escape(tag)}</h2>{''.join(entries)}" for tag, entries in sorted(tagged.items())
    )
    schemas = description["components"]["schemas"].items()
    structures = (
        f'<h3 id="{escape(name)}">{escape(name)}</h3><pre>{escape(_pretty(schema))}</pre>'
        for name, schema in schemas
    )
    html = _PAGE.format(
        title=escape(f"{info['title']} {info['version']}"),
        about=escape(info["description"]),
        routes="".join(parts),
        schemas="".join(structures),
    )
    return html.encode()


def _entry(path: str, verb: str, operation: Mapping[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    text = escape(operation["summary"])
    shown = f"<pre>{escape(_pretty(body))}</pre>" if body else ""
    route = f"<b>{verb.upper()}</b> <code>{escape(path)}</code>"
    return f"<details><summary>{route} {text}</summary>{shown}</details>"


def _pretty(value: Any) -> str:
    return msgspec.json.format(encode(value), indent=2).decode()


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }}
summary {{ cursor: pointer; }} pre {{ background: #f4f4f4; overflow: auto; padding: 1em; }}
</style></head><body><h1>{title}</h1>
<p>{about}</p><p>The same for programs: <a href="openapi.json">openapi.json</a></p>
{routes}<h2>Bodies</h2>{schemas}</body></html>
"""
