"""The bootstrap is a pure function of options and protos, and Envoy takes it."""

from __future__ import annotations

import base64
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from headrace.envoy.bootstrap import main, render, to_json
from headrace.envoy.descriptors import Binding, bindings, descriptor_set, discover, path_variables
from headrace.envoy.golden import golden_yaml, with_table
from headrace.envoy.listener import MODEL_HEADER, SURFACE_HEADER
from headrace.envoy.options import BootstrapOptions, TlsOptions
from headrace.envoy.tls import secrets
from headrace.envoy.verbs import known_paths
from headrace.server.proxy import EnvoyError, validate

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "envoy-bootstrap.yaml"
GUIDE = ROOT / "docs" / "rest.md"
REWRITE = "run: python -m headrace.envoy.bootstrap --golden"
PLAIN = BootstrapOptions(upstream_socket="/run/headrace/grpc.sock")
FULL = BootstrapOptions(
    upstream_socket="/run/headrace/grpc.sock",
    listen_host="::1",
    listen_port=8080,
    metrics_port=8002,
    admin_socket="/run/headrace/admin.sock",
    max_body_bytes=1024,
    cors_allow_origins=("*",),
    allow_model_header=True,
    access_log=True,
)
REMOTE = BootstrapOptions(upstream_address="[::1]:8001")


def manager(document: dict[str, Any], listener: int = 0) -> dict[str, Any]:
    chain = document["static_resources"]["listeners"][listener]["filter_chains"][0]
    found: dict[str, Any] = chain["filters"][0]["typed_config"]
    return found


def filters(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item["typed_config"] for item in manager(document)["http_filters"]}


def test_rendering_is_deterministic() -> None:
    services = discover()
    assert to_json(render(PLAIN, services)) == to_json(render(PLAIN, tuple(reversed(services))))
    assert to_json(render(FULL, services)) == to_json(render(FULL, services))


def test_golden() -> None:
    text = golden_yaml(render(PLAIN, discover()), discover())
    assert GOLDEN.read_text(encoding="utf-8") == text, REWRITE
    assert yaml.safe_load(text)["static_resources"]["clusters"][0]["name"] == "headrace"


def test_guide_lists_every_path() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert text == with_table(text, discover()), REWRITE


def test_guide_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the guide has no"):
        with_table("text", discover())


@pytest.mark.parametrize("options", [PLAIN, FULL, REMOTE], ids=["plain", "full", "remote"])
async def test_envoy_accepts_it(tmp_path: Path, options: BootstrapOptions) -> None:
    config = tmp_path / "envoy.json"
    config.write_text(to_json(render(options, discover())), encoding="utf-8")
    await validate(config)


@pytest.mark.parametrize("client_auth", [False, True])
async def test_envoy_accepts_tls_of_one_port(tmp_path: Path, client_auth: bool) -> None:
    for name, document in secrets("certificate", "key", "authority").items():
        (tmp_path / name).write_text(to_json(document), encoding="utf-8")
    tls = TlsOptions(str(tmp_path), client_auth=client_auth)
    document = render(dataclasses.replace(FULL, tls=tls), discover())
    chains = [listener["filter_chains"][0] for listener in document["static_resources"]["listeners"]]
    assert ["transport_socket" in chain for chain in chains] == [True, False]
    config = tmp_path / "envoy.json"
    config.write_text(to_json(document), encoding="utf-8")
    await validate(config)


async def test_envoy_refuses_nonsense(tmp_path: Path) -> None:
    config = tmp_path / "envoy.json"
    config.write_text(to_json({**render(PLAIN, discover()), "nonsense": 1}), encoding="utf-8")
    with pytest.raises(EnvoyError, match="nonsense"):
        await validate(config)


@pytest.mark.parametrize(
    ("upstream", "place"), [("/run/s", "upstream_socket"), ("grpc.example:8001", "upstream_address")]
)
def test_command_line_prints_what_envoy_reads(
    capsys: pytest.CaptureFixture[str], upstream: str, place: str
) -> None:
    assert main(["--upstream", upstream, "--host", "0.0.0.0", "--port", "8080"]) == 0
    chosen: dict[str, Any] = {place: upstream}
    options = BootstrapOptions(**chosen, listen_host="0.0.0.0", listen_port=8080)
    assert capsys.readouterr().out == to_json(render(options, discover())) + "\n"


def test_descriptor_set_has_every_file_after_its_imports() -> None:
    inline = filters(render(PLAIN, discover()))["envoy.filters.http.grpc_json_transcoder"][
        "proto_descriptor_bin"
    ]
    assert base64.b64decode(inline) == descriptor_set(discover())
    seen: set[str] = set()
    for file in FileDescriptorSet.FromString(base64.b64decode(inline)).file:
        assert set(file.dependency) <= seen
        seen.add(file.name)
    assert {service.file.name for service in discover()} | {"google/api/http.proto"} <= seen


