"""Makes what generation is compared with: ``python -m benchmarks.generation.peers --create DIR``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.environments import command
from benchmarks.generation.peers.create import ENVIRONMENTS, create


def main(
    create_in: Annotated[Path, typer.Option("--create", help="Folder for environments and models.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this environment; may be repeated.")] = None,
) -> None:
    """Install the peers, each in an environment of its own: 7 GB, half an hour, network access."""
    sys.exit(command(ENVIRONMENTS, create, create_in, only or []))


if __name__ == "__main__":
    typer.run(main)
