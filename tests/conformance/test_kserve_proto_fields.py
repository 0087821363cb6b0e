"""The kserve protos are wire-identical with the published protocol, and with the client that is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SERVICE = "inference.GRPCInferenceService"
OURS = ("headrace.kserve.v2.grpc_service_pb2", "headrace.kserve.v2.model_config_pb2")
TRITON = ("tritonclient.grpc.service_pb2", "tritonclient.grpc.model_config_pb2")

ONLY_OURS: frozenset[str] = frozenset()
"""Fields and enum values that the oldest supported client does not know: none with tritonclient 2.73."""

Api = dict[str, dict[str, Any]]


def api_of(*modules: str) -> Api:
    """The API of generated modules, read in a process of its own."""
    command = [sys.executable, str(HERE / "proto_dump.py"), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    api: Api = json.loads(done.stdout)
    return api


def published() -> Api:
    """The field list in data/, with the last component of every type name as it is written there."""
    api: Api = {"messages": {}, "enums": {}, "rpcs": {}}
    message = ""
    for line in (HERE / "data" / "kserve-proto-fields.txt").read_text().splitlines():
        if found := re.fullmatch(r" *enum (\S+): (.*)", line):
            values = (pair.split("=") for pair in found[2].split(", "))
            api["enums"][found[1]] = {name: int(number) for name, number in values}
        elif found := re.fullmatch(r"message (\S+)(?:  \(no fields\))?", line):
            message = found[1]
            api["messages"][message] = {}
        elif found := re.fullmatch(r" +(\d+) ((?:repeated )?\S+) (\S+)(?:  \[oneof (\S+)\])?", line):
            api["messages"][message][found[3]] = [int(found[1]), found[2], found[4]]
        elif found := re.fullmatch(r" +rpc (\S+)\((.*)\) -> (.*)", line):
            api["rpcs"][f"{SERVICE}.{found[1]}"] = [found[2], found[3]]
        else:
            assert line.startswith(("## file ", f"service {SERVICE}")), f"not understood: {line}"
    return api


def last_component(type_name: str) -> str:
    """`repeated A.B` → `repeated B`, `map<string,A.B>` → `map<string,B>`."""
    return re.sub(r"[\w.]+\.(\w+)", r"\1", type_name)


@pytest.fixture(scope="module")
def ours() -> Api:
    """What this project's stubs say."""
    return api_of(*OURS)


def test_every_message_and_field_is_as_published(ours: Api) -> None:
    written = {
        message: {
            name: [number, last_component(type_name), oneof]
            for name, (number, type_name, oneof) in fields.items()
        }
        for message, fields in ours["messages"].items()
    }
    assert written == published()["messages"]


@pytest.mark.parametrize("kind", ["enums", "rpcs"])
def test_every_enum_and_rpc_is_as_published(ours: Api, kind: str) -> None:
    assert ours[kind] == published()[kind]


def test_all_twenty_rpcs_are_there(ours: Api) -> None:
    assert len(ours["rpcs"]) == 20


def test_the_installed_client_agrees_on_everything_it_knows(ours: Api) -> None:
    theirs = api_of(*TRITON)
    differences = [
        f"{kind} {owner}.{name}: ours {ours[kind].get(owner, {}).get(name)}, the client's {definition}"
        for kind in ("messages", "enums")
        for owner, members in theirs[kind].items()
        for name, definition in members.items()
        if ours[kind].get(owner, {}).get(name) != definition
    ]
    assert differences == []
    assert set(theirs["messages"]) <= set(ours["messages"])
    assert theirs["rpcs"].items() <= ours["rpcs"].items()


def test_what_only_our_protos_have_is_known(ours: Api) -> None:
    theirs = api_of(*TRITON)
    extra = {
        f"{owner}.{name}"
        for kind in ("messages", "enums")
        for owner, members in ours[kind].items()
        for name in members
        if name not in theirs[kind].get(owner, {})
    }
    assert extra == ONLY_OURS
    assert ours["rpcs"].keys() == theirs["rpcs"].keys()
