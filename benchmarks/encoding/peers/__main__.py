"""Makes what text encoding is compared with: ``python -m benchmarks.encoding.peers --create DIR``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.encoding.peers.environments import ENVIRONMENTS, create
from benchmarks.environments import command


def main(
    create_in: Annotated[Path, typer.Option("--create", help="Folder for the environments.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this environment; may be repeated.")] = None,
) -> None:
    """Install the peers, each in an environment of its own: 3 GB, ten minutes, network access."""
    sys.exit(command(ENVIRONMENTS, create, create_in, only or []))


if __name__ == "__main__":
    typer.run(main)
