"""The sdist makes a wheel that is complete, and the wheel works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "headrace.envoy.bootstrap",
    "headrace.errors.v1.errors_pb2",
    "headrace.kserve.v2.grpc_service_pb2",
    "headrace.kserve.v2.grpc_service_pb2_grpc",
    "headrace.rest.v1.kserve_pb2",
    "headrace.runtimes",
    "headrace.server",
    "headrace.v1.embedding_pb2",
)


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command of this interpreter; its standard output."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel made from the sdist, as an installer makes it; nothing is written into the checkout."""
    work = tmp_path_factory.mktemp("packaging")
    config = work / "folders.cfg"
    config.write_text(f"[build]\nbuild_base={work}\n[egg_info]\negg_base={work}\n")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(work)!r})"
    run("-c", code, cwd=ROOT, DIST_EXTRA_CONFIG=str(config))
    (sdist,) = work.glob("headrace-*.tar.gz")
    run(
        "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(work), str(sdist), cwd=work
    )
    (built,) = work.glob("headrace-*.whl")
    return built


def wheel_names() -> set[str]:
    """Names in the wheel of everything that the source folders hold."""
    names = {f"headrace/{path.relative_to(ROOT)}" for path in sources("server", "runtimes", "envoy")}
    for proto in (ROOT / "protos").rglob("*.proto"):
        name = str(proto.relative_to(ROOT / "protos").with_suffix(""))
        names |= {f"{name}{suffix}" for suffix in (".proto", "_pb2.py", "_pb2.pyi", "_pb2_grpc.py")}
    return names


def sources(*folders: str) -> list[Path]:
    """Files of the source folders, caches excepted."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if "__pycache__" not in path.parts and path.suffix != ".md"]


@pytest.mark.slow
def test_the_wheel_holds_every_source_file_and_stub_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    generated = {name for name in names if name.endswith("py.typed")}
    assert names - generated == wheel_names() - {name for name in wheel_names() if name.endswith("py.typed")}
    tops = {"envoy", "runtimes", "server", *(path.name for path in (ROOT / "protos/headrace").iterdir())}
    assert generated >= {f"headrace/{top}/py.typed" for top in tops}


@pytest.mark.slow
def test_the_wheel_says_its_version_and_command(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    archive = zipfile.ZipFile(wheel)
    folder = f"headrace-{project['version']}.dist-info"
    assert f"Version: {project['version']}\n" in archive.read(f"{folder}/METADATA").decode()
    assert "headrace = headrace.server.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run("-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    code = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    files = run("-c", code, *IMPORTED, cwd=tmp_path, PYTHONPATH=str(target)).split()
    assert len(files) == len(IMPORTED)
    assert [file for file in files if not file.startswith(f"{target}{os.sep}")] == []


def test_constraints_pin_every_direct_dependency_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert next(iter(pins)) == "torch"
    assert [pin for pin in pins.items() if "+" in pin[1]] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    direct = {requirement.split(">=")[0].split("[")[0] for requirement in [*project["dependencies"], *extras]}
    assert sorted(direct - {"headrace"} - pins.keys()) == []
