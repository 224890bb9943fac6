"""Which media a command is about, and how those that are elsewhere are fetched."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_mini_cli.commands.sizes import parse_size
from llava_mini_cli.commands.times import parse_time

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.formats.inputs import InputOptions
    from llava_mini_cli.formats.source import FetchOptions

_PANEL = "Input"
_KEEP_ALL = "all"

Media = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MEDIA...",
        help="Videos, images, folders, globs in quotes, tables, tar shards, URLs of them.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class InputFlags:
    """The fields of `InputOptions` and `FetchOptions`, as options."""

    files_from: Annotated[
        str | None,
        typer.Option(
            "--files-from",
            metavar="FILE|-",
            help="Media from a list, a line each; - is standard input.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    null: Annotated[
        bool,
        typer.Option(
            "-0",
            "--null/--no-null",
            help="The list is separated by NUL, as find -print0 does.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = False
    recursive: Annotated[
        bool,
        typer.Option("--recursive/--no-recursive", help="Folders to the bottom.", rich_help_panel=_PANEL),
    ] = True
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Of folders and globs only these; may be repeated.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="Files and folders to pass over; may be repeated.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    column: Annotated[
        str | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="Of a table: where the media are.",
            show_default="path, file, ...",
            rich_help_panel=_PANEL,
        ),
    ] = None
    id_column: Annotated[
        str | None,
        typer.Option(
            "--id-column",
            metavar="NAME",
            help="Of a table: what rows carry as their id.",
            show_default="the medium",
            rich_help_panel=_PANEL,
        ),
    ] = None
    prompt_column: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt-column",
            metavar="NAME",
            help="Of a table: a question; may be repeated.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None
    keep_columns: Annotated[
        str | None,
        typer.Option(
            "--keep-columns",
            metavar="A,B|all",
            help="Of a table: columns that go into the output.",
            show_default="none",
            rich_help_panel=_PANEL,
        ),
    ] = None
    fetch_timeout: Annotated[
        float,
        typer.Option(
            "--fetch-timeout",
            parser=parse_time,
            metavar="TIME",
            help="A remote file that is not here after so long is given up.",
            show_default="10m",
            rich_help_panel=_PANEL,
        ),
    ] = 600.0
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache-dir",
            metavar="FOLDER",
            help="Where remote files are kept while they are needed.",
            show_default="~/.cache/llava-mini/fetched",
            rich_help_panel=_PANEL,
        ),
    ] = None
    cache_size: Annotated[
        int,
        typer.Option(
            "--cache-size",
            parser=parse_size,
            metavar="SIZE",
            help="How much of them at once.",
            show_default="10GB",
            rich_help_panel=_PANEL,
        ),
    ] = 10 << 30

    def options(self) -> "InputOptions":
        """Checked. Raises `UsageError`."""
        from llava_mini_cli.formats.inputs.options import InputOptions

        keep = (self.keep_columns or "").strip()
        return InputOptions(
            recursive=self.recursive,
            include=tuple(self.include or ()),
            exclude=tuple(self.exclude or ()),
            files_from=self.files_from,
            null=self.null,
            column=self.column,
            id_column=self.id_column,
            prompt_columns=tuple(self.prompt_column or ()),
            keep_columns=tuple(name.strip() for name in keep.split(",")) if keep and keep != _KEEP_ALL else (),
            keep_all=keep == _KEEP_ALL,
        )

    def fetch_options(self) -> "FetchOptions":
        """Checked. Raises `UsageError`."""
        from llava_mini_cli.formats.source import FetchOptions

        return FetchOptions(timeout=self.fetch_timeout, cache_dir=self.cache_dir, cache_bytes=self.cache_size)
