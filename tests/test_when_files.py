"""When something holds, as subtitles and as an EDL: read back by pysubs2, ffmpeg and OpenTimelineIO."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import opentimelineio as otio
import pysubs2
import pytest
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini

from llava_mini_cli.formats.outputs.event_files import edl, timecode
from llava_mini_cli.formats.row import Row

engines = pytest.fixture(autouse=True)(echo_engines)
ROW = Row(
    id="a", file_name="in/red door.mp4", prompt="Is it?", text="yes", status="ok", model="m", fingerprint="f",
    created_at=datetime(2026, 1, 1, tzinfo=UTC), kept={"p_mean": 0.75, "p_peak": 0.9},
)  # fmt: skip


def events(*spans: tuple[float, float]) -> list[Row]:
    return [replace(ROW, segment=number, start=start, end=end) for number, (start, end) in enumerate(spans, 1)]


@pytest.fixture
def media() -> tuple[str, ...]:
    for name, text in {"b": "1", "c": "7", "d": "broken"}.items():
        Path(f"{name}.mp4").write_text(text)
    return "a.mp4", "b.mp4", "c.mp4", "d.mp4"


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_subtitles_are_read_back(media: tuple[str, ...], format: str, tmp_path: Path) -> None:
    done = llava_mini("when", *media, "-p", "door=Is the door <b>open</b> & red --> really?", "-f", format)
    assert (done.exit_code, sorted(path.name for path in Path().glob(f"*.{format}"))) == (
        3, [f"a.{format}", f"b.{format}", f"c.{format}"],
    )  # fmt: skip
    for name, spans in {"a": [(1000, 3000)], "b": [], "c": [(1000, 3000), (4000, 6000)]}.items():
        read = pysubs2.load(f"{name}.{format}", format_=format)
        assert [(one.start, one.end, one.plaintext) for one in read] == [(*span, "door") for span in spans]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", f"c.{format}", str(tmp_path / "out.srt")]
    assert subprocess.run(ffmpeg, capture_output=True, check=True).stderr == b""
    assert [(one.start, one.end) for one in pysubs2.load(str(tmp_path / "out.srt"))] == [(1000, 3000), (4000, 6000)]


def test_a_question_without_a_name_is_the_line_that_is_shown() -> None:
    llava_mini("when", "a.mp4", "Is the door <i>open</i> & red?", "-f", "vtt", "-o", "out")
    assert Path("out/a.vtt").read_text() == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:03.000\nIs the door &lt;i&gt;open&lt;/i&gt; &amp; red?\n"
    )
    llava_mini("when", "a.mp4", "Is it?", "-f", "tsv", "-o", "out")
    assert Path("out/a.tsv").read_text() == "start\tend\ttext\n1000\t3000\tIs it?\n"


@pytest.mark.parametrize("format", ["srt", "vtt", "tsv", "edl"])
def test_a_file_that_is_there_stays_and_none_is_made_of_a_failure(
    media: tuple[str, ...], format: str, engines: list[EchoEngine]
) -> None:
    Path(f"a.{format}").write_text("mine")
    command = ("when", *media, "Is it?", "-f", format)
    assert llava_mini(*command).exit_code == 3
    assert Path(f"a.{format}").read_text() == "mine"
    assert not Path(f"d.{format}").exists()
    there = {path: path.read_text() for path in Path().glob(f"*.{format}")}
    assert len(there) == 3
    assert llava_mini(*command).exit_code == 3  # the one that failed is tried again, and b, which has no event, is not
    assert [len(engine.requests) for engine in engines] == [3, 1]
    assert {path: path.read_text() for path in Path().glob(f"*.{format}")} == there
    llava_mini(*command, "--existing", "overwrite")
    assert Path(f"a.{format}").read_text() != "mine"


def read_edl(text: str, rate: float) -> list[tuple[str, int, int, int]]:
    """Each clip's name, its first frame, the number of its frames, and the frame of the list where it begins."""
    timeline: Any = otio.adapters.read_from_string(text, "cmx_3600", rate=rate)
    return [
        (
            clip.name,
            clip.source_range.start_time.to_frames(),
            clip.source_range.duration.to_frames(),
            clip.range_in_parent().start_time.to_frames(),
        )
        for clip in timeline.find_clips()
    ]


@pytest.mark.parametrize("rate", [24.0, 25.0, 30.0, 60.0])
def test_an_edl_is_read_back_frame_for_frame(rate: float) -> None:
    spans = [(1.0, 2.5), (3.2, 3.2), (59.99, 61.0), (3599.0, 3725.5)]
    text = edl(ROW, events(*spans), rate)
    expected: list[tuple[str, int, int, int]] = []
    at = 0
    for start, end in spans:
        first, last = round(start * rate), max(round(end * rate), round(start * rate) + 1)
        expected.append(("red door.mp4", first, last - first, at))
        at += last - first
    assert read_edl(text, rate) == expected
    assert "* COMMENT: P(YES) MEAN 0.750 PEAK 0.900" in text


def test_an_edl_of_a_command_is_read_back(media: tuple[str, ...]) -> None:
    done = llava_mini("when", *media, "Is it?", "-f", "edl", "--edl-rate", "24", "-o", "cuts")
    assert done.exit_code == 3
    assert read_edl(Path("cuts/c.edl").read_text(), 24) == [("c.mp4", 24, 48, 0), ("c.mp4", 96, 48, 48)]
    assert Path("cuts/b.edl").read_text() == "TITLE: Is it? - b.mp4\nFCM: NON-DROP FRAME\n\n"


def test_an_edl_of_very_many_events_and_an_odd_name() -> None:
    row = replace(ROW, file_name="ärger\n\x1b[2J.mp4", prompt="Is\nit? " * 40)
    text = edl(
        row,
        [replace(one, file_name=row.file_name) for one in events(*((2.0 * n, 2.0 * n + 1) for n in range(1200)))],
        25,
    )
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(read_edl(text, 25)) == 1200


@pytest.mark.parametrize(
    ("frame", "rate", "shown"),
    [
        (0, 25, "00:00:00:00"),
        (24, 25, "00:00:00:24"),
        (25 * 3600, 25, "01:00:00:00"),
        (30 * 60, 29.97, "00:01:00:00"),
        (25 * 3600 * 24, 25, "00:00:00:00"),
        (1, 1.2, "00:00:01:00"),
    ],
)
def test_a_timecode_counts_whole_frames(frame: int, rate: float, shown: str) -> None:
    assert timecode(frame, rate) == shown
