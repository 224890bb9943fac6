"""When something holds, as one file for each question about each video: subtitles (SRT, WebVTT, TSV), or an EDL.

A file stands where a caption's would (`text_files`). It is written also where the question never holds, without a
single entry: so a later run knows that the video was looked at. An EDL is CMX3600: an event for each stretch, cut from
the video and put one behind the other.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from llava_mini_cli.config import AnyFormat, Existing
from llava_mini_cli.formats.outputs.subtitles import Cue, subtitles
from llava_mini_cli.formats.outputs.text_files import SidecarOutput, work_of
from llava_mini_cli.formats.row import Row, one_line
from llava_mini_cli.formats.shown_text import without_controls

_NO_REEL = re.compile(r"[^A-Z0-9]+")
_HOURS = 24  # after which a timecode begins anew


class EventFiles(SidecarOutput):
    """Events in `a.srt` or `a.edl` for `a.mp4`; with several questions about a video in `a.NAME.srt`."""

    def __init__(self, folder: Path | None, existing: Existing, format: AnyFormat, rate: float) -> None:
        """Args:
        folder: None writes beside the media, where no run locks another one out.
        rate: frames a second of an EDL's timecodes.
        """
        super().__init__(folder, existing, format)
        self._format: AnyFormat = format
        self._rate = rate

    def write_answer(self, rows: Sequence[Row]) -> None:
        """Writes the file of a question; none where it failed. Raises `OutputError`."""
        if rows[0].status == "error":
            return
        held = [row for row in rows if row.start is not None]
        text = edl(rows[0], held, self._rate) if self._format == "edl" else self._subtitles(held)
        self.write_text(work_of(rows[0]), text)

    def _subtitles(self, rows: Sequence[Row]) -> str:
        cues = [Cue(*_milliseconds(row), _line(row.prompt_name or row.prompt)) for row in rows]
        assert self._format in ("srt", "vtt", "tsv")
        return subtitles(cues, self._format)


def edl(about: Row, rows: Sequence[Row], rate: float) -> str:
    """A CMX3600 list of the stretches of one video, in order.

    Args:
        about: one of the question's rows.
        rate: frames a second. Timecodes count whole frames, and never leave a number out.
    """
    name = Path(_line(about.file_name)).name
    reel = _NO_REEL.sub("", Path(name).stem.upper())[:8] or "AX"
    title = _line(f"{about.prompt_name or about.prompt} - {name}")
    lines = [f"TITLE: {title[:70]}", "FCM: NON-DROP FRAME", ""]
    record = 0
    for number, row in enumerate(rows, 1):
        first, last = (round(time * rate) for time in (row.start or 0.0, row.end or 0.0))
        last = max(last, first + 1)
        times = (first, last, record, record + last - first)
        record = times[3]
        lines.append(f"{number:03}  {reel:8} V     C        {' '.join(timecode(one, rate) for one in times)}")
        lines.append(f"* FROM CLIP NAME: {name}")
        lines.append(f"* COMMENT: P(YES) MEAN {row.kept['p_mean']:.3f} PEAK {row.kept['p_peak']:.3f}")
    return "\n".join(lines) + "\n"


def timecode(frame: int, rate: float) -> str:
    """A number of frames as hours, minutes, seconds and frames; without drop frames, so that 29.97 counts by 30."""
    seconds, frames = divmod(frame, max(1, round(rate)))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours % _HOURS:02}:{minutes:02}:{seconds:02}:{frames:02}"


def _milliseconds(row: Row) -> tuple[int, int]:
    start, end = (round(1000 * (time or 0.0)) for time in (row.start, row.end))
    return start, max(end, start + 1)


def _line(text: str) -> str:
    return one_line(without_controls(text))
