"""The installed stubs are the ones that the .proto files make now."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

PROTOS = Path(__file__).parents[2] / "protos"
FILES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptorProto]:
    """File name to the descriptor that protoc makes of it."""
    output = tmp_path_factory.mktemp("protos") / "set.binpb"
    googleapis = Path(annotations_pb2.__file__).parents[2]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{googleapis}"]
    command += [f"--descriptor_set_out={output}", *FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return {file.name: file for file in FileDescriptorSet.FromString(output.read_bytes()).file}


@pytest.mark.parametrize("name", FILES)
def test_the_stub_is_importable_and_up_to_date(compiled: dict[str, FileDescriptorProto], name: str) -> None:
    module_name = name.removesuffix(".proto").replace("/", ".") + "_pb2"
    module = importlib.import_module(module_name)
    importlib.import_module(f"{module_name}_grpc")
    expected = compiled[name]
    names = [message.name for message in expected.message_type] + [enum.name for enum in expected.enum_type]
    assert [missing for missing in names if not hasattr(module, missing)] == []
    actual = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(actual)
    # protoc writes the derived json_name into a descriptor set, and leaves it out of a stub.
    assert without_json_names(actual) == without_json_names(expected), "run `make stubs`"


def without_json_names(file: FileDescriptorProto) -> FileDescriptorProto:
    """The file with the derived JSON names of its fields removed."""
    stack = list(file.message_type)
    while stack:
        message = stack.pop()
        for field in message.field:
            field.ClearField("json_name")
        stack.extend(message.nested_type)
    return file
