"""Makes what generation is compared with: ``python -m benchmarks.generation.peers --create DIR``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.generation.peers.create import ENVIRONMENTS, create


def main(
    create_in: Annotated[Path, typer.Option("--create", help="Folder for environments and models.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this environment; may be repeated.")] = None,
) -> None:
    """Install the peers, each in an environment of its own: 7 GB, half an hour, network access."""
    known = [environment.name for environment in ENVIRONMENTS]
    for name in only or ():
        if name not in known:
            raise typer.BadParameter(f"there is no environment '{name}'; there are {', '.join(known)}")
    try:
        create(create_in.resolve(), only or [], typer.echo)
    except subprocess.CalledProcessError as error:
        typer.echo(f"failed: {error}; see the logs in {create_in}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
