"""What a builder is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Check = float | int | str | bool
"""A measured fact about a built model, kept in the manifest."""

Checks = Mapping[str, Check]


class ConversionError(Exception):
    """A source or a built model is not what it has to be; the message names the file and the number."""


@dataclass(frozen=True)
class Job:
    """One model to build.

    ``packages`` maps the name of each package of the recipe to its downloaded file, ``repository`` holds the
    models that were built before, ``target`` is the empty model folder to fill (config.pbtxt and ``1/``), and
    ``say`` reports what is going on in a few words. ``options`` are what the caller chose, for builders that
    leave something to choose.
    """

    packages: Mapping[str, Path]
    repository: Path
    target: Path
    say: Callable[[str], None]
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> Path:
        """The folder ``1/`` of the model, made when it is first asked for."""
        folder = self.target / "1"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def require(name: str, value: float, *, below: float) -> float:
    """Return ``value`` rounded for the manifest.

    Raises:
        ConversionError: ``value`` is not below the bound (a NaN never is).
    """
    if not value < below:
        msg = f"{name} is {value:.3g}, must be below {below:.3g}"
        raise ConversionError(msg)
    return float(f"{value:.4g}")
