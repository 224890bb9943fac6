"""Charts of a report as SVG, legible on light and dark ground. matplotlib is imported when the first one is drawn."""

from io import BytesIO
from typing import Any, cast

from llava_mini_cli.bench.report import Chart
from llava_mini_cli.needs import PLOT

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")
INK = "#808080"  # of texts and axes: contrast enough on white and on black
SIZE = (8.0, 3.8)  # inches


def svg_of(chart: Chart) -> bytes:
    """A chart as the bytes of an SVG file without a background.

    Raises:
        UsageError: matplotlib is not installed, or cannot be used.
    """
    figures: Any = PLOT.load("a report with plots", "matplotlib.figure")
    figure = figures.Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    (_lines if chart.kind == "lines" else _bars)(axes, chart)
    axes.set_title(chart.title, color=INK)
    axes.set_xlabel(chart.x, color=INK)
    axes.set_ylabel(chart.y, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=INK, alpha=0.25)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    if len(chart.series) + len(chart.marks) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize="small")
    drawn = BytesIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()


def _bars(axes: Any, chart: Chart) -> None:
    """Series on top of each other, each place a bar with its sum above it."""
    places = range(len(chart.places))
    sums = [0.0] * len(chart.places)
    for (name, values), colour in zip(chart.series.items(), COLOURS, strict=False):
        heights = [value or 0.0 for value in values]
        axes.bar(places, heights, 0.6, bottom=list(sums), label=name, color=colour)
        sums = [before + height for before, height in zip(sums, heights, strict=True)]
    for place, whole in zip(places, sums, strict=True):
        axes.annotate(f"{whole:,.3g}", (place, whole), (0, 3), textcoords="offset points", ha="center", color=INK)
    axes.set_xticks(list(places), [str(place) for place in chart.places], fontsize="small")


def _lines(axes: Any, chart: Chart) -> None:
    """Series over numbers, both axes logarithmic."""
    places = cast("list[float]", list(chart.places))
    for (name, values), colour in zip(chart.series.items(), COLOURS, strict=False):
        axes.plot(places, values, "o-", label=name, color=colour)
    for name, height in chart.marks.items():
        axes.axhline(height, linestyle="--", label=name, color=COLOURS[-1])
    axes.set(xscale="log", yscale="log")
