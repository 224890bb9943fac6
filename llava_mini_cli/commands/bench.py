"""`llava-mini bench`: the paper's tables of efficiency, measured on this machine."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llava_mini_cli.commands.flags.bench_flags import BenchFlags, ReportFormat
from llava_mini_cli.commands.flags.talk_flags import TalkFlags
from llava_mini_cli.commands.stderr import hush_libraries, say, terminal_line
from llava_mini_cli.needs import MODEL_PACKAGES, PLOT, check_packages

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from llava_mini_cli.bench.report import Report, Table

ROOMY = 100  # columns of a terminal that has room for two spaces between columns
LONGEST = 40  # characters of a cell that is not wrapped


def bench(flags: BenchFlags, talk: TalkFlags) -> int:
    """Measure how fast a model is on this machine, beside LLaVA-1.5 and the paper.

    With --preset the model has the shape of a real one and random weights,
    so nothing is downloaded; it is made in memory. At a terminal the report
    is a table for each figure, otherwise JSON.
    """
    options, target = flags.options(), flags.target()
    hush_libraries(verbose=talk.verbose)
    from llava_mini_cli.formats.disk import check_target

    if target is not None:
        check_target(target[0])
        if target[1] != "json":
            PLOT.check(f"--output '{target[0]}'")
    check_packages(MODEL_PACKAGES)
    from llava_mini_cli.bench.run import bench as measure

    report = measure(options, flags.preset, _quiet if talk.quiet else _tell)
    if target is not None:
        _write(report, *target)
        if not talk.quiet:
            say(f"llava-mini: the report is in {target[0]}")
    elif flags.output == "-" or not sys.stdout.isatty():
        print(_json(report), end="")
    else:
        _show(report)
    return 0


def _tell(line: str) -> None:
    say(f"llava-mini: {line}")


def _quiet(_: str) -> None:
    return


def _json(report: "Report") -> str:
    return json.dumps(report.whole(), indent=2, ensure_ascii=False) + "\n"


def _write(report: "Report", path: Path, format: ReportFormat) -> None:
    from llava_mini_cli.bench.pages import markdown, page
    from llava_mini_cli.bench.plots import svg_of
    from llava_mini_cli.formats.disk import write_file

    if format == "json":
        write_file(path, _json(report).encode())
        return
    charts = {chart.title: (table.name, svg_of(chart)) for table in report.tables for chart in table.charts}
    if format == "html":
        write_file(path, page(report, {title: drawn for title, (_, drawn) in charts.items()}).encode())
        return
    files = {title: f"{path.stem}-{name}.svg" for title, (name, _) in charts.items()}
    for title, (_, drawn) in charts.items():
        write_file(path.with_name(files[title]), drawn)
    write_file(path, markdown(report, files).encode())


def _show(report: "Report") -> None:
    """Tables for a person, with what they mean under each."""
    from rich.console import Console
    from rich.text import Text

    console = Console()  # honours NO_COLOR and TERM=dumb
    width = max(len(key) for key in report.facts)
    for key, value in report.facts.items():
        told = "not known" if value is None else str(value)
        console.print(Text(f"{key.replace('_', ' '):<{width}}  {terminal_line(told)}"))
    for table in report.tables:
        console.print()
        console.print(Text(table.title, style="bold"))
        if table.records:
            console.print(_rich_table(table, 1 if console.width < ROOMY else 2))
        for note in table.notes:
            console.print(Text(note, style="dim"))


def _rich_table(table: "Table", gap: int) -> object:
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    rows = list(table.cells())
    for column, cells in zip(table.columns, zip(*rows, strict=True), strict=True):
        justify = "right" if table.is_number(column) else "left"
        width = min(LONGEST, max(map(len, cells)))  # titles are wrapped sooner than cells
        made.add_column(column.title, justify=justify, vertical="bottom", min_width=width)
    for row in rows:
        made.add_row(*map(Text, row))
    return made
