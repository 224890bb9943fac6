"""Answers for a person at a terminal: one answer as plain text, several as a block each.

Writers as in `formats.outputs`, for rows that go to no file.
"""

from collections.abc import Sequence
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from llava_mini_cli.commands.reporter import Reporter
from llava_mini_cli.commands.stderr import terminal_line
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.output import Output
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.shown_text import for_terminal


class _TerminalWriter(Output):
    """A writer of answers to the terminal, which holds no file."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(Done())
        self._reporter = reporter


class PlainWriter(_TerminalWriter):
    """The answer and nothing else, for one prompt about one medium."""

    def write(self, row: Row) -> None:
        """Prints the text of an answer; a failure was said on stderr."""
        if row.status == "ok":
            with self._reporter.aside():
                print(for_terminal(_said(row)), flush=True)


class BlockWriter(_TerminalWriter):
    """A heading for each medium, and each answer under its question."""

    def __init__(self, reporter: Reporter, prompt_count: int) -> None:
        super().__init__(reporter)
        self._prompt_count = prompt_count
        self._console = Console()  # honours NO_COLOR and TERM=dumb
        self._last: str | None = None

    def write(self, row: Row) -> None:
        """Prints one block; a failure was said on stderr."""
        if row.status != "ok":
            return
        with self._reporter.aside():
            if row.id != self._last:
                if self._last is not None:
                    self._console.print()
                self._console.print(Text(terminal_line(row.id), style="bold"))
            self._last = row.id
            heading = terminal_line(row.prompt_name or row.prompt) if self._prompt_count > 1 else ""
            if row.segment is not None and row.start is not None:
                heading = " ".join(filter(None, (_stretch(row.start, row.end), heading)))
            if heading:
                self._console.print(Text(f"  {heading}", style="cyan"))
            indent = "    " if heading else "  "
            for line in for_terminal(_said(row)).splitlines() or [""]:
                self._console.print(Text(indent + line))


class EventWriter(_TerminalWriter):
    """A line for each stretch in which a question holds, under its medium and its question."""

    def __init__(self, reporter: Reporter, prompt_count: int, *, single: bool) -> None:
        super().__init__(reporter)
        self._asks_several = prompt_count != 1
        self._single = single  # one question about one medium
        self._console = Console()
        self._last: str | None = None

    def write_answer(self, rows: Sequence[Row]) -> None:
        """Prints one question's stretches; a failure was said on stderr."""
        first = rows[0]
        if first.status != "ok":
            return
        with self._reporter.aside():
            if not self._single and first.id != self._last:
                self._console.print(Text(terminal_line(first.id), style="bold"))
            self._last = first.id
            if self._asks_several:
                self._console.print(Text(f"  {terminal_line(first.prompt_name or first.prompt)}", style="cyan"))
            for row in rows:
                self._console.print(Text(("" if self._single else "    ") + _held(row)))


def _held(row: Row) -> str:
    """One stretch, or that there is none."""
    mean, peak, moment = (row.kept[name] for name in ("p_mean", "p_peak", "peak_at"))
    if row.segment is None:
        where = "" if moment is None else f" at {_clock(float(str(moment)))}"
        return f"never (yes: {peak:.2f} at most{where})"
    if row.start is None:
        return f"yes (yes: {peak:.2f})"
    return f"{_stretch(row.start, row.end)} (yes: {mean:.2f}, {peak:.2f} at most)"


def _stretch(start: float, end: float | None) -> str:
    """A stretch of a video as a clock shows it: `0:30-1:00`."""
    return f"{_clock(start)}-{'' if end is None else _clock(end)}"


def _clock(time: float) -> str:
    tenths = round(time * 10)
    minutes, seconds = divmod(tenths / 10, 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{seconds:02.0f}" if tenths % 10 == 0 else f"{seconds:04.1f}"
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def _said(row: Row) -> str:
    """The answer, how likely it is of the choices if there were some, and how likely yes is where that was asked."""
    text = row.text or ""
    if row.choice is not None and row.choice_probs is not None:
        text = f"{text} ({row.choice_probs[row.choice]:.2f})"
    text = text if row.p_yes is None else f"{text} (yes: {row.p_yes:.2f})"
    return "\n".join([text, *_evidence(row)])


def _evidence(row: Row) -> list[str]:
    """A line for each part that carried the answer, and one for what it would be with no medium."""
    parts = cast("list[dict[str, Any]]", row.kept.get("evidence") or [])
    lines = [f"  {_part(part)}: {part['weight']:.2f}" for part in parts]
    seen, blind = row.kept.get("p_answer"), row.kept.get("p_blind")
    return [*lines, f"  likelihood {seen:.3g}, without the medium {blind:.3g}"] if seen is not None else lines


def _part(part: dict[str, Any]) -> str:
    if part["box"] is not None:
        return "box " + ", ".join(map(str, part["box"]))
    return _stretch(part["start"], part["end"])
