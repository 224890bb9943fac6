"""The end of a run in words and in JSON: counts, the media that failed, settings.

Words go to stderr: tables at a terminal, plain lines elsewhere. The JSON is for whoever started the run and did not
watch it, so it is written also when the run fails or is interrupted.
"""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_mini_cli import __version__
from llava_mini_cli.commands.stderr import say, say_error, terminal_line
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.disk import errors_of, write_file
from llava_mini_cli.formats.outputs.open_output import rows_at
from llava_mini_cli.formats.row import printable
from llava_mini_cli.formats.shown_text import for_json
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import FailedMedium, Tally

if TYPE_CHECKING:  # pyarrow comes with it, and most runs need none
    from llava_mini_cli.formats.archive.newest import Damage

_BROKEN = re.compile("[\ud800-\udfff]+")  # what stands for bytes that are no UTF-8


def say_failures(tally: Tally) -> None:
    """The media that failed, as many as the tally remembers, and how many more there are."""
    if sys.stderr.isatty() and len(tally.listed) > 1:
        _show_failures(tally.listed)
    else:
        for failed in tally.listed:
            say_error(f"{failed.id}: {failed.error}")
    more = tally.media_failed - len(tally.listed)
    if more:
        say_error(f"and {more} more failed")


def say_damage(archive: Path, damage: "list[Damage]") -> None:
    """The parts of an archive that could not be read."""
    for part in damage:
        say_error(f"{archive}: {part.file} is damaged and left out: {part.message}")


def _show_failures(listed: list[FailedMedium]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("failed", "why", "", box=None, pad_edge=False, header_style="bold")
    for failed in listed:
        name, why = Text(terminal_line(failed.id)), Text(terminal_line(failed.error))
        table.add_row(name, Text(failed.error_type, style="red"), why)
    Console(stderr=True).print(table)


@dataclass(frozen=True)
class SummaryFile:
    """The place of the JSON, checked before the run begins."""

    target: str  # a path, or - for standard output

    @classmethod
    def parse(cls, target: str | None, *, rows_on_stdout: bool) -> "SummaryFile | None":
        """From `--summary-json`. Raises `UsageError` where it cannot be written."""
        if target is None:
            return None
        if target == "-" and rows_on_stdout:
            raise UsageError("--summary-json -: standard output holds the rows; name a file, or give -o FILE")
        if target != "-":
            try:
                _check(Path(target))
            except OSError as error:
                raise UsageError(f"--summary-json '{target}': {(error.strerror or str(error)).lower()}") from None
        return cls(target)

    def write(self, summary: dict[str, Any]) -> None:
        """Writes it whole; behind a link, and into what is no regular file. Raises `OutputError`."""
        text = _as_json(summary)
        path = Path(self.target)
        if self.target == "-":
            print(text, end="", flush=True)
            return
        with errors_of(path):
            if _is_descriptor(path):
                with path.open("ab") as stream:  # what was said there stays
                    stream.write(text.encode())
            else:
                write_file(path if _is_special(path) else Path(os.path.realpath(path)), text.encode())


def _check(path: Path) -> None:
    """Raises `UsageError` where the JSON could not be written in the end, `OSError` where that cannot be told."""
    if path.is_dir():
        raise UsageError(f"--summary-json '{path}' is a folder; name a file")
    if _is_special(path) or _is_descriptor(path):
        if not os.access(path, os.W_OK):
            raise UsageError(f"--summary-json '{path}' cannot be written to")
    elif not os.access(Path(os.path.realpath(path)).parent, os.W_OK):
        raise UsageError(f"--summary-json '{path}': its folder cannot be written to")


def _is_special(path: Path) -> bool:
    """True if a pipe or a device is there. One such as `/dev/fd/63` is a link that leads to no path."""
    return path.exists() and not path.is_file()


def _is_descriptor(path: Path) -> bool:
    """True if a path stands for what is open already, such as `/dev/stderr`: a file there is not ours to replace."""
    parent = os.path.realpath(path.parent)
    return path.exists() and (parent == "/dev" or (parent.startswith("/proc/") and parent.endswith("/fd")))


def _as_json(summary: dict[str, Any]) -> str:
    """The text of a summary as valid UTF-8, whatever its paths hold."""
    text = json.dumps(summary, ensure_ascii=False, indent=2) + "\n"
    return for_json(_BROKEN.sub(lambda found: json.dumps(printable(found[0]), ensure_ascii=False)[1:-1], text))


def summary(
    tally: Tally, options: RunOptions, output: Path | None, began: datetime, *, exit_code: int, error: str | None
) -> dict[str, Any]:
    """The run as one JSON object. `error` is the line that ended it early, if one did."""
    now = datetime.now(UTC)
    return {
        "version": __version__,
        "exit_code": exit_code,
        "error": error and terminal_line(error),
        "stopped_by": tally.stopped_by,
        "weight_format": tally.weight_format,
        "began_at": began.isoformat(timespec="seconds"),
        "seconds": round((now - began).total_seconds(), 3),
        "media": tally.media,
        "media_failed": tally.media_failed,
        "media_skipped": tally.media_skipped,
        "rows_answered": tally.answered,
        **({} if tally.events is None else {"events": tally.events}),
        "rows_failed": tally.failed,
        "rows_failed_in_passing": tally.failed_in_passing,
        "rows_skipped": tally.skipped,
        "errors_skipped": tally.errors_skipped,
        "known_by_content": tally.known_by_content,
        "frames": tally.frames,
        "video_seconds": round(tally.video_s, 3),
        "failures": dict(tally.failures.most_common()),
        "failed": [failed._asdict() for failed in tally.listed],
        "output": None if output is None else str(output),
        "settings": {
            "model": asdict(options.model),
            "frames": asdict(options.sampling),
            "answer": asdict(options.generation),
            "limits": asdict(options.limits),
        },
    }


def say_counts(tally: Tally, seconds: float, output: Path | None) -> None:
    """One line: what was done, how quickly, and where it went."""
    there = f", {tally.skipped} were there{known_by_content(tally)}{failed_before(tally)}" if tally.skipped else ""
    target = "" if output is None else f", written to {rows_at(output)}"
    again = "" if output is None else tried_again(tally)
    say(f"llava-mini: {counts(tally)}{again}{there}, {seconds:.1f} s{stopped(tally)}{target}")


def known_by_content(tally: Tally) -> str:
    """How many of those that were there lie elsewhere now, or have another date, in brackets; nothing where none is."""
    return f" ({tally.known_by_content} known by content)" if tally.known_by_content else ""


def tried_again(tally: Tally) -> str:
    """The number of failures whose reason lay in the moment, in brackets; empty if there is none."""
    number = tally.failed_in_passing
    return f" ({number} will be tried again by the next run)" if number else ""


def failed_before(tally: Tally) -> str:
    """The number of failures among the rows that were there, in brackets; empty if there is none."""
    failed = tally.errors_skipped
    return f" ({failed} failed; --retry-errors tries them again)" if failed else ""


def stopped(tally: Tally) -> str:
    """The limit that ended the run, behind a comma; empty if none did."""
    return "" if tally.stopped_by is None else f", stopped by --{tally.stopped_by.replace('_', '-')}"


def counts(tally: Tally, total: int | None = None) -> str:
    """Media, frames, answers and failures in words."""
    media = f"{tally.media}/{total} media" if total else f"{tally.media} media"
    found = "" if tally.events is None else f", {tally.events} events"
    return f"{media}, {tally.frames} frames, {tally.answered} answers{found}, {tally.failed} failed"
