"""google.api.http bindings: unique, answerable by Envoy, and complete where clients depend on them."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from google.api import annotations_pb2, http_pb2, httpbody_pb2
from google.protobuf.descriptor import MethodDescriptor

PROTOS = Path(__file__).parents[2] / "protos"
HTTP_BODY = httpbody_pb2.HttpBody.DESCRIPTOR.full_name

PROMISED = [
    ("GET", "/v2", "KserveService.ServerMetadata"),
    ("GET", "/v2/health/live", "KserveService.ServerLive"),
    ("GET", "/v2/health/ready", "KserveService.ServerReady"),
    ("GET", "/v2/models", "KserveService.ListModels"),
    ("GET", "/v2/models/stats", "KserveService.ModelStatistics"),
    ("GET", "/v2/models/{}", "KserveService.ModelMetadata"),
    ("GET", "/v2/models/{}/ready", "KserveService.ModelReady"),
    ("GET", "/v2/models/{}/config", "KserveService.ModelConfig"),
    ("GET", "/v2/models/{}/stats", "KserveService.ModelStatistics"),
    ("POST", "/v2/models/{}/infer", "KserveService.ModelInfer"),
    ("GET", "/v2/models/{}/versions/{}", "KserveService.ModelMetadata"),
    ("GET", "/v2/models/{}/versions/{}/ready", "KserveService.ModelReady"),
    ("GET", "/v2/models/{}/versions/{}/config", "KserveService.ModelConfig"),
    ("GET", "/v2/models/{}/versions/{}/stats", "KserveService.ModelStatistics"),
    ("POST", "/v2/models/{}/versions/{}/infer", "KserveService.ModelInfer"),
    ("GET", "/v2/repository/index", "KserveService.RepositoryIndex"),
    ("POST", "/v2/repository/index", "KserveService.RepositoryIndex"),
    ("POST", "/v2/repository/{}/index", "KserveService.RepositoryIndex"),
    ("POST", "/v2/repository/models/{}/load", "KserveService.RepositoryModelLoad"),
    ("POST", "/v2/repository/{}/models/{}/load", "KserveService.RepositoryModelLoad"),
    ("POST", "/v2/repository/models/{}/unload", "KserveService.RepositoryModelUnload"),
    ("POST", "/v2/repository/{}/models/{}/unload", "KserveService.RepositoryModelUnload"),
    ("POST", "/v1/embeddings", "OpenaiService.CreateEmbedding"),
    ("POST", "/embeddings", "OpenaiService.CreateEmbedding"),
    ("GET", "/v1/models", "OpenaiService.ListModels"),
    ("GET", "/v1/models/{}", "OpenaiService.GetModel"),
    ("POST", "/embed", "TeiService.Embed"),
    ("POST", "/v1/embed", "TeiService.Embed"),
    ("POST", "/rerank", "TeiService.Rerank"),
    ("POST", "/v1/rerank", "TeiService.Rerank"),
    ("POST", "/v2/rerank", "TeiService.Rerank"),
    ("POST", "/v2/embed", "VllmPoolingService.CohereEmbed"),
    ("POST", "/predict", "TeiService.Predict"),
    ("POST", "/v1/predict", "TeiService.Predict"),
    ("POST", "/classify", "OicmService.Classify"),
    ("POST", "/v1/classify", "OicmService.Classify"),
    ("GET", "/health", "OpsService.Health"),
    ("GET", "/", "OpsService.Health"),
    ("GET", "/ping", "OpsService.Health"),
    ("POST", "/ping", "OpsService.Health"),
    ("GET", "/metrics", "OpsService.Metrics"),
]


def methods(folder: str) -> list[MethodDescriptor]:
    """Every RPC of the .proto files below a folder of protos/headrace."""
    found = []
    for proto in sorted((PROTOS / "headrace" / folder).rglob("*.proto")):
        module = importlib.import_module(".".join(proto.relative_to(PROTOS).with_suffix("").parts) + "_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            found.extend(service.methods)
    return found


def bindings(method: MethodDescriptor) -> list[http_pb2.HttpRule]:
    """All bindings of an RPC, the additional ones too; empty when it has none."""
    if not method.GetOptions().HasExtension(annotations_pb2.http):
        return []
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    return [rule, *rule.additional_bindings]


def verb_and_path(rule: http_pb2.HttpRule) -> tuple[str, str]:
    """The HTTP method in capitals and the path template."""
    verb = str(rule.WhichOneof("pattern"))
    return verb.upper(), getattr(rule, verb)


def pattern(path: str) -> str:
    """The template without the names of its variables: what a path matcher tells apart."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def routes() -> list[tuple[str, str, str]]:
    """HTTP method, pattern and `Service.Rpc` of every binding."""
    return [
        (verb, pattern(path), f"{method.containing_service.name}.{method.name}")
        for method in methods("")
        for verb, path in map(verb_and_path, bindings(method))
    ]


def test_no_two_bindings_match_the_same_requests() -> None:
    counts = Counter((verb, path) for verb, path, _ in routes())
    assert [route for route, count in counts.items() if count > 1] == []


def test_the_promised_routes_are_there() -> None:
    assert set(PROMISED) - set(routes()) == set()


@pytest.mark.parametrize("method", methods("rest"), ids=lambda method: method.full_name)
def test_every_facade_rpc_is_reachable_and_passes_bodies_unchanged(method: MethodDescriptor) -> None:
    assert bindings(method)
    assert method.output_type.full_name == HTTP_BODY
    fields = method.input_type.fields_by_name
    for rule in bindings(method):
        verb, path = verb_and_path(rule)
        variables = re.findall(r"\{(\w+)", path)
        assert all(fields[name].type == fields[name].TYPE_STRING for name in variables)
        assert rule.body == ("body" if verb == "POST" else "")
        assert verb in {"GET", "POST"}
        if verb == "POST":
            assert getattr(fields["body"].message_type, "full_name", None) == HTTP_BODY
