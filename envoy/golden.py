"""Texts made from the protos for people: the golden bootstrap of the tests and the table of docs/rest.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from google.protobuf.descriptor import ServiceDescriptor

from headrace.envoy.descriptors import bindings, rest_services

_ROOT: Final = Path(__file__).parent.parent
GOLDEN: Final = _ROOT / "tests" / "golden" / "envoy-bootstrap.yaml"
GUIDE: Final = _ROOT / "docs" / "rest.md"

TABLE_START: Final = "<!-- paths: written by python -m headrace.envoy.bootstrap --golden -->\n"
TABLE_END: Final = "<!-- /paths -->\n"


def golden_yaml(document: dict[str, Any], services: Sequence[ServiceDescriptor]) -> str:
    """The bootstrap for review: REST bindings stand for the descriptor set, names for the scripts."""
    copy = json.loads(json.dumps(document))  # YAML would refer back to parts that occur twice
    routes = [f"{found.verb} {found.template} -> {found.rpc}" for found in bindings(rest_services(services))]
    (manager,) = copy["static_resources"]["listeners"][0]["filter_chains"][0]["filters"]
    for item in manager["typed_config"]["http_filters"]:
        config = item["typed_config"]
        if "proto_descriptor_bin" in config:
            config["proto_descriptor_bin"] = {"bindings": routes}
        if "extension_config" in config:
            source = config["extension_config"]["typed_config"]["default_source_code"]
            source["inline_string"] = f"the text of envoy/{item['name'].removeprefix('headrace.')}.lua"
    header = "# Written by: python -m headrace.envoy.bootstrap --golden\n"
    return header + yaml.safe_dump(copy, sort_keys=False, width=110)


def paths_table(services: Sequence[ServiceDescriptor]) -> str:
    """Markdown table of all REST bindings."""
    rows = [
        f"| {found.verb} | `{found.template}` | `{found.rpc[1:].replace('/', '.')}` | {_body(found.body)} |\n"
        for found in bindings(rest_services(services))
    ]
    return "".join(["| Verb | Path | RPC | Body |\n", "| --- | --- | --- | --- |\n", *rows])


def with_table(guide: str, services: Sequence[ServiceDescriptor]) -> str:
    """The guide with its table of paths brought up to date.

    Raises:
        ValueError: the guide has lost the marks around its table.
    """
    before, start, rest = guide.partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not start or not end:
        raise ValueError(f"the guide has no {TABLE_START.strip()!r} … {TABLE_END.strip()!r}")
    return before + start + paths_table(services) + end + after


def _body(field: str) -> str:
    return {"": "none", "*": "JSON, the whole request"}.get(field, f"any, as field `{field}`")
