"""Build of Headrace: maps the source folders to import names and compiles the protobuf stubs.

The metadata is in pyproject.toml; only what has to be computed is here.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PROTO_ROOT = Path("protos")
STUB_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def proto_files() -> list[Path]:
    """Every .proto file, relative to the project root, in a stable order."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / PROTO_ROOT).rglob("*.proto"))


def proto_folders() -> list[Path]:
    """Folders that hold .proto files, and their parents below `headrace`, relative to the proto root."""
    folders = {parent for proto in proto_files() for parent in proto.relative_to(PROTO_ROOT).parents}
    return sorted(folder for folder in folders if len(folder.parts) > 1)


def proto_packages() -> list[str]:
    """Import names of the folders that hold stubs."""
    return [".".join(folder.parts) for folder in proto_folders()]


def generated_files() -> list[Path]:
    """What build_protos writes, relative to its target: the stubs, and the mark that they are typed."""
    stems = [proto.relative_to(PROTO_ROOT).with_suffix("") for proto in proto_files()]
    stubs = [stem.with_name(stem.name + suffix) for stem in stems for suffix in STUB_SUFFIXES]
    return [*stubs, *(folder / "py.typed" for folder in proto_folders())]


def source_packages(folder: str) -> list[str]:
    """Import names of a source folder and of all packages below it."""
    name = f"headrace.{folder}"
    return [name, *(f"{name}.{sub}" for sub in find_packages(str(ROOT / folder)))]


def include_folder(package: str, levels: int) -> Path:
    """The protoc include folder that an installed package brings, `levels` above its own folder."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is missing: see build-system.requires in pyproject.toml")
    return Path(spec.submodule_search_locations[0]).parents[levels - 1]


class build_protos(Command):  # noqa: N801 -- setuptools names a command class as the command
    """Compile the .proto files: into the build folder, or beside the sources when editable or --inplace."""

    description = "compile the .proto files to Python stubs"
    user_options: ClassVar = [
        ("inplace", "i", "write the stubs beside the .proto files"),
        ("descriptor-set=", None, "write only this descriptor set, with comments and imports"),
    ]
    boolean_options: ClassVar = ["inplace"]

    def initialize_options(self) -> None:
        """Set the options that setuptools fills in."""
        self.inplace = False
        self.editable_mode = False
        self.descriptor_set: str | None = None
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        """Take the build folder from the `build` command."""
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Compile all files in one protoc run.

        Raises:
            RuntimeError: protoc refused a file; its messages are on standard error.
        """
        if self.descriptor_set:
            Path(self.descriptor_set).parent.mkdir(parents=True, exist_ok=True)
            self._protoc("--include_imports", "--include_source_info", f"-o{self.descriptor_set}")
            return
        target = self._target()
        if target != PROTO_ROOT:
            # setuptools never empties the build folder, and would ship modules that were deleted since.
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
        self._protoc(*(f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")))
        for folder in proto_folders():
            (target / folder / "py.typed").touch()
        made = {target / path for path in generated_files()}
        for stale in {path for path in target.rglob("*_pb2*") if path.name.endswith(STUB_SUFFIXES)} - made:
            stale.unlink()

    def _protoc(self, *outputs: str) -> None:
        from grpc_tools import protoc  # noqa: PLC0415 -- a build requirement, not needed to read metadata

        includes = (PROTO_ROOT, include_folder("google.api", 2), Path(protoc.__file__).parent / "_proto")
        files = [str(path) for path in proto_files()]
        if protoc.main(["protoc", *(f"-I{path}" for path in includes), *outputs, *files]) != 0:
            raise RuntimeError("protoc failed: its messages are above")

    def _target(self) -> Path:
        return PROTO_ROOT if self.inplace or self.editable_mode else Path(str(self.build_lib))

    def get_source_files(self) -> list[str]:
        """Files that an sdist needs for this command."""
        return [str(path) for path in proto_files()]

    def get_outputs(self) -> list[str]:
        """Files that this command writes."""
        return [str(self._target() / path) for path in generated_files()]

    def get_output_mapping(self) -> dict[str, str]:
        """Copies from source to build folder: none, everything is generated."""
        return {}


class build_py_without_stubs(build_py):  # noqa: N801 -- see build_protos
    """build_py that leaves out stubs lying beside the .proto files: build_protos has made fresh ones."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Modules of a package as (package, module, file)."""
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if not module[2].endswith(STUB_SUFFIXES)]

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        """Data files of a package."""
        files = super().find_data_files(package, src_dir)
        return [path for path in files if not path.endswith(STUB_SUFFIXES)]


build.sub_commands = [("build_protos", None), *build.sub_commands]

# Optional: without a compiler ONNX Runtime's own operators serve. It is no module to import.
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "runtimes/onnx/native").glob("*.c"))
OPERATORS = Extension(
    "headrace.runtimes.onnx._operators",
    SOURCES,
    depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "runtimes/onnx/native").glob("*.h")),
    extra_compile_args=["-O3", "-fvisibility=hidden"],
    optional=True,
)

setup(
    ext_modules=[OPERATORS],
    cmdclass={"build_protos": build_protos, "build_py": build_py_without_stubs},
    package_dir={
        "headrace.server": "server",
        "headrace.runtimes": "runtimes",
        "headrace.envoy": "envoy",
        **{name: str(PROTO_ROOT / name.replace(".", "/")) for name in proto_packages()},
    },
    packages=[*source_packages("server"), *source_packages("runtimes"), "headrace.envoy", *proto_packages()],
)
