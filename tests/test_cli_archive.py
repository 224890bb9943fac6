"""search and index in this process, with doubles of the archive and of what searches: words, files and exit codes."""

import json
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from output_rows import FAILED
from test_cli_words import Screen
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.newest import Damage
from llava_mini_cli.pipelines.search_archive import SearchOptions

RED = Moment(
    rank=1, score=0.51249, path="/v/red.mp4", file_name="red.mp4", media="video", time=61.04, start=60.0, end=62.0,
    frames=3, duration_s=90.0, caption=None,
)  # fmt: skip
STILL = replace(RED, rank=2, path="/v/a b.jpg", file_name="a b.jpg", media="image", time=None, start=None, end=None)
AGAIN = replace(RED, rank=3)
DAMAGE = Damage(1, "frames/part-000001.parquet", "cut short")


@dataclass
class ArchiveDouble:
    """An archive by what commands say of it, and a log of what was asked of it."""

    folder: Path = Path("a")
    damage: list[Damage] = field(default_factory=list[Damage])
    recall: float | None = None
    header: Any = field(default_factory=lambda: SimpleNamespace(model="m"))
    moments: list[Moment] = field(default_factory=lambda: [RED, STILL, AGAIN])
    asked: list[object] = field(default_factory=list[object])

    @contextmanager
    def open(self, folder: Path) -> Generator["ArchiveDouble"]:
        self.asked.append(folder)
        yield self

    def find(
        self, archive: object, text: str | None, picture: str | None, options: SearchOptions, model: str | None
    ) -> list[Moment]:
        self.asked.append((text, picture, options, model))
        return self.moments

    def check(
        self,
        archive: object,
        moments: Sequence[Moment],
        question: str,
        model: str | None,
        interrupts: Any,
        margin: float,
        roots: tuple[str, ...],
    ) -> tuple[list[Moment], list[Any]]:
        self.asked.append((question, model, margin, *roots))
        likely = [replace(moment, p_yes=p_yes) for moment, p_yes in zip(moments, (0.25, None, 0.875), strict=True)]
        return likely, [replace(FAILED, source=STILL.path)]


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ArchiveDouble:
    double = ArchiveDouble()
    monkeypatch.setattr("llava_mini_cli.formats.archive.reader.open_archive", double.open)
    monkeypatch.setattr("llava_mini_cli.pipelines.find.find", double.find)
    monkeypatch.setattr("llava_mini_cli.pipelines.check.check", double.check)
    monkeypatch.setattr(
        "llava_mini_cli.pipelines.pictures.pictures",
        lambda moments, roots: [b"red", *roots, "no such file", b"again"][: len(moments)],
    )
    monkeypatch.chdir(tmp_path)
    return double


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# search


def test_search_hands_its_options_on_and_prints_a_line_for_each_moment(archive: ArchiveDouble) -> None:
    result = llava_mini("search", "a", "a red circle")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [(row["rank"], row["path"], row["p_yes"]) for row in lines(result)] == [
        (1, "/v/red.mp4", None), (2, "/v/a b.jpg", None), (3, "/v/red.mp4", None),
    ]  # fmt: skip
    assert archive.asked == [Path("a"), ("a red circle", None, SearchOptions(10), None)]
    options = "-k 3 --min-score 0.5 --path v* --after 1:00 --before 2m --image q.png -m moved"
    assert llava_mini("search", "a", *options.split()).exit_code == 0
    assert archive.asked[3] == (None, "q.png", SearchOptions(3, 0.5, "v*", 60.0, 120.0), "moved")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is nothing to look for: llava-mini search ARCHIVE TEXT, or --image FILE"),
        ([" "], "the text to look for is empty"),
        (["x", "--paths-only", "-o", "f.csv"], "--paths-only prints to standard output and takes no -o"),
        (["x", "-o", "f.txt"],
         "-o 'f.txt': the suffix must be one of .jsonl, .ndjson, .csv, .parquet, or name the format with -f"),
        (["x", "-f", "parquet"], "--format parquet needs a file: -o FILE.parquet"),
        (["x", "--before", "3", "--after", "3"], "--before (3 s) must come after --after (3 s)"),
        (["x", "-k", "0"], "-k must be at least 1, not 0"),
        (["x", "--min-yes", "0.5"], "--min-yes says how likely the yes to --check has to be; add --check QUESTION"),
    ],
)  # fmt: skip
def test_what_search_refuses(archive: ArchiveDouble, arguments: list[str], words: str) -> None:
    result = llava_mini("search", "a", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"llava-mini: error: {words}\n")
    assert archive.asked == []


