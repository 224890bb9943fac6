"""The end of a run in words and in JSON: counts, the media that failed, settings.

Words go to stderr: tables at a terminal, plain lines elsewhere. The JSON is for whoever started the run and did not
watch it, so it is written also when the run fails or is interrupted.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llava_mini_cli import __version__
from llava_mini_cli.commands.stderr import one_line, say, say_error
from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.outputs import rows_at
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import FailedMedium, Tally


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


def _show_failures(listed: list[FailedMedium]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("failed", "why", "", box=None, pad_edge=False, header_style="bold")
    for failed in listed:
        table.add_row(Text(one_line(failed.id)), Text(failed.error_type, style="red"), Text(one_line(failed.error)))
    Console(stderr=True, highlight=False).print(table)


@dataclass(frozen=True)
class SummaryFile:
    """Where the JSON goes. Checked before the run begins."""

    target: str  # a path, or - for standard output

    @classmethod
    def parse(cls, target: str | None, *, rows_on_stdout: bool) -> "SummaryFile | None":
        """From `--summary-json`. Raises `UsageError` where it cannot be written."""
        if target is None:
            return None
        if target == "-" and rows_on_stdout:
            raise UsageError("--summary-json -: standard output holds the rows; name a file, or give -o FILE")
        if target != "-" and not os.access(Path(target).parent, os.W_OK):
            raise UsageError(f"--summary-json '{target}': its folder cannot be written to")
        return cls(target)

    def write(self, summary: dict[str, Any]) -> None:
        """Writes it whole. Raises `OutputError`."""
        text = json.dumps(summary, ensure_ascii=False, indent=2) + "\n"
        if self.target == "-":
            print(text, end="", flush=True)
            return
        path = Path(self.target)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, "utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(f"cannot write '{self.target}': {error.strerror}") from error


def summary(
    tally: Tally, options: RunOptions, output: Path | None, began: datetime, *, exit_code: int, error: str | None
) -> dict[str, Any]:
    """The run as one JSON object. `error` is the line that ended it early, if one did."""
    now = datetime.now(UTC)
    return {
        "version": __version__,
        "exit_code": exit_code,
        "error": error and one_line(error),
        "stopped_by": tally.stopped_by,
        "began_at": began.isoformat(timespec="seconds"),
        "seconds": round((now - began).total_seconds(), 3),
        "media": tally.media,
        "media_failed": tally.media_failed,
        "media_skipped": tally.media_skipped,
        "rows_answered": tally.answered,
        "rows_failed": tally.failed,
        "rows_skipped": tally.skipped,
        "errors_skipped": tally.errors_skipped,
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
    stopped = {"limit": ", stopped by --limit", "max_failures": ", stopped by --max-failures", None: ""}
    there = f", {tally.skipped} were there" if tally.skipped else ""
    if tally.errors_skipped:
        there += f" ({tally.errors_skipped} failed; --retry-errors tries them again)"
    target = "" if output is None else f", written to {rows_at(output)}"
    say(f"llava-mini: {counts(tally)}{there}, {seconds:.1f} s{stopped[tally.stopped_by]}{target}")


def counts(tally: Tally, total: int | None = None) -> str:
    """Media, frames, answers and failures in words."""
    media = f"{tally.media}/{total} media" if total else f"{tally.media} media"
    return f"{media}, {tally.frames} frames, {tally.answered} answers, {tally.failed} failed"
