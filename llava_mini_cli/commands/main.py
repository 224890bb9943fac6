"""Wires the commands together; holds no logic of its own."""

from typing import Annotated

import typer

from llava_mini_cli import __version__
from llava_mini_cli.commands.ask import ask
from llava_mini_cli.commands.bench import bench
from llava_mini_cli.commands.caption import caption
from llava_mini_cli.commands.cli import Cli
from llava_mini_cli.commands.configured import ConfiguredCommand
from llava_mini_cli.commands.doctor import doctor
from llava_mini_cli.commands.flags import with_flags
from llava_mini_cli.commands.index import index
from llava_mini_cli.commands.inspect_medium import inspect
from llava_mini_cli.commands.search import search
from llava_mini_cli.commands.show_config import config
from llava_mini_cli.commands.train import train
from llava_mini_cli.commands.view import view
from llava_mini_cli.commands.when import when
from llava_mini_cli.errors import UsageError

app = typer.Typer(
    cls=Cli,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (ask, caption, when, index, search, view, inspect, train, bench, doctor):
    app.command(cls=ConfiguredCommand)(with_flags(command))
app.command()(config)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"llava-mini {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Ask about videos and images, describe them and search them. Answers are text, JSON lines, Parquet or CSV."""
    if context.invoked_subcommand is None:
        raise UsageError("a command is missing; llava-mini --help lists them")