def test_targets_are_tried_before_the_search(archive: ArchiveDouble) -> None:
    for option in (["-o", "gone/x.csv"], ["--html", "gone/x.html"]):
        result = llava_mini("search", "a", "x", *option)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "gone" in result.stderr
    assert archive.asked == []


def test_moments_go_into_a_file_or_to_standard_output(archive: ArchiveDouble) -> None:
    assert llava_mini("search", "a", "x", "-o", "f.csv").stdout == ""
    assert Path("f.csv").read_text().count("\n") == 4
    assert llava_mini("search", "a", "x", "-o", "-", "-f", "csv").stdout == Path("f.csv").read_text()


def test_paths_are_printed_once_each(archive: ArchiveDouble) -> None:
    assert llava_mini("search", "a", "x", "--paths-only").stdout == "/v/red.mp4\n/v/a b.jpg\n"
    assert llava_mini("search", "a", "x", "--paths-only", "-0").stdout == "/v/red.mp4\0/v/a b.jpg\0"


def test_the_model_checks_what_was_found(archive: ArchiveDouble) -> None:
    result = llava_mini("search", "a", "x", "--check", "Is it?", "-m", "moved")
    assert (result.exit_code, result.stderr) == (3, "llava-mini: error: /v/a b.jpg: not checked: cut short\n")
    assert [row["p_yes"] for row in lines(result)] == [0.25, None, 0.875]
    assert archive.asked[-1] == ("Is it?", "moved", 5.0)
    result = llava_mini("search", "a", "x", "--check", "Is it?", "--min-yes", "0.25", "--check-margin", "0")
    assert [row["p_yes"] for row in lines(result)] == [0.25, 0.875]
    assert archive.asked[-1] == ("Is it?", None, 0.0)


def test_what_is_approximate_or_damaged_is_told(archive: ArchiveDouble) -> None:
    archive.recall, archive.damage = 0.98765, [DAMAGE]
    told = "llava-mini: approximate: 98.8% of the nearest 10 frames are found, as measured by --ann\n"
    damaged = "llava-mini: error: a: frames/part-000001.parquet is damaged and left out: cut short\n"
    for quiet, words in (([], told + damaged), (["-q"], damaged)):
        result = llava_mini("search", "a", "x", *quiet)
        assert (result.exit_code, result.stderr) == (3, words)


def test_pictures_and_a_page(archive: ArchiveDouble) -> None:
    result = llava_mini("search", "a", "a text", "--image", "q.png", "--thumbnails", "deep/er", "--html", "p.html")
    assert (result.exit_code, result.stderr) == (3, "llava-mini: warning: /v/a b.jpg: no picture: no such file\n")
    assert {path.name: path.read_bytes() for path in Path("deep/er").iterdir()} == {
        "001-red-61.0s.jpg": b"red", "003-red-61.0s.jpg": b"again",
    }  # fmt: skip
    page = Path("p.html").read_text()
    assert "a text + q.png" in page
    assert page.count("data:image/jpeg;base64,") == 2
    archive.moments = [RED]
    assert llava_mini("search", "a", "x", "--thumbnails", "deep/er").exit_code == 0
    Path("file").touch()
    result = llava_mini("search", "a", "x", "--thumbnails", "file")
    assert (result.exit_code, result.stderr) == (1, "llava-mini: error: cannot write 'file': 'file' is not a folder\n")


