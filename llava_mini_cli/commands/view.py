"""`llava-mini view OUTPUT`: rows to look at, as a page in a browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.flags.view_flags import ViewFlags
from llava_mini_cli.commands.stderr import hush_libraries, say, say_warning
from llava_mini_cli.errors import UsageError

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.view.media import MediaPlaces
    from llava_mini_cli.view.table import RowTable

Rows = Annotated[
    str,
    typer.Argument(
        metavar="OUTPUT",
        help="Rows that llava-mini wrote: a .parquet, .jsonl or .csv file, a folder of parts, an archive.",
    ),
]


def view(rows: Rows, *, flags: ViewFlags, talk: TalkFlags) -> int:
    """Look at the rows of an output in a browser.

    Serves a page on this machine until Ctrl-C, also while a run goes on; with -o writes one that opens from disk.
    """
    hush_libraries(verbose=talk.verbose)
    from llava_mini_cli.formats.disk import check_folder
    from llava_mini_cli.needs import VIEW
    from llava_mini_cli.paths import is_folder

    target = None if flags.output is None else Path(flags.output)
    if flags.media is not None and not is_folder(flags.media):
        raise UsageError(f"--media: '{flags.media}' is not a folder")
    if target is not None:
        check_folder(target)
    VIEW.load("view", "duckdb")
    from llava_mini_cli.view.media import MediaPlaces
    from llava_mini_cli.view.sources import open_rows
    from llava_mini_cli.view.table import RowTable
    from llava_mini_cli.view.write_page import PAGE, check_page_folder, write_page

    found = open_rows(Path(rows))
    track = None if flags.track is None else open_rows(Path(flags.track))
    places = MediaPlaces(found.folder, None if flags.media is None else Path(flags.media))
    title = Path(rows).absolute().name or rows
    if target is not None:
        check_page_folder(target, overwrite=flags.overwrite)
    with RowTable(found, track) as table:
        if target is None:
            return _serve(table, places, title, flags, talk)
        table.refresh()
        table.check()
        written = write_page(table, places, target, title)
        for path, why in table.unread.items():
            say_warning(f"'{path}' cannot be read: {why}")
        if not talk.quiet:
            say(f"llava-mini: {written:,} rows written to {target / PAGE}")
    return 0


def _serve(table: "RowTable", places: "MediaPlaces", title: str, flags: ViewFlags, talk: TalkFlags) -> int:
    from llava_mini_cli.view.serve import serve

    def ready(address: str) -> None:
        print(address, flush=True)
        if not talk.quiet:
            say("llava-mini: served to whoever has this address, on this machine, until Ctrl-C")

    serve(table, places, title, flags.port or 0, ready)
    return 0
