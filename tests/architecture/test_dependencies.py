"""The dependency rules of the design, read off the source with ``ast``: no module is imported here."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("_pb2.py", "_pb2_grpc.py")


class Import(NamedTuple):
    """One import statement's target, as a full module path."""

    module: str
    lazy: bool  # inside a function
    typing_only: bool  # under ``if TYPE_CHECKING``


def sources(folder: str) -> list[Path]:
    files = sorted(path for path in (ROOT / folder).rglob("*.py") if not path.name.endswith(GENERATED))
    assert files, f"{folder}/ has no sources: the rule would check nothing"
    return files


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> tuple[Import, ...]:
    def visit(node: ast.AST, *, lazy: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, lazy, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield Import(child.module, lazy, typing_only)
                yield from (
                    Import(f"{child.module}.{alias.name}", lazy, typing_only) for alias in child.names
                )
            guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from visit(child, lazy=lazy or inner, typing_only=typing_only or guarded)

    return tuple(visit(parsed(path), lazy=False, typing_only=False))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


STUBS = ("headrace.kserve", "headrace.v1", "headrace.rest", "headrace.tei", "headrace.errors")


@pytest.mark.parametrize("path", sources("runtimes"), ids=name)
def test_runtimes_know_nothing_of_the_server(path: Path) -> None:
    found = [
        i.module for i in imports(path) if within(i.module, "headrace.server", "grpc", "grpc_health", *STUBS)
    ]
    assert not found


@pytest.mark.parametrize("path", [p for f in ("runtimes", "server", "envoy") for p in sources(f)], ids=name)
def test_torch_and_onnxruntime_stay_in_their_folders(path: Path) -> None:
    homes = {"torch": "runtimes/torch", "transformers": "runtimes/torch", "onnxruntime": "runtimes/onnx"}
    for item in imports(path):
        for library, home in homes.items():
            if not within(item.module, library) or item.typing_only:
                continue
            if path.is_relative_to(ROOT / "runtimes/convert"):
                assert item.lazy, f"{item.module} must be imported inside a function of a converter"
                continue
            assert path.is_relative_to(ROOT / home), f"{item.module} belongs below {home}"


WIRE_FREE = ("server/tasks", "server/scheduling", "server/workers", "server/telemetry")


@pytest.mark.parametrize("path", [p for f in WIRE_FREE for p in sources(f)], ids=name)
def test_tasks_and_scheduling_are_wire_free(path: Path) -> None:
    found = [i.module for i in imports(path) if within(i.module, "grpc", "grpc_health", "google", *STUBS)]
    assert not [m for m in found if path.parent.name != "telemetry" or not m.startswith("google")]


@pytest.mark.parametrize("path", sources("server/repository"), ids=name)
def test_the_repository_only_knows_the_model_config_message(path: Path) -> None:
    stubs = {i.module for i in imports(path) if within(i.module, *STUBS)}
    # model_config.proto and the files it is made of.
    assert all(
        re.match(r"headrace\.kserve\.v2(\.(model_|data_type)\w*_pb2(\.\w+)?)?$", stub) for stub in stubs
    ), stubs
    assert not [i.module for i in imports(path) if within(i.module, "grpc")]


LAYERS = ("services", "tasks", "scheduling", "workers")


@pytest.mark.parametrize("path", [p for f in LAYERS for p in sources(f"server/{f}")], ids=name)
def test_layers_only_look_down(path: Path) -> None:
    mine = path.relative_to(ROOT / "server").parts[0]
    above = LAYERS[: LAYERS.index(mine)]
    # The workers bring outcomes back to the scheduler they were attached to: batch values only.
    back = ("headrace.server.scheduling.batch", "headrace.server.scheduling.batcher")
    found = [
        i.module
        for i in imports(path)
        if not i.typing_only and within(i.module, *(f"headrace.server.{layer}" for layer in above))
    ]
    assert not [m for m in found if not (mine == "workers" and within(m, *back))]


@pytest.mark.parametrize("path", sources("server/services"), ids=name)
def test_services_never_import_each_other(path: Path) -> None:
    if path.name == "registry.py":
        return
    shared = {
        "call",
        "openai_requests",
        "openai_routes",
        "ordered",
        "pooling_requests",
        "streams",
        "tei_models",
        "tei_requests",
        "tgi_requests",
    }
    others = {p.stem for p in sources("server/services")} - shared - {"__init__", path.stem}
    found = [
        i.module
        for i in imports(path)
        if within(i.module, *(f"headrace.server.services.{o}" for o in others))
    ]
    assert not found


@pytest.mark.parametrize("path", sources("server/codecs"), ids=name)
def test_codecs_are_pure(path: Path) -> None:
    tree = parsed(path)
    assert not [n for n in ast.walk(tree) if isinstance(n, (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor))]
    found = [
        i.module
        for i in imports(path)
        if within(i.module, "asyncio", "socket", "pathlib", "os", "subprocess")
    ]
    assert not found


ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb")
ENVIRONMENT_USES = {
    ("server/cli.py", "os.environ.setdefault"): "set what libraries read as they are imported",
    ("server/workers/process.py", "environment(spec, os.environ)"): "children inherit it",
}
"""(file, expression) → why it may: it does not decide what Headrace does."""


@pytest.mark.parametrize("path", [p for f in ("server", "runtimes", "envoy") for p in sources(f)], ids=name)
def test_only_the_settings_read_the_environment(path: Path) -> None:
    """The settings read it by way of pydantic-settings."""
    found = {
        ast.unparse(parent)
        for parent in ast.walk(parsed(path))
        # Libraries are told to stay offline: writing is not reading.
        if not (isinstance(parent, ast.Subscript) and isinstance(parent.ctx, ast.Store))
        for child in ast.iter_child_nodes(parent)
        if isinstance(child, ast.Attribute) and ast.unparse(child) in ENVIRONMENT
    }
    assert not {use for use in found if (name(path), use) not in ENVIRONMENT_USES}
    assert not [i.module for i in imports(path) if i.module in ENVIRONMENT]


MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKERS = ("bytearray", "Counter", "defaultdict", "deque", "dict", "list", "OrderedDict", "set")


def is_mutable(value: ast.expr | None) -> bool:
    """Whether an expression makes something that can be changed, as far as its own form tells."""
    if isinstance(value, ast.Call):
        maker = value.func.value if isinstance(value.func, ast.Subscript) else value.func
        return ast.unparse(maker).rpartition(".")[2] in MAKERS
    return isinstance(value, MUTABLE)


@pytest.mark.parametrize(
    ("text", "mutable"),
    [
        ("[]", True), ("{1: 2}", True), ("{x for x in y}", True), ("dict(a=1)", True), ("set()", True),
        ("collections.defaultdict(list)", True), ("deque[int]()", True), ("list(range(3))", True),
        ("()", False), ("frozenset({1})", False), ("MappingProxyType({1: 2})", False),
    ],
)  # fmt: skip
def test_what_counts_as_mutable(text: str, mutable: bool) -> None:
    assert is_mutable(ast.parse(text, mode="eval").body) == mutable


@pytest.mark.parametrize("path", [p for f in ("server", "runtimes", "envoy") for p in sources(f)], ids=name)
def test_no_module_level_mutable_state(path: Path) -> None:
    for node in parsed(path).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and is_mutable(node.value):
            target = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            assert target == "__all__", (
                f"{target} is a mutable module-level value: use a tuple, frozenset or MappingProxyType"
            )


@pytest.mark.parametrize(
    "path", [p for f in ("server", "runtimes", "envoy", "tests", "benchmarks") for p in sources(f)], ids=name
)
def test_nothing_imports_the_folders_by_their_bare_names(path: Path) -> None:
    assert not [i.module for i in imports(path) if within(i.module, "server", "runtimes")]


@pytest.mark.parametrize("path", [p for f in ("server", "runtimes", "envoy") for p in sources(f)], ids=name)
def test_no_http_server_in_python(path: Path) -> None:
    banned = ("fastapi", "flask", "starlette", "uvicorn", "http.server", "aiohttp", "tornado")
    assert not [i.module for i in imports(path) if within(i.module, *banned)]


def test_files_are_short() -> None:
    lengths = {
        name(path): len(path.read_text().splitlines())
        for folder in ("server", "runtimes", "envoy")
        for path in sources(folder)
        if path.name != "__init__.py"
    }
    assert not {path: count for path, count in lengths.items() if count > 400}
    assert statistics.median(lengths.values()) <= 150


def test_envoys_folder_is_no_package() -> None:
    assert not (ROOT / "envoy" / "__init__.py").exists()
