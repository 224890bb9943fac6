"""Subtitles: what stands in a file, where it stands, that it is whole, and that players read it."""

import html
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pysubs2
import pytest
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini

from llava_mini_cli.config import SubtitleFormat
from llava_mini_cli.formats.outputs.subtitles import Cue, subtitles

CUES = [
    Cue(2000, 5000, "the second, which begins before the first has ended and goes on and on"),
    Cue(0, 3000, "the first"),
    Cue(3_725_040, 3_726_000, "5 < 6 --> a & b"),
]


WRAPPED = ["the second, which begins before the first", "has ended and goes on and on"]


def test_the_later_of_two_wins_and_long_lines_are_wrapped() -> None:
    assert subtitles(CUES, "srt").splitlines() == [
        *("1", "00:00:00,000 --> 00:00:02,000", "the first", ""),
        *("2", "00:00:02,000 --> 00:00:05,000", *WRAPPED, ""),
        *("3", "01:02:05,040 --> 01:02:06,000", "5 < 6 → a & b"),
    ]
    assert subtitles(CUES, "vtt").splitlines() == [
        *("WEBVTT", "", "00:00:00.000 --> 00:00:02.000", "the first", ""),
        *("00:00:02.000 --> 00:00:05.000", *WRAPPED, ""),
        *("01:02:05.040 --> 01:02:06.000", "5 &lt; 6 → a &amp; b"),
    ]
    assert [line.split("\t") for line in subtitles(CUES, "tsv").splitlines()] == [
        ["start", "end", "text"], ["0", "3000", "the first"], ["2000", "5000", " ".join(WRAPPED)],
        ["3725040", "3726000", "5 < 6 --> a & b"],
    ]  # fmt: skip


def test_a_file_without_a_cue_and_one_that_another_hides() -> None:
    assert (subtitles([], "srt"), subtitles([], "vtt"), subtitles([], "tsv")) == ("", "WEBVTT\n", "start\tend\ttext\n")
    assert subtitles([Cue(0, 9, "a"), Cue(0, 10, "b")], "srt") == "1\n00:00:00,000 --> 00:00:00,010\nb\n"


ODD = [  # an answer, and how it is shown where that is not the same
    ("a --> b -> c", "a → b → c"),
    ("5 < 6 & 7 > 2; &amp; &lt;", None),
    ("<b>bold</b> <i>x, <div class=1> and < font >", "‹b›bold‹/b› ‹i›x, ‹div class=1› and ‹ font ›"),
    ("{note} {\\an8}top", "(note) (\\an8)top"),
    ("C:\\New \\h", None),
    ("42", None),
    ("It is " + "word " * 16 + "17", None),
    ("w" * 100, None),
    ("日本語 🎬 é “quoted”, -", None),
    ("NOTE what", None),
]  # fmt: skip


def read_by_ffmpeg(path: Path) -> list[tuple[int, int, str]]:
    """Each subtitle as it is shown."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path), "-f", "ass", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    read = pysubs2.SSAFile.from_string(done.stdout)
    return [(one.start, one.end, one.text.replace("\\{{}", "{").replace("\\N", "\n")) for one in read]


def read_by_pysubs2(path: Path) -> list[tuple[int, int, str]]:
    return [(one.start, one.end, one.text.replace("\\N", "\n")) for one in pysubs2.load(str(path))]


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_players_read_what_was_said(tmp_path: Path, format: SubtitleFormat) -> None:
    cues = [Cue(1000 * number, 1000 * number + 1500, said) for number, (said, _) in enumerate(ODD)]
    path = tmp_path / f"a.{format}"
    path.write_text(subtitles([*cues, Cue(90_000, 91_000, "")], format))
    for read in (read_by_ffmpeg, read_by_pysubs2):
        found = read(path)
        assert [one[:2] for one in found] == [
            (1000 * number, 1000 * number + (1000 if number + 1 < len(ODD) else 1500)) for number in range(len(ODD))
        ]
        for (said, shown), (_, _, text) in zip(ODD, found, strict=True):
            is_same = shown is None or (format == "vtt" and "->" not in said)
            wanted = said if is_same else shown
            text = text.replace("\u2060", "")
            if format == "vtt" and read is read_by_pysubs2:  # which does not know its escapes
                text = html.unescape(text)
            lines = text.split("\n")
            assert "".join(lines).replace(" ", "") == wanted.replace(" ", "")
            assert all(len(line) <= 45 for line in lines)
            assert (len(lines) > 1) == (len(wanted) > 42)


# Runs

engines = pytest.fixture(echo_engines)


def test_files_stand_beside_their_media_or_in_a_folder_and_are_kept(engines: list[EchoEngine]) -> None:
    Path("in").mkdir()
    Path("in/b.mp4").write_text("3")
    done = llava_mini("caption", "a.mp4", "in", "--every", "2s", "-f", "srt", "-p", "What?")
    assert (done.exit_code, done.stdout) == (0, "")
    assert Path("a.srt").read_text().splitlines()[-2:] == ["00:00:02,000 --> 00:00:04,000", "What? [2]"]
    assert Path("in/b.srt").read_text().splitlines()[-2:] == ["00:00:02,000 --> 00:00:03,000", "What? [1]"]
    Path("a.srt").write_text("by hand")
    assert llava_mini("caption", "a.mp4", "in", "--every", "2s", "-f", "srt", "-p", "What?").exit_code == 0
    assert (Path("a.srt").read_text(), len(engines)) == ("by hand", 1)
    llava_mini("caption", "a.mp4", "--every", "2s", "-f", "srt", "-p", "What?", "--existing", "overwrite")
    assert "What? [2]" in Path("a.srt").read_text()
    asked = ("-p", "who=Who?", "-p", "Where?", "--window", "2s", "--stride", "1s")
    assert llava_mini("ask", "a.mp4", "in", *asked, "-f", "vtt", "-o", "out").exit_code == 0
    assert sorted(str(path) for path in Path("out").rglob("*.*") if not path.name.startswith(".")) == [
        "out/a.2.vtt", "out/a.who.vtt", "out/b.2.vtt", "out/b.who.vtt",
    ]  # fmt: skip
    assert Path("out/a.who.vtt").read_text().count("-->") == 3


def test_a_video_that_fails_leaves_no_file_and_a_gap_leaves_one(engines: list[EchoEngine]) -> None:
    Path("b.mp4").write_text("broken")
    Path("c.mp4").write_text("unopenable")
    done = llava_mini("caption", "a.mp4", "b.mp4", "c.mp4", "--every", "0.5s", "-f", "tsv", "-p", "What?")
    assert done.exit_code == 3
    assert [path.name for path in Path().glob("*.tsv")] == ["a.tsv"]
    starts = [line.split("\t")[0] for line in Path("a.tsv").read_text().splitlines()]
    assert starts == ["start", "0", "1000", "2000", "3000"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--format srt has a line for each stretch: add --every, --window, --scenes or --scenes-from"),
        (["--every", "2s", "--whole"], "--whole has no place in --format srt"),
        (["--every", "2s", "--existing", "append"], "--existing append is for --format txt"),
        (["--every", "2s", "--overwrite"], "--overwrite is not for --format srt: --existing overwrite"),
        (["--every", "2s", "--shard", "1/2"], "--shard: shards cannot tell whose"),
        (["--every", "2s", "-o", "-"], "--format srt needs a file or a folder: -o FOLDER"),
    ],
)
def test_what_does_not_go_together_is_one_line(engines: list[EchoEngine], arguments: list[str], words: str) -> None:
    done = llava_mini("ask", "a.mp4", "What?", "-f", "srt", *arguments)
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert words in done.stderr
