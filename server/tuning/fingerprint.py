"""What a measurement depends on: the model's files, the machine, and the versions of what computes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from headrace.server.repository.config import print_config
from headrace.server.repository.layout import CONFIG_FILE

if TYPE_CHECKING:
    from headrace.server.repository.definition import ModelDefinition
    from headrace.server.repository.instances import Machine

# Without onnx and sympy attention is not fused.
PACKAGES: Final = ("headrace", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "sympy", "torch")
_CGROUP: Final = Path("/sys/fs/cgroup")
_BLOCK: Final = 1 << 20


def machine_facts(machine: Machine) -> dict[str, str]:
    """Describe what the speed of a model depends on beside its files."""
    return {
        "cpu": _cpu_model(),
        "cores": str(machine.cores),
        "usable_cores": str(len(os.sched_getaffinity(0))),
        "cpu_limit": _first_line(_CGROUP / "cpu.max") or _first_line(_CGROUP / "cpu" / "cpu.cfs_quota_us"),
        "memory": str(memory_bytes()),
        "gpus": str(machine.gpus),
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def memory_bytes() -> int:
    """Return the memory there is for this machine or container."""
    total = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = _first_line(_CGROUP / name)
        if limit.isdecimal():
            total = min(total, int(limit))
    return total


def digest(definition: ModelDefinition, facts: dict[str, str]) -> str:
    """Return a text that changes with the model's files, its configuration, forms or machine; blocking.

    It reads the files: their times say nothing about copies of a model, and a wrong match would be silent.
    """
    fused = any(spec.graph_cache for spec in definition.specs)
    shared = any(spec.weight_cache for spec in definition.specs)
    parts = [facts, print_config(definition.written), fused, shared]
    found = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for path in sorted(definition.folder.rglob("*")):
        if not path.is_file() or path.name == CONFIG_FILE:
            continue
        found.update(f"\0{path.relative_to(definition.folder)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
    return found.hexdigest()


def _cpu_model() -> str:
    """Return the processor's name and its instruction sets, which decide as much as the name does."""
    entries: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    flags = hashlib.sha256(entries.get("flags", "").encode()).hexdigest()[:8]
    return f"{entries.get('model name') or platform.machine()} ({flags})"


def _first_line(path: Path) -> str:
    try:
        return path.read_text().split("\n", 1)[0].strip()
    except OSError:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