def test_every_service_with_a_rule_is_transcoded() -> None:
    names = [service.full_name for service in discover()]
    assert filters(render(PLAIN, discover()))["envoy.filters.http.grpc_json_transcoder"]["services"] == names
    assert {binding.rpc.split("/")[1] for binding in bindings(discover())} == set(names)


def test_every_rule_is_known_to_the_table_of_verbs() -> None:
    found = bindings(discover())
    table = known_paths(found)
    assert found
    for binding in found:
        path = re.sub(r"\{[^}]*\}", "some%20model", binding.template)
        for asked in (path, f"{path}/", f"{path}?a=b"):
            matching = [entry.verbs for entry in table if re.fullmatch(entry.regex, asked)]
            assert binding.verb in matching[0], binding


@pytest.mark.parametrize(
    ("template", "path", "matches"),
    [
        ("/a", "/a", True),
        ("/a", "/ab", False),
        ("/a.b", "/axb", False),
        ("/a/{x}/c", "/a/b/c", True),
        ("/a/{x}/c", "/a/b/b/c", False),
        ("/a/{x=*}", "/a/b", True),
        ("/a/{x=**}", "/a/b/c", True),
        ("/a/{x=b/*}:run", "/a/b/c:run", True),
        ("/a/{x=b/*}:run", "/a/c/c:run", False),
    ],
)
def test_templates_become_expressions(template: str, path: str, matches: bool) -> None:
    binding = Binding(template=template, verb="GET", rpc="/s/M", body="", streaming=False)
    assert bool(re.fullmatch(binding.regex, path)) is matches


def test_names_of_path_variables_are_not_taken_from_the_query() -> None:
    names = path_variables(discover())
    assert {"model", "version"} <= set(names)
    transcoder = filters(render(PLAIN, discover()))["envoy.filters.http.grpc_json_transcoder"]
    assert transcoder["ignored_query_parameters"] == list(names)


def test_limits_follow_the_options() -> None:
    transcoder = filters(render(FULL, discover()))["envoy.filters.http.grpc_json_transcoder"]
    assert (transcoder["max_request_body_size"], transcoder["max_response_body_size"]) == (1024, 1024)
    assert "the body exceeds the limit of 1024 bytes" in to_json(manager(render(FULL, discover())))


def test_nothing_ends_a_long_stream() -> None:
    document = render(PLAIN, discover())
    assert manager(document)["stream_idle_timeout"] == "0s"
    assert manager(document)["request_timeout"] == "0s"
    (host,) = manager(document)["route_config"]["virtual_hosts"]
    assert [(route["route"]["timeout"], route["route"]["idle_timeout"]) for route in host["routes"]] == [
        ("0s", "0s")
    ]
    text = to_json(document)
    assert "max_stream_duration" not in text
    assert "max_connection_duration" not in text


def test_admin_interface_is_off_and_never_on_tcp() -> None:
    assert "admin" not in render(PLAIN, discover())
    assert list(render(FULL, discover())["admin"]["address"]) == ["pipe"]


@pytest.mark.parametrize(
    ("options", "removed"), [(PLAIN, [MODEL_HEADER, SURFACE_HEADER]), (FULL, [SURFACE_HEADER])]
)
def test_internal_headers_are_removed_first(options: BootstrapOptions, removed: list[str]) -> None:
    (extension,) = manager(render(options, discover()))["early_header_mutation_extensions"]
    assert [mutation["remove"] for mutation in extension["typed_config"]["mutations"]] == removed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"listen_host": "example.com"}, "must be an IP address"),
        ({"listen_port": 65536}, "listen_port must be"),
        ({"metrics_port": -1}, "metrics_port must be"),
        ({"max_body_bytes": 0}, "max_body_bytes must be"),
        ({"max_body_bytes": 2**32}, "max_body_bytes must be"),
        ({"upstream_socket": "/" + "x" * 103}, "may have 103 bytes"),
        ({"admin_socket": "/" + "ü" * 52}, "may have 103 bytes"),
        ({"upstream_socket": ""}, "either upstream_socket or upstream_address"),
        ({"upstream_address": "h:1"}, "either upstream_socket or upstream_address"),
        ({"upstream_socket": "", "upstream_address": "h"}, "must be host:port"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BootstrapOptions(**{"upstream_socket": "/s", **changes})


def test_localhost_is_an_address() -> None:
    assert BootstrapOptions(upstream_socket="/s", listen_host="localhost").address == "127.0.0.1"


def test_services_without_rules_make_no_bootstrap() -> None:
    with pytest.raises(ValueError, match="none of the services"):
        render(PLAIN, ())


def test_metrics_port_needs_a_metrics_rpc() -> None:
    services = [service for service in discover() if service.name != "OpsService"]
    with pytest.raises(ValueError, match="GET /metrics"):
        render(FULL, services)
