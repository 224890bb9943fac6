"""Pictures of how likely yes is along a video, with the stretches in which it holds: one PNG for each question.

matplotlib is imported when the first one is drawn.
"""

import os
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.disk import errors_of, write_own_file
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.outputs.text_files import SidecarOutput, work_of
from llava_mini_cli.formats.row import Row, one_line
from llava_mini_cli.formats.shown_text import without_controls
from llava_mini_cli.needs import PLOT
from llava_mini_cli.safe_files import make_own_folder, open_regular

_LONGEST_TITLE = 90  # characters
_SIGNED = b"Software\0llava-mini"  # in the beginning of a picture of ours
_HEAD = 1024  # bytes


class Curve(NamedTuple):
    """What is drawn."""

    starts: NDArray[np.float64]  # [n] seconds, where each probability begins to hold
    end: float
    probabilities: NDArray[np.float64]  # [n]
    stretches: list[tuple[float, float]]
    on: float
    off: float


class EventPlots(SidecarOutput):
    """Pictures in a folder: `a.png` for `a.mp4`; with several questions about a video `a.NAME.png`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "overwrite", "png")

    def expect(self, job: Job) -> None:
        """Settles the names of a job's pictures."""
        for question in job.questions:
            self._is_there(job, question)

    def save(self, row: Row, curve: Curve) -> None:
        """Draws what one question about one video came to; `row` is one of its rows. Raises `OutputError`."""
        target = self._targets[work_of(row)]
        picture = png_of(curve, _line(row.prompt), _line(row.file_name))
        with errors_of(target):
            for folder in self._folders_above(target):
                make_own_folder(folder)
            if os.path.lexists(target) and not _is_ours(target):
                raise OutputError(f"'{target}' was not drawn by llava-mini; name another folder with --plot")
        write_own_file(target, picture)


def _is_ours(target: Path) -> bool:
    """True for a picture that an earlier run drew."""
    with open(open_regular(target), "rb") as stream:  # noqa: PTH123
        return _SIGNED in stream.read(_HEAD)


def png_of(curve: Curve, question: str, name: str) -> bytes:
    """A picture as the bytes of a PNG, 1200 by 360 pixels."""
    figures: Any = PLOT.load("--plot", "matplotlib.figure")
    figure = figures.Figure(figsize=(12, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for number, (start, end) in enumerate(curve.stretches):
        axes.axvspan(start, end, color="tab:green", alpha=0.25, label=None if number else "holds")
    axes.stairs(curve.probabilities, [*curve.starts, curve.end], baseline=None, color="tab:blue", label="P(yes)")
    axes.axhline(curve.on, color="tab:grey", linestyle="--", linewidth=1, label=f"on {curve.on:g}")
    axes.axhline(curve.off, color="tab:grey", linestyle=":", linewidth=1, label=f"off {curve.off:g}")
    axes.set(xlim=(curve.starts[0], curve.end), ylim=(-0.03, 1.03), xlabel="time", ylabel="P(yes)")
    axes.xaxis.set_major_formatter(_clock)
    axes.set_title(_plain(question), loc="left", fontsize=11)
    axes.set_title(_plain(name), loc="right", fontsize=8, color="tab:grey")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    stream = BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": "llava-mini"})
    return stream.getvalue()


def _clock(seconds: float, _: object = None) -> str:
    minutes, seconds = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    shown = f"{seconds:04.1f}".removesuffix(".0")
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def _plain(text: str) -> str:
    """A text that is shown as it is: a dollar sign would begin a formula."""
    text = text if len(text) <= _LONGEST_TITLE else f"{text[: _LONGEST_TITLE - 3]}..."
    return text.replace("$", r"\$")


def _line(text: str) -> str:
    return one_line(without_controls(text))
