"""Reads REST bindings (``google.api.http``) and descriptor sets out of loaded service descriptors."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

#: Packages below ``headrace`` that hold stubs.
PROTO_PACKAGES = ("headrace.kserve.v2", "headrace.rest.v1", "headrace.tei.v1", "headrace.v1")

_VARIABLE = re.compile(r"\{([^=}]+)(?:=([^}]*))?\}")


@dataclass(frozen=True, slots=True, order=True)
class Binding:
    """One HTTP verb and path template that reaches one RPC.

    Args:
        template: path template of ``google.api.http``, for instance ``/v2/models/{model}/infer``.
        verb: HTTP method in upper case.
        rpc: gRPC path, ``/package.Service/Method``.
        body: the request field that the body fills, ``*`` for the whole message, empty for no body.
        streaming: the RPC streams its answer.
    """

    template: str
    verb: str
    rpc: str
    body: str
    streaming: bool

    @property
    def regex(self) -> str:
        """RE2 expression that matches every path of the template, and nothing else."""
        literal = _VARIABLE.sub(lambda match: match.group(2) or "*", self.template)
        parts = re.split(r"(\*\*|\*)", literal)
        wild = {"*": "[^/]+", "**": ".+"}
        return "".join(wild.get(part, re.escape(part).replace("/", "/")) for part in parts)


def _rules(method: MethodDescriptor) -> Iterator[http_pb2.HttpRule]:
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return
    rule = options.Extensions[annotations_pb2.http]
    yield rule
    yield from rule.additional_bindings


def _verb_and_template(rule: http_pb2.HttpRule) -> tuple[str, str]:
    pattern = rule.WhichOneof("pattern")
    if pattern is None:
        raise ValueError(f"an HTTP rule without a verb: {rule}")
    if pattern == "custom":
        return rule.custom.kind.upper(), rule.custom.path
    return pattern.upper(), getattr(rule, pattern)


def bindings(services: Iterable[ServiceDescriptor]) -> tuple[Binding, ...]:
    """All REST bindings of the services, sorted by path and verb.

    Raises:
        ValueError: a rule has no verb, or two RPCs claim the same verb and path.
    """
    found: dict[tuple[str, str], Binding] = {}
    for service in services:
        for method in service.methods:
            for rule in _rules(method):
                verb, template = _verb_and_template(rule)
                rpc = f"/{service.full_name}/{method.name}"
                binding = Binding(template, verb, rpc, rule.body, method.server_streaming)
                other = found.setdefault((verb, binding.regex), binding)
                if other.rpc != rpc:
                    raise ValueError(f"{verb} {template} is bound twice: by {other.rpc} and by {rpc}")
    return tuple(sorted(found.values()))


def path_variables(services: Iterable[ServiceDescriptor]) -> tuple[str, ...]:
    """Request fields that paths fill, sorted: a query parameter of that name has to be ignored.

    A field that some RPC takes from the query (in no path of that RPC, in no body) is not among them.
    """
    from_path: set[str] = set()
    from_query: set[str] = set()
    for service in services:
        for method in service.methods:
            rules = list(_rules(method))
            names = {name for rule in rules for name, _ in _VARIABLE.findall(_verb_and_template(rule)[1])}
            from_path |= names
            if any(rule.body != "*" for rule in rules):
                bodies = {rule.body for rule in rules}
                from_query |= {field.name for field in method.input_type.fields} - names - bodies
    return tuple(sorted(from_path - from_query))


def rest_services(services: Iterable[ServiceDescriptor]) -> tuple[ServiceDescriptor, ...]:
    """The services that have at least one REST binding, each once, sorted by full name."""
    unique = {service.full_name: service for service in services if bindings([service])}
    return tuple(unique[name] for name in sorted(unique))


def descriptor_set(services: Sequence[ServiceDescriptor]) -> bytes:
    """Serialized ``FileDescriptorSet`` of the services' files and their imports, dependencies first."""
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            add(dependency)
        files[file.name] = file

    for file in sorted({service.file.name: service.file for service in services}.items()):
        add(file[1])
    result = FileDescriptorSet()
    for descriptor in files.values():
        result.file.add().ParseFromString(descriptor.serialized_pb)
    return result.SerializeToString(deterministic=True)


def discover() -> tuple[ServiceDescriptor, ...]:
    """Every service of the installed ``headrace`` stubs that REST reaches: what a whole server offers."""
    found: dict[str, ServiceDescriptor] = {}
    for package in PROTO_PACKAGES:
        try:
            folder = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name is None or not package.startswith(error.name):
                raise
            continue
        for module in pkgutil.iter_modules(folder.__path__):
            if module.name.endswith("_pb2"):
                file: FileDescriptor = importlib.import_module(f"{package}.{module.name}").DESCRIPTOR
                found.update({service.full_name: service for service in file.services_by_name.values()})
    return rest_services(found.values())
