"""`llava-mini search ARCHIVE TEXT`: moments of an archive that a text or a picture describes."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_mini_cli.commands.flags.model_flags import MovedModel
from llava_mini_cli.commands.flags.search_flags import MARGIN, FoundFlags, SearchFlags
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.run import EXIT_ITEMS_FAILED
from llava_mini_cli.commands.stderr import KNOWN_TO_DEMO, hush_libraries, say, say_error, say_warning, terminal_line
from llava_mini_cli.config import MomentFormat
from llava_mini_cli.errors import OutputError, UsageError

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.formats.archive.moments import Moment
    from llava_mini_cli.formats.archive.reader import Archive

ArchiveArgument = Annotated[str, typer.Argument(metavar="ARCHIVE", help="Folder that llava-mini index made.")]
Text = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="Description of the moments to find, worded like a caption.")
]


def search(
    archive: ArchiveArgument,
    text: Text = None,
    model: MovedModel = None,
    *,
    flags: SearchFlags,
    found: FoundFlags,
    talk: TalkFlags,
) -> int:
    """Find moments in an archive.

    At a terminal the moments are a table, otherwise one JSON line for each.
    """
    if text is None and flags.image is None:
        raise UsageError("there is nothing to look for: llava-mini search ARCHIVE TEXT, or --image FILE")
    if text is not None and not text.strip():
        raise UsageError("the text to look for is empty")
    if found.paths_only and found.output is not None:
        raise UsageError("--paths-only prints to standard output and takes no -o")
    hush_libraries(verbose=talk.verbose)
    from llava_mini_cli.formats.archive.moments import format_of
    from llava_mini_cli.formats.archive.reader import open_archive
    from llava_mini_cli.formats.disk import check_folder, check_target
    from llava_mini_cli.formats.media_root import roots_of
    from llava_mini_cli.needs import ANN, MODEL_PACKAGES, check_packages
    from llava_mini_cli.pipelines.find import find
    from llava_mini_cli.pipelines.search_archive import SearchOptions

    target = None if found.output is None or found.output == "-" else Path(found.output)
    format, roots = format_of(target, found.format), roots_of(found.media_root)
    options = SearchOptions(flags.most, flags.min_score, flags.path, flags.after, flags.before, flags.approximate)
    for place in (target, found.html and Path(found.html)):
        if place:
            check_target(place)
    if found.thumbnails is not None:
        check_folder(Path(found.thumbnails))
    check_packages(MODEL_PACKAGES)
    if flags.approximate:
        ANN.load("--approximate", "faiss")
    with open_archive(Path(archive)) as opened:
        if not talk.quiet and (model or opened.header.model) == "demo":
            say(KNOWN_TO_DEMO)
        moments = find(opened, text, flags.image, options, model)
        failed = 0
        if flags.check is not None:
            moments, failed = _check(opened, moments, flags.check, flags, model, roots)
        if opened.recall is not None and not talk.quiet:
            say(
                f"llava-mini: approximate: {opened.recall:.1%} of the nearest 10 frames are found, as measured by --ann"
            )
        _write(moments, found, target, format)
        pictures_missing = _pictures(moments, found, " + ".join(filter(None, (text, flags.image))), roots)
        return _exit_code(opened, is_incomplete=pictures_missing or failed > 0)


def _check(
    archive: "Archive",
    moments: "Sequence[Moment]",
    question: str,
    flags: SearchFlags,
    model: str | None,
    roots: tuple[str, ...],
) -> "tuple[Sequence[Moment], int]":
    """The moments in the order of the model's own yes, and how many it could not look at."""
    from llava_mini_cli.pipelines.check import check
    from llava_mini_cli.pipelines.interrupt import Interrupts

    with Interrupts() as interrupts:
        margin = MARGIN if flags.check_margin is None else flags.check_margin
        checked, failed = check(archive, moments, question, model, interrupts, margin, roots)
    for row in failed:
        say_error(f"{row.source}: not checked: {row.error}")
    least = flags.min_yes
    return [m for m in checked if least is None or (m.p_yes is not None and m.p_yes >= least)], len(failed)


def _exit_code(archive: "Archive", *, is_incomplete: bool) -> int:
    from llava_mini_cli.commands.summary import say_damage

    say_damage(archive.folder, archive.damage)
    return EXIT_ITEMS_FAILED if archive.damage or is_incomplete else 0


def _write(moments: "Sequence[Moment]", found: FoundFlags, target: Path | None, format: MomentFormat) -> None:
    from llava_mini_cli.formats.archive.moments import write_moments
    from llava_mini_cli.formats.archive.reader import local_name

    if found.paths_only:
        end = "\0" if found.null else "\n"
        paths = dict.fromkeys(local_name(moment.path) for moment in moments)
        if sys.stdout.isatty():  # a person reads them; whatever else reads them gets them as they are
            paths = map(terminal_line, paths)
        sys.stdout.buffer.write(b"".join(os.fsencode(path + end) for path in paths))
    elif found.output is None and found.format is None and sys.stdout.isatty():
        _show(moments)
    else:
        write_moments(moments, target, format, csv_safe=found.csv_safe)


def _show(moments: "Sequence[Moment]") -> None:
    """A table for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llava_mini_cli.formats.timecodes import clock

    table = Table(box=None, pad_edge=False)
    for name in ("score", "time", "span"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("file", overflow="fold")
    checked = any(moment.p_yes is not None for moment in moments)
    if checked:
        table.add_column("yes", justify="right")
    captioned = any(moment.caption for moment in moments)
    if captioned:
        table.add_column("caption")
    for moment in moments:
        if moment.time is None or moment.start is None or moment.end is None:
            times = ("", "")
        else:
            times = (clock(moment.time), f"{clock(moment.start)}-{clock(moment.end)}")
        row = [f"{moment.score:.3f}", *times, Text(terminal_line(moment.path))]
        if checked:
            row.append("" if moment.p_yes is None else f"{moment.p_yes:.2f}")
        table.add_row(*row, *([Text(terminal_line(moment.caption or ""))] if captioned else []))
    Console().print(table)  # honours NO_COLOR and TERM=dumb


def _pictures(moments: "Sequence[Moment]", found: FoundFlags, query: str, roots: tuple[str, ...]) -> bool:
    """Writes thumbnails and the page, where asked for. True if a picture could not be made."""
    if found.thumbnails is None and found.html is None:
        return False
    from llava_mini_cli.formats.disk import write_file, write_own_file
    from llava_mini_cli.pipelines.pictures import picture_name, pictures
    from llava_mini_cli.view.moments_page import moments_page

    made: list[bytes | None] = []
    for moment, picture in zip(moments, pictures(moments, roots), strict=True):
        made.append(picture if isinstance(picture, bytes) else None)
        if isinstance(picture, str):
            say_warning(f"{moment.path}: no picture: {picture}")
        elif found.thumbnails is not None:
            write_own_file(_folder(found.thumbnails) / picture_name(moment), picture)
    if found.html is not None:
        write_file(Path(found.html), moments_page(moments, made, query))
    return None in made


def _folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write '{folder}': {error.strerror}") from error
    return folder
