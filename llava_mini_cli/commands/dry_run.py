"""`--dry-run`: what a run would have to do. A table at a terminal, otherwise one JSON object."""

import json
import sys
from dataclasses import asdict
from typing import Any

from llava_mini_cli.commands.stderr import terminal_line
from llava_mini_cli.commands.times import in_words
from llava_mini_cli.formats.shown_text import for_json
from llava_mini_cli.pipelines.forecast import Forecast, RunTime


def show(found: Forecast, model: str = "MODEL") -> None:
    """Prints to standard output, since it is what was asked for."""
    if sys.stdout.isatty():
        _show_table(found, model)
    else:
        print(for_json(json.dumps(as_json(found), ensure_ascii=False)))


def as_json(found: Forecast) -> dict[str, Any]:
    """The fields, with the longest medium as an object."""
    return asdict(found) | {
        "video_s": round(found.video_s, 3),
        "unreadable": dict(found.unreadable.most_common()),
        "longest": found.longest and found.longest._asdict(),
        "time": found.time and _rounded(found.time),
    }


def _rounded(took: RunTime) -> dict[str, Any]:
    values = took._asdict()
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def _show_table(found: Forecast, model: str = "MODEL") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    for name, value in [*_lines(found), ("time", _time(found, model))]:
        table.add_row(name, Text(terminal_line(value)))
    Console().print(table)


def _lines(found: Forecast) -> list[tuple[str, str]]:
    remote = f", {found.not_looked_at:,} remote, not looked at" if found.not_looked_at else ""
    lines = [
        ("media", f"{found.media:,} ({found.images:,} images, {found.videos:,} videos{remote})"),
        ("rows to do", _rows(found)),
        ("rows already done", f"{found.rows_done:,}"),
        ("hours of video", _hours(found)),
        ("frames", f"{found.frames:,}"),
        ("vision tokens", "the model is not here" if found.vision_tokens is None else f"{found.vision_tokens:,}"),
    ]
    if found.weights_bytes is not None:
        lines.append(("memory of the model", _memory(found.weights_bytes)))
    if found.longest is not None and found.longest.memory_bytes is not None:
        longest = f"{_memory(found.longest.memory_bytes)} (frames: {found.longest.frames:,}, {found.longest.path})"
        lines.append(("memory of the longest", longest))
    if found.too_long:
        words = f"{found.too_long:,} media exceed the model's context; with --fit {found.frames_fit:,} frames in all"
        lines.append(("too long", words))
    if found.unreadable:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.unreadable.most_common())
        lines.append(("unreadable", kinds))
    return lines


def _rows(found: Forecast) -> str:
    if not found.unknown_scenes:
        return f"{found.rows:,}"
    return f"at least {found.rows:,}; only decoding tells how many scenes {found.unknown_scenes:,} videos have"


def _time(found: Forecast, model: str) -> str:
    """How long the run takes, and what is assumed."""
    if found.vision_tokens is None:
        return "the model is not here"
    if found.unknown_scenes:
        return "not known; it depends on how many scenes there are"
    if found.time is None:
        return f"not known; llava-mini doctor -m {model} measures the model on this machine"
    took = found.time
    remote = ", without what is remote" if found.not_looked_at else ""
    written = f" if each has {took.new_tokens:,} tokens" if took.new_tokens else ""
    evidence = ", without the evidence" if found.evidence else ""
    return (
        f"at most {in_words(took.total)} in {took.format}: loading {in_words(took.load)}, frames "
        f"{in_words(took.frames)}, answers {in_words(took.answers)}{written}{evidence}{remote}"
    )


def _hours(found: Forecast) -> str:
    unknown = f", and {found.unknown_length:,} videos of unknown length" if found.unknown_length else ""
    return f"{found.video_s / 3600:,.2f}{unknown}"


def _memory(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