def at_terminal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[list[str]]:
    """The words of each line at a terminal."""
    screen = Screen()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", screen)
        with pytest.raises(SystemExit):
            app(["search", "a", "x", *arguments])
    assert not screen.getvalue().startswith(" ")
    return [line.split() for line in screen.getvalue().splitlines()]


def test_files_are_read_below_the_media_root_alone(archive: ArchiveDouble, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    result = llava_mini("search", "a", "x", "--check", "Is it?", "--thumbnails", "made", "--media-root", "link")
    assert archive.asked[-1] == ("Is it?", None, 5.0, str(tmp_path))
    assert f"/v/a b.jpg: no picture: {tmp_path}" in result.stderr.replace("\n", "")


def test_moments_at_a_terminal_are_a_table(archive: ArchiveDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.moments = [RED, STILL, replace(AGAIN, start=None)]
    assert at_terminal(monkeypatch) == [
        ["score", "time", "span", "file"],
        ["0.512", "1:01.0", "1:00.0-1:02.0", "/v/red.mp4"],
        ["0.512", "/v/a", "b.jpg"],
        ["0.512", "/v/red.mp4"],
    ]
    archive.moments = [RED, STILL, replace(AGAIN, caption="A circle.")]
    assert at_terminal(monkeypatch, "--check", "Is it?") == [
        ["score", "time", "span", "file", "yes", "caption"],
        ["0.512", "1:01.0", "1:00.0-1:02.0", "/v/red.mp4", "0.25"],
        ["0.512", "/v/a", "b.jpg"],
        ["0.512", "1:01.0", "1:00.0-1:02.0", "/v/red.mp4", "0.88", "A", "circle."],
    ]
    assert at_terminal(monkeypatch, "-f", "jsonl")[0][0] == '{"rank":'


@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_v_lets_the_libraries_speak(archive: ArchiveDouble, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr("llava_mini_cli.commands.search.hush_libraries", lambda *, verbose: told.append(verbose))
    assert llava_mini("search", "a", "x", *flags).exit_code == 0
    assert told == [bool(flags)]


# index


@pytest.fixture
def built(archive: ArchiveDouble, monkeypatch: pytest.MonkeyPatch) -> ArchiveDouble:
    """What is done to an archive that is there."""

    def compact(folder: Path) -> object:
        archive.asked.append(("compact", folder))
        return SimpleNamespace(before=4, after=2, lost=[DAMAGE], is_converted=True)

    def build(opened: object) -> object:
        archive.asked.append(("ann", opened is archive))
        return SimpleNamespace(rows=7, recall=0.99949)

    monkeypatch.setattr("llava_mini_cli.formats.archive.compact.compact", compact)
    monkeypatch.setattr("llava_mini_cli.formats.archive.near.build", build)
    return archive


def test_index_without_media_needs_something_to_do(built: ArchiveDouble) -> None:
    result = llava_mini("index", "-o", "a")
    words = "there is no medium: llava-mini index MEDIA... -o ARCHIVE, or --files-from"
    assert (result.exit_code, result.stderr) == (2, f"llava-mini: error: {words}\n")
    assert built.asked == []


def test_compacting_and_the_approximate_index_say_what_they_did(built: ArchiveDouble) -> None:
    result = llava_mini("index", "-o", "a", "--compact", "--ann")
    assert result.exit_code == 0
    first, old, second, third, end = result.stderr.splitlines()
    lost = "frames/part-000001.parquet was damaged and is taken out: cut short; index its media again"
    assert first == f"llava-mini: error: a: {lost}"
    assert old == "llava-mini: a was made by an older version, which cannot read it from now on: it has a parts.json"
    assert second == "llava-mini: 4 parts merged into 2"
    assert third == "llava-mini: approximate index of 7 frames, recall of the nearest 10 0.999"
    assert end.startswith("llava-mini: 0 media indexed, 0 frames, 0.")
    assert end.endswith(" s, in a")
    assert built.asked == [("compact", Path("a")), Path("a"), ("ann", True)]
    assert llava_mini("index", "-o", "a", "--compact", "--ann", "-q").stderr == f"{first}\n"
