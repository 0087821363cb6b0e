"""``python -m headrace.runtimes.convert --into DIR [--only NAME …]``: build the demo repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from headrace.runtimes.convert.demo import Progress, pull
from headrace.runtimes.convert.job import ConversionError
from headrace.runtimes.convert.recipes import RECIPES


def main() -> int:
    """Build as the arguments say; 1 when a model could not be built, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="headrace.runtimes.convert", description="Build the demo model repository."
    )
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="the model repository")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="downloaded packages (default: DIR/../packages)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(RECIPES)} (default: all)")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.fields[step]:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("pull", total=None, step="", detail="")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                total=progress.total,
                completed=progress.done,
                step=progress.step,
                detail=progress.detail,
            )
            if not console.is_terminal:
                console.print(f"{progress.step}: {progress.detail}" if progress.step else progress.detail)

        try:
            pull(
                arguments.into,
                cache=arguments.cache or arguments.into.resolve().parent / "packages",
                names=arguments.only,
                progress=show,
            )
        except ConversionError as error:
            console.print(f"error: {error}", style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            console.print("interrupted; the next pull goes on from here")
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
