"""Spans on the command line, with the demo model and as a user runs them: files, archives, what is refused."""

import json
from pathlib import Path
from typing import Any

import media_films
import pyarrow.parquet as pq
import pytest
from archive_films import rows, run
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini

from llava_mini_cli.commands.terminal import _stretch

PROMPTS = ("-p", "What shapes are shown?", "-p", "colour=What colour is the shape?")


def answers(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    keys, values = ("file_name", "prompt", "segment", "start", "end"), ("text", "completion_tokens", "frame_count")
    said = {tuple(row[key] for key in keys): tuple(row[key] for key in values) for row in found}
    assert len(said) == len(found)
    return said


@pytest.mark.parametrize("spans", [("--every", "2s", "--whole"), ("--window", "3s", "--stride", "1s")])
def test_spans_of_an_archive_are_those_of_the_files(films: Path, archive: Path, spans: tuple[str, ...]) -> None:
    expected = answers(rows(run("ask", films, *PROMPTS, *spans, "-m", "demo", "-q")))
    done = run("ask", "--index", archive, *PROMPTS, *spans, "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    assert answers(rows(done)) == expected
    if "--whole" in spans:
        plain = answers(rows(run("ask", films, *PROMPTS, "-m", "demo", "-q")))
        assert {key: value for key, value in expected.items() if key[2] is None} == plain
        assert {key[0] for key in expected} == {"red.mp4", "green.mp4", "yellow.mp4"}
        red = [expected["red.mp4", "What colour is the shape?", *span][0] for span in ((1, 0, 2), (2, 2, 4), (3, 4, 5))]
        assert red == ["red", "blue", "blue"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows/"])
def test_every_format_goes_on_where_it_stopped(films: Path, tmp_path: Path, name: str) -> None:
    command = ("caption", films, "--every", "2s", "--whole", "-m", "demo", "--max-new-tokens", "4", "-o")
    assert run(*command, f"{tmp_path}/{name}", "--limit", "1").exit_code == 101
    done = run(*command, f"{tmp_path}/{name}")
    assert (done.exit_code, "2 media" in done.stderr) == (0, True)
    again = run(*command, f"{tmp_path}/{name}")
    assert "11 were there" in again.stderr
    if "parquet" in name or name.endswith("/"):
        table = pq.read_table(tmp_path / name)
        found = zip(table["file_name"].to_pylist(), table["segment"].to_pylist(), strict=True)
        assert sorted((film, number or 0) for film, number in found) == [
            *(("green.mp4", number) for number in range(3)),
            *(("red.mp4", number) for number in range(4)),
            *(("yellow.mp4", number) for number in range(4)),
        ]


def test_odd_media_are_rows_of_their_own(films: Path, tmp_path: Path) -> None:
    """With stretches, choices and yes or no: each question has an answer, or one line that says why not."""
    media_films.ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    media_films.ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.wav")
    media_films.ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64:rate=1:duration=1", tmp_path / "one.mp4")
    media_films.ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64:rate=1:duration=1", tmp_path / "still.png")
    (tmp_path / "nothing.mp4").write_bytes(b"")
    cut = (films / "red.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(cut[: len(cut) // 3])
    media = sorted(tmp_path.iterdir())
    asked = ("-p", "colour=What colour is the shape?", "-p", "Is there a shape?", "--choices", "colour=red,blue")
    done = run("ask", *media, *asked, "--yes-no", "--every", "2s", "--whole", "-m", "demo", "-q")
    assert (done.exit_code, "Traceback" in done.stderr) == (3, False)
    found = {
        (row["file_name"], row["segment"] or 0, row["prompt_name"] or "yes"): row["error_type"] for row in rows(done)
    }
    assert len(found) == len(rows(done))
    kinds = {"one.mp4": None, "still.png": None, "nothing.mp4": "empty", "cut.mp4": "truncated"}
    kinds |= {"sound.mp4": "no_video", "sound.wav": "no_video"}
    assert {key[0]: kind for key, kind in found.items()} == kinds
    assert set(found) == {(name, number, asked) for name in kinds for number in (0, 1) for asked in ("colour", "yes")}
    for row in rows(done):
        if row["status"] == "ok":
            assert row["p_yes"] is not None
            assert (row["choice"] is None) == (row["prompt_name"] != "colour")
            assert (row["start"] is None) == (row["segment"] is None or row["file_name"] == "still.png")
        else:
            assert "\n" not in row["error"]
            assert (row["p_yes"], row["choice"], row["choice_probs"], row["start"]) == (None, None, None, None)


# Without a model


engines = pytest.fixture(echo_engines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--every", "soon"], "'soon' is not a time"),
        (["--every", "0"], "--every must be at least 0.001 s, not 0"),
        (["--window", "3s"], "--window and --stride go together"),
        (["--whole"], "--whole goes with --every, --window or --scenes-from"),
        (["--every", "2s", "--fit"], "--fit thins out whole videos, not the stretches of --every"),
        (["--every", "2s", "-f", "txt", "-o", "out"], "--every gives several rows of one medium"),
        (["--window", "2s", "--stride", "1s", "-f", "txt"], "--window gives several rows of one medium"),
    ],
)
def test_what_does_not_go_together_is_one_line(engines: list[EchoEngine], arguments: list[str], words: str) -> None:
    done = llava_mini("ask", "a.mp4", "What?", *arguments)
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_moments_are_no_stretches(engines: list[EchoEngine]) -> None:
    done = llava_mini("ask", "--index", "a", "What?", "--top", "3", "--every", "2s")
    assert (done.exit_code, "--top asks about the best moments" in done.stderr) == (2, True)


def test_a_dry_run_counts_rows(engines: list[EchoEngine], films: Path) -> None:
    done = llava_mini("ask", str(films), "-p", "What?", "-p", "Where?", "--every", "2s", "--whole", "--dry-run")
    assert (done.exit_code, json.loads(done.stdout)["rows"], engines) == (0, 2 * (4 + 3 + 4), [])


@pytest.mark.parametrize(
    ("start", "end", "shown"),
    [
        (0.0, 30.0, "0:00-0:30"),
        (61.5, 3600.0, "1:01.5-1:00:00"),
        (59.96, None, "1:00-"),
        (3725.04, 7.0, "1:02:05-0:07"),
    ],
)
def test_a_stretch_is_shown_as_a_clock_shows_it(start: float, end: float | None, shown: str) -> None:
    assert _stretch(start, end) == shown
