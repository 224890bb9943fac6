"""Where a model's layers use vision, as files of a folder: tables in CSV, plots, and one self-contained web page."""

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llava_mini_cli.formats.disk import errors_of, write_own_file
from llava_mini_cli.formats.inspected import PAGE, Inspected, Section, Shown, page
from llava_mini_cli.needs import PLOT

LAYERS, DROPS = "layers.csv", "drops.csv"
_STYLES = {"instruction": "tab:blue", "vision": "tab:orange", "response": "tab:green"}


class LayerRow(NamedTuple):
    """The attention of a layer from tokens of one kind to those of another; None where there are none."""

    layer: int  # from 1
    source: str  # instruction, vision or response; of the text only what stands behind the vision tokens
    target: str
    weight: float | None  # the share of the source's attention; those to all targets add up to 1
    entropy_within: float | None  # nats, of the weights on the target's tokens, as shares of their sum
    entropy: float | None  # nats, of all weights of the source


class DropRow(NamedTuple):
    """What becomes of the answers where no other token sees the vision tokens in a span of layers."""

    first_layer: int
    last_layer: int
    questions: int
    answer_tokens: int
    log_likelihood: float  # of an answer's token, mean, nats
    log_likelihood_dropped: float
    same_tokens: float  # share of the answers' tokens that are still the likeliest where they stand


@dataclass(frozen=True)
class LayerReport:
    """What was found out about a model's layers."""

    path: str
    pictures: int
    questions: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    drops: tuple[DropRow, ...]
    sections: tuple[Section, ...]  # pictures that are made already


def write_layer_report(report: LayerReport, folder: Path) -> None:
    """Writes everything into a folder, which is made. Raises `OutputError`, and `UsageError` without matplotlib."""
    plots = Section("Plots", "", tuple(_plots(report)), is_large=True)
    extent = f"{_counted(len(report.questions), 'question')} about {_counted(report.pictures, 'picture')}"
    sections = (plots, *report.sections)
    shown = Inspected(report.path, extent, "; ".join(report.questions), None, None, sections, {}, ())
    with errors_of(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_own_file(folder / LAYERS, _table(LayerRow._fields, report.layers))
    write_own_file(folder / DROPS, _table(DropRow._fields, report.drops))
    for section in sections:
        for picture in section.pictures:
            write_own_file(folder / picture.name, picture.png)
    write_own_file(folder / PAGE, page(shown))


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _table(names: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _plots(report: LayerReport) -> Iterable[Shown]:
    figures = PLOT.load("--layers", "matplotlib.figure")
    yield _plot(figures, "attention.png", "Attention by kind of token", partial(_attention, report))
    yield _plot(figures, "entropy.png", "Entropy of the attention", partial(_entropy, report))
    yield _plot(figures, "drops.png", "Answers where layers do not see vision", partial(_drops, report))


def _plot(figures: Any, name: str, title: str, draw: Callable[[Any], None]) -> Shown:
    figure = figures.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Shown(name, buffer.getvalue(), title)


def _attention(report: LayerReport, axes: Any) -> None:
    for source, line in (("instruction", "--"), ("response", "-")):
        for target, colour in _STYLES.items():
            rows = [row for row in report.layers if (row.source, row.target) == (source, target)]
            if any(row.weight for row in rows):
                values = [row.weight for row in rows]
                axes.plot(
                    [row.layer for row in rows], values, line, color=colour, marker=".", label=f"{source} to {target}"
                )
    axes.set(xlabel="layer", ylabel="share of the attention", ylim=(0, 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small")


def _entropy(report: LayerReport, axes: Any) -> None:
    for source, colour in _STYLES.items():
        rows = [row for row in report.layers if (row.source, row.target) == (source, source)]
        if any(row.entropy is not None for row in rows):
            axes.plot(
                [row.layer for row in rows], [row.entropy for row in rows], color=colour, marker=".", label=source
            )
    axes.set(xlabel="layer", ylabel="nats", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(title="from", fontsize="small")


def _drops(report: LayerReport, axes: Any) -> None:
    bounds = [(row.first_layer, row.last_layer) for row in report.drops]
    names = [f"{first}" if first == last else f"{first}-{last}" for first, last in bounds]
    axes.bar(range(len(names)), [row.log_likelihood_dropped - row.log_likelihood for row in report.drops])
    axes.set_xticks(range(len(names)), names, rotation=45)
    axes.set(xlabel="layers that do not see vision tokens", ylabel="change of log-likelihood a token")
    axes.axhline(0, color="black", linewidth=0.8)
