"""What the environment of a worker has beside the server's own."""

from __future__ import annotations

import pytest

from headrace.runtimes.base import InstanceSpec
from headrace.runtimes.generation.base import GenerationSpec
from headrace.server.workers.process import environment

TENSORS = InstanceSpec("model", "onnx", "folder")
DECODER = InstanceSpec(
    "model", "onnx", "folder", generation=GenerationSpec(max_tokens=8, max_sequences=1, kv_tokens=16)
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
    ids=["unset", "others", "set"],
)
def test_decoders_ask_for_huge_pages_unless_the_user_decided(given: str | None, expected: str) -> None:
    own = {"HOME": "/home"} if given is None else {"HOME": "/home", "GLIBC_TUNABLES": given}
    assert environment(DECODER, own) == {"HOME": "/home", "GLIBC_TUNABLES": expected}
    assert environment(TENSORS, own) == own
