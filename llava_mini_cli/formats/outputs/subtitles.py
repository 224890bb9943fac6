"""Answers about the stretches of a video as one file of subtitles for each question: SRT, WebVTT or TSV.

A file stands where a caption's would (`text_files`) and is written whole, once every stretch has its answer. Where
stretches overlap, SRT and WebVTT show the later one from its beginning on; TSV keeps the times that were asked about.

SRT has no standard. What its readers take for marks of their own is written with other characters; WebVTT has escapes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from llava_mini_cli.config import Existing, SubtitleFormat
from llava_mini_cli.formats.outputs.text_files import SidecarOutput, Work, work_of
from llava_mini_cli.formats.row import Row, one_line
from llava_mini_cli.formats.shown_text import without_controls

LINE = 42  # characters, after which a line is wrapped: what broadcasters take
_ARROW = re.compile("-+>")  # what stands between two times
_SRT_TAG = re.compile(r"<(\s*/?\s*[A-Za-z][^<>]*)>")
_SRT_BRACES = str.maketrans("{}", "()")  # readers turn files into ASS, where braces hide what is in them
_BACKSLASH = "\\", "\\\u2060"  # with a joiner behind it: in ASS \N is a new line
_VTT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Cue(NamedTuple):
    """One subtitle."""

    start: int  # milliseconds
    end: int
    text: str  # one line


@dataclass
class _Gathered:
    """What came of the rows of one file so far."""

    rows: int = 0
    is_broken: bool = False  # a stretch failed, and not for want of a frame
    cues: list[Cue] = field(default_factory=list[Cue])


class SubtitleOutput(SidecarOutput):
    """Subtitles in `a.srt` for `a.mp4`; with several questions about a medium in `a.NAME.srt`."""

    def __init__(self, folder: Path | None, existing: Existing, format: SubtitleFormat) -> None:
        """`folder`: None writes beside the media, where no run locks another one out."""
        super().__init__(folder, existing, format)
        self._format: SubtitleFormat = format
        self._gathered: dict[Work, _Gathered] = {}

    def write(self, row: Row) -> None:
        """Writes a file when the last of its rows comes; none if a stretch failed. Raises `OutputError`.

        A stretch without a frame leaves a gap.
        """
        if row.start is None:  # the medium was never opened
            return
        work = work_of(row)
        gathered = self._gathered.setdefault(work, _Gathered())
        gathered.rows += 1
        if row.text is not None:
            start, end = round(row.start * 1000), round((row.start if row.end is None else row.end) * 1000)
            gathered.cues.append(Cue(start, end, one_line(without_controls(row.text))))
        elif row.error_type != "empty":
            gathered.is_broken = True
        if gathered.rows < row.spans:
            return
        del self._gathered[work]
        if not gathered.is_broken:
            self.write_text(work, subtitles(gathered.cues, self._format))


def subtitles(cues: Sequence[Cue], format: SubtitleFormat) -> str:
    """The text of a file with these cues, in order of their times."""
    cues = sorted(cues)
    if format == "tsv":
        return "".join(["start\tend\ttext\n", *(f"{start}\t{end}\t{text}\n" for start, end, text in cues)])
    blocks: list[str] = []
    for number, (start, end, text) in enumerate(cues):
        if number + 1 < len(cues):
            end = min(end, cues[number + 1].start)
        if end > start and text:
            blocks.append(_block(Cue(start, end, text), len(blocks) + 1, format))
    return "\n".join((["WEBVTT\n"] if format == "vtt" else []) + blocks)


def _block(cue: Cue, number: int, format: SubtitleFormat) -> str:
    point = "," if format == "srt" else "."
    text = _ARROW.sub("\u2192", cue.text).replace(*_BACKSLASH)
    if format == "srt":
        lines = _wrapped(_SRT_TAG.sub("\u2039\\1\u203a", text).translate(_SRT_BRACES))
    else:
        lines = [line.translate(_VTT_ESCAPES) for line in _wrapped(text)]
    times = f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}"
    return "\n".join([*([str(number)] if format == "srt" else []), times, *lines]) + "\n"


def _wrapped(text: str) -> list[str]:
    """Lines of which the last is no number by itself, which readers would take for that of the next subtitle."""
    lines = wrap(text, LINE)
    return [*lines[:-2], " ".join(lines[-2:])] if lines[-1].isdecimal() else lines


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{rest:03}"
