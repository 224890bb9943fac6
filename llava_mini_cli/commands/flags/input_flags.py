"""Options for the media that a command works on, and for fetching those that are elsewhere."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.sizes import parse_size
from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.source import GIB, FetchOptions

_option = partial(typer.Option, rich_help_panel="Input")
_KEEP_ALL = "all"

MEDIA_HELP = "Videos, images, folders, patterns in quotes, tables, tar shards, or URLs of any of these"
Media = Annotated[list[str] | None, typer.Argument(metavar="MEDIA...", help=f"{MEDIA_HELP}.")]


@dataclass(frozen=True)
class InputFlags:
    """The fields of `InputOptions` and `FetchOptions`, as options."""

    files_from: Annotated[
        str | None, _option(metavar="FILE|-", help="File that lists media, one per line; - is standard input.")
    ] = InputOptions.files_from
    null: Annotated[
        bool,
        _option(
            "-0",
            "--null/--no-null",
            help="NUL separates the media in the --files-from list, as in find -print0.",
        ),
        HARMLESS,
    ] = InputOptions.null
    recursive: Annotated[bool, _option(help="Folders are searched with all folders inside them."), HARMLESS] = (
        InputOptions.recursive
    )
    include: Annotated[
        list[str] | None,
        _option(
            metavar="GLOB", help="Pattern of the files to take from the folders and patterns in MEDIA; may be repeated."
        ),
        HARMLESS,
    ] = None
    exclude: Annotated[
        list[str] | None,
        _option(
            metavar="GLOB",
            help="Pattern of files and folders to skip in the folders and patterns in MEDIA; may be repeated.",
        ),
        HARMLESS,
    ] = None
    column: Annotated[
        str | None,
        _option(
            metavar="NAME",
            help="Column of the input tables that holds the media; in tar shards, the suffix of their media.",
            show_default="path, file, ...",
        ),
    ] = InputOptions.column
    id_column: Annotated[
        str | None,
        _option(
            metavar="NAME",
            help="Column of the input tables that becomes the id of the rows.",
            show_default="the medium",
        ),
        HARMLESS,
    ] = InputOptions.id_column
    prompt_column: Annotated[
        list[str] | None,
        _option(
            metavar="NAME", help="Column of the input tables that holds a question about the medium; may be repeated."
        ),
        HARMLESS,
    ] = None
    start_column: Annotated[
        str | None,
        _option(
            metavar="NAME",
            help="Column of the input tables that says where in the medium a row's question begins: seconds, or 1:30.",
            show_default="the beginning",
        ),
        HARMLESS,
    ] = InputOptions.start_column
    end_column: Annotated[
        str | None,
        _option(
            metavar="NAME",
            help="Column of the input tables that says where in the medium a row's question ends.",
            show_default="the end",
        ),
        HARMLESS,
    ] = InputOptions.end_column
    keep_columns: Annotated[
        str | None,
        _option(
            metavar="A,B|all",
            help="Columns of the input tables to copy to the output: names with commas, or all.",
            show_default="none",
        ),
        HARMLESS,
    ] = None
    fetch_timeout: Annotated[
        float,
        _option(
            parser=parse_time,
            metavar="TIME",
            help="Time after which the download of a remote file is given up.",
            show_default=f"{FetchOptions.timeout / 60:g}m",
        ),
    ] = FetchOptions.timeout
    cache_dir: Annotated[
        Path | None,
        _option(
            metavar="FOLDER",
            help="Folder for downloaded files, which are kept while they are needed.",
            show_default="~/.cache/llava-mini/fetched",
        ),
    ] = FetchOptions.cache_dir
    cache_size: Annotated[
        int,
        _option(
            parser=parse_size,
            metavar="SIZE",
            help="Disk space that downloaded files may take at one time.",
            show_default=f"{FetchOptions.cache_bytes // GIB}GB",
        ),
    ] = FetchOptions.cache_bytes
    max_file_size: Annotated[
        int | None,
        _option(
            parser=parse_size,
            metavar="SIZE",
            help="Size of the largest file that is downloaded, unpacked or piped in.",
            show_default="--cache-size",
        ),
    ] = FetchOptions.max_file_bytes
    media_root: Annotated[
        str | None,
        _option(
            metavar="FOLDER",
            help="Folder that the local files must lie in which tables and lists name, links followed. What is typed "
            "as MEDIA may lie anywhere.",
            show_default="anywhere",
        ),
    ] = InputOptions.media_root
    hosts: Annotated[
        list[str] | None,
        _option(
            metavar="GLOB",
            help="Pattern of the servers that URLs in tables and lists, and all redirects, may lead to: "
            "'*.example.org', 'example.org:8080', a bucket as 's3://photos', the hub as 'huggingface.co'; may be "
            "repeated. A URL that is typed as MEDIA may begin anywhere.",
            show_default="anywhere",
        ),
    ] = None
    netrc: Annotated[
        bool,
        _option(help="Passwords in ~/.netrc are sent to servers that tables and lists name, too."),
    ] = FetchOptions.netrc

    def options(self) -> InputOptions:
        """The options of inputs, checked. Raises `UsageError`."""
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
            start_column=self.start_column,
            end_column=self.end_column,
            media_root=self.media_root,
        )

    def fetch_options(self) -> FetchOptions:
        """The options of downloads, checked. Raises `UsageError`, and `OutputError` for a folder that cannot be had."""
        from llava_mini_cli.formats.disk import check_folder
        from llava_mini_cli.formats.fetch.hosts import check_patterns

        if self.cache_dir is not None:
            check_folder(self.cache_dir)
        hosts = tuple(host.strip() for each in self.hosts or () for host in each.split(","))
        check_patterns(hosts)
        return FetchOptions(
            timeout=self.fetch_timeout,
            cache_dir=self.cache_dir,
            cache_bytes=self.cache_size,
            max_file_bytes=self.max_file_size,
            hosts=hosts,
            netrc=self.netrc,
        )
