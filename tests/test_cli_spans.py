"""Spans on the command line, with the demo model and as a user runs them: files, archives, what is refused."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import media_films
import pyarrow.parquet as pq
import pytest
from archive_films import rows, run
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini
from scene_films import cuts_of, scene_film
from warm_command import started

from llava_mini_cli.commands.terminal import _stretch
from llava_mini_cli.media.decoders import decord_installed

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


def times_of(found: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return sorted((row["file_name"], row["start"]) for row in found if row["segment"] and not row["prompt_name"])


def test_scenes_of_an_archive_are_those_of_frames_that_lie_apart(films: Path, archive: Path) -> None:
    """By CLIP distance, of which the rows say so; and the answers are those about a list of these scenes."""
    options = ("--scenes", "--min-scene-len", "1.5s", "--whole", "-q")
    found = rows(run("ask", "--index", archive, *PROMPTS, *options))
    assert times_of(found) == [
        ("green.mp4", 0.0), ("red.mp4", 0.0), ("red.mp4", 2.25),
        ("yellow.mp4", 0.0), ("yellow.mp4", 2.5), ("yellow.mp4", 4.25),
    ]  # fmt: skip
    assert {row["warning"] for row in found if row["segment"]} == {
        "scenes by CLIP distance between the frames that were looked at"
    }
    if decord_installed():
        assert answers(rows(run("ask", films, *PROMPTS, *options, "-m", "demo", "--decoder", "decord"))) == answers(
            found
        )
    listed = films.with_name("lists")
    listed.mkdir()
    for name in ("red", "green", "yellow"):
        spans = sorted(
            {(row["start"], row["end"]) for row in found if row["file_name"] == f"{name}.mp4" and row["segment"]}
        )
        lines = [f"{number},{start},{end}" for number, (start, end) in enumerate(spans, start=1)]
        text = "\n".join(["Scene Number,Start Time (seconds),End Time (seconds)", *lines])
        (listed / f"{name}-Scenes.csv").write_text(text)
    again = run("ask", "--index", archive, *PROMPTS, "--scenes-from", listed, "--whole", "-q")
    assert answers(rows(again)) == answers(found)


def test_scenes_of_files_are_cut_where_they_were_made(films: Path, tmp_path: Path) -> None:
    """And a second run has nothing to do, one with another threshold is refused."""
    scenes = ("--scenes", "--min-scene-len", "1.5s", "--scene-threshold", "3")  # a small shape changes, before black
    command = ("ask", films, *PROMPTS, *scenes, "-m", "demo", "-q", "-o", tmp_path / "a.jsonl")
    for _ in range(2):
        assert run(*command).exit_code == 0
        found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert times_of(found) == [
            ("green.mp4", 0.0), ("red.mp4", 0.0), ("red.mp4", 2.0),
            ("yellow.mp4", 0.0), ("yellow.mp4", 2.0), ("yellow.mp4", 4.0),
        ]  # fmt: skip
        colours = [(row["file_name"], row["segment"], row["text"]) for row in found if row["prompt_name"]]
        assert set(colours) >= {("red.mp4", 1, "red"), ("red.mp4", 2, "blue"), ("yellow.mp4", 2, "yellow")}
        assert {row["warning"] for row in found} == {None}
    refused = run(*command, "--scene-threshold", "20")
    assert (refused.exit_code, "--scene-threshold was 3, is 20" in refused.stderr) == (2, True)


def test_after_kill_9_the_scenes_are_the_same(tmp_path: Path, warm_command: Path) -> None:
    """With the decoder and the model that users have; killed when a part of the rows is there."""
    lengths = [7 + number % 9 for number in range(100)]
    path, output = scene_film(tmp_path / "film.mp4", lengths), tmp_path / "rows.jsonl"
    command = (
        "ask",
        path,
        *PROMPTS,
        "--scenes",
        "--min-scene-len",
        "1s",
        "-m",
        "demo",
        "--max-new-tokens",
        "2",
        "-q",
        "-o",
    )
    process, pid = started([warm_command / "llava-mini", *command, output], tmp_path / "pid")
    while process.poll() is None and not (output.exists() and output.read_bytes().count(b"\n") >= 10):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert process.wait() == 256 - signal.SIGKILL
    assert (run(*command, output).exit_code, run(*command, tmp_path / "whole.jsonl").exit_code) == (0, 0)
    resumed, whole = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("rows.jsonl", "whole.jsonl")
    )
    assert answers(resumed) == answers(whole)
    assert len(whole) == 2 * len({row["segment"] for row in whole}) > 100
    assert {row["start"] for row in whole} <= {0.0, *(cut / 10 for cut in cuts_of(lengths))}


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
        (["--whole"], "--whole goes with --every, --window, --scenes or --scenes-from"),
        (["--scenes", "--scene-threshold", "0"], "--scene-threshold must be above 0 and at most 100, not 0"),
        (["--scenes", "--scene-threshold", "101"], "--scene-threshold must be above 0 and at most 100, not 101"),
        (["--scenes", "--scene-threshold", "nan"], "--scene-threshold must be above 0 and at most 100, not nan"),
        (["--scenes", "--scene-threshold", "high"], "Invalid value for '--scene-threshold'"),
        (["--scenes", "--min-scene-len", "-1"], "'-1' is not a time"),
        (["--scenes", "--min-scene-len", "long"], "'long' is not a time"),
        (["--scene-threshold", "20"], "--scene-threshold goes with --scenes"),
        (["--every", "2s", "--min-scene-len", "3s"], "--min-scene-len goes with --scenes"),
        (["--scenes", "--every", "2s"], "--scenes and --every exclude each other"),
        (["--scenes", "--window", "2s", "--stride", "1s"], "--scenes and --window exclude each other"),
        (["--scenes", "--scenes-from", "a.csv"], "--scenes and --scenes-from exclude each other"),
        (["--scenes", "--start-column", "from"], "--scenes"),
        (["--scenes", "--fit"], "--fit thins out whole videos, not the stretches of --scenes"),
        (["--scenes", "-f", "txt", "-o", "out"], "--scenes gives several rows of one medium"),
        (["--scenes", "--whole", "-f", "srt"], "--whole has no place in --format srt"),
        (["--every", "2s", "--fit"], "--fit thins out whole videos, not the stretches of --every"),
        (["--every", "2s", "-f", "txt", "-o", "out"], "--every gives several rows of one medium"),
        (["--window", "2s", "--stride", "1s", "-f", "txt"], "--window gives several rows of one medium"),
    ],
)
def test_what_does_not_go_together_is_one_line(engines: list[EchoEngine], arguments: list[str], words: str) -> None:
    done = llava_mini("ask", "a.mp4", "What?", *arguments)
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert words in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize("spans", [("--every", "2s"), ("--scenes",)])
def test_moments_are_no_stretches(engines: list[EchoEngine], spans: tuple[str, ...]) -> None:
    done = llava_mini("ask", "--index", "a", "What?", "--top", "3", *spans)
    assert (done.exit_code, "--top asks about the best moments" in done.stderr) == (2, True)


def test_a_dry_run_counts_rows(engines: list[EchoEngine], films: Path) -> None:
    done = llava_mini("ask", str(films), "-p", "What?", "-p", "Where?", "--every", "2s", "--whole", "--dry-run")
    assert (done.exit_code, json.loads(done.stdout)["rows"], engines) == (0, 2 * (4 + 3 + 4), [])


def test_a_dry_run_does_not_guess_how_many_scenes_there_are(engines: list[EchoEngine], films: Path) -> None:
    done = llava_mini("ask", str(films), "-p", "What?", "-p", "Where?", "--scenes", "--dry-run")
    plan = json.loads(done.stdout)
    assert (done.exit_code, plan["rows"], plan["unknown_scenes"], plan["time"], engines) == (0, 2 * 3, 3, None, [])


def test_scenes_become_subtitles(engines: list[EchoEngine]) -> None:
    Path("b.mp4").write_text("9/2/4.5/8.5")
    done = llava_mini("caption", "a.mp4", "b.mp4", "--scenes", "-f", "tsv", "-p", "What?")
    assert done.exit_code == 0
    assert Path("a.tsv").read_text() == "start\tend\ttext\n0\t4000\tWhat? [4]\n"
    assert Path("b.tsv").read_text().splitlines()[1:] == [
        "0\t2000\tWhat? [2]", "2000\t4500\tWhat? [3]", "4500\t9000\tWhat? [4]",
    ]  # fmt: skip


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
