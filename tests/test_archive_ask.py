"""ask --index and search --check with the demo model on an archive of rendered videos, as a user runs them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import media_films
import pyarrow.parquet as pq
import pytest
from archive_films import FILMS, rows, run
from typer.testing import Result

from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.pipelines.check import widened

QUESTIONS = ["What shapes are shown?", "What colour is the shape?", "How many shapes appear?", "Is there a red circle?"]


def answers(result: Result) -> dict[tuple[str, str], tuple[str, int, str]]:
    return {
        (row["file_name"], row["prompt"]): (row["text"], row["completion_tokens"], row["finish_reason"])
        for row in rows(result)
    }


def test_answers_from_features_are_those_from_the_files_which_may_be_gone(films: Path, archive: Path) -> None:
    prompts = [part for question in QUESTIONS for part in ("-p", question)]
    expected = answers(run("ask", films, *prompts, "-m", "demo", "-q"))
    assert len(expected) == len(FILMS) * len(QUESTIONS)
    away = films.with_name("away")
    films.rename(away)
    try:
        done = run("ask", "--index", archive, *prompts, "-q")
    finally:
        away.rename(films)
    assert (done.exit_code, done.stderr) == (0, "")
    assert answers(done) == expected
    assert {row["warning"] for row in rows(done)} == {None}


def test_the_best_moments_alone_say_so(archive: Path) -> None:
    done = run("ask", "--index", archive, "What colour is the shape?", "--top", "2", "--find", "a green triangle")
    first, second = rows(done)
    assert (first["segment"], second["segment"]) == (1, 2)
    assert first["file_name"] == "green.mp4"
    assert "moment 1 of the 2 best alone" in first["warning"]
    assert first["end"] > first["start"] >= 0


def test_the_model_itself_checks_what_was_found(archive: Path) -> None:
    """Its yes is that of `ask`, about the same stretch alone, and orders the moments."""
    question = "Is there a green triangle?"
    alone = ("--check-margin", "0")
    found = rows(run("search", archive, "a shape", "-k", "4", "--check", question, *alone))
    assert [moment["rank"] for moment in found] == [1, 2, 3, 4]
    said = [moment["p_yes"] for moment in found]
    assert said == sorted(said, reverse=True)
    assert all(0 <= p <= 1 for p in said)
    asked = rows(run("ask", "--index", archive, question, "--top", "4", "--find", "a shape", "--yes-no", "-q"))
    assert {(row["file_name"], row["start"], row["p_yes"]) for row in asked} == {
        (moment["file_name"], moment["start"], moment["p_yes"]) for moment in found
    }
    least = said[1]
    kept = rows(run("search", archive, "a shape", "-k", "4", "--check", question, "--min-yes", repr(least), *alone))
    assert kept == found[:2]


def test_a_check_sees_what_is_around_a_moment(archive: Path) -> None:
    """As much as the margin, which here is the whole video; the moment itself stays what it was."""
    question = "How many shapes appear?"
    found = rows(run("search", archive, "a yellow circle", "-k", "1", "--check", question, "--check-margin", "10s"))
    plain = rows(run("search", archive, "a yellow circle", "-k", "1"))
    (whole,) = rows(run("ask", "--index", archive, question, "--path", "yellow*", "--yes-no"))
    assert found == [plain[0] | {"p_yes": whole["p_yes"]}]
    usual = rows(run("search", archive, "a yellow circle", "-k", "1", "--check", question))
    assert usual == found  # 5 seconds are the whole video, too
    moment = Moment(**plain[0])
    assert (widened(moment, 1.0).start, widened(moment, 1.0).end) == (moment.start - 1.0, moment.end + 1.0)
    assert widened(replace(moment, start=None, end=None), 1.0).start is None


def test_what_cannot_be_checked_is_named_and_comes_last(films: Path, tmp_path: Path) -> None:
    folder, archive = tmp_path / "films", tmp_path / "a"
    shutil.copytree(films, folder)
    assert run("index", folder, "-o", archive, "-m", "demo", "-q").exit_code == 0
    (folder / "green.mp4").unlink()
    done = run("search", archive, "a green triangle", "-k", "2", "--check", "Is there a green triangle?")
    assert done.exit_code == 3
    assert "green.mp4: not checked: no such file" in done.stderr
    first, last = rows(done)
    assert (first["p_yes"] is None, last["p_yes"], last["file_name"]) == (False, None, "green.mp4")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--min-yes", "0.5"], "add --check"),
        (["--check", "Is it?", "--min-yes", "2"], "from 0 to 1"),
        (["--check", " "], "the question is empty"),
        (["--check-margin", "2s"], "add --check"),
    ],
)
def test_checks_that_make_no_sense_are_refused(archive: Path, options: list[str], why: str) -> None:
    done = run("search", archive, "a circle", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert why in done.stderr


def test_without_features_the_files_are_read_again(films: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a"
    assert run("index", films / "green.mp4", films / "red.mp4", "-o", archive, "-m", "demo", "-q").exit_code == 0
    expected = answers(run("ask", films / "green.mp4", QUESTIONS[1], "-m", "demo", "-q"))
    assert answers(run("ask", "--index", archive, "--path", "green*", QUESTIONS[1], "-q")) == expected
    other = tmp_path / "moved"
    (films / "green.mp4").rename(other)
    try:
        done = run("ask", "--index", archive, QUESTIONS[1], "-q")
    finally:
        other.rename(films / "green.mp4")
    assert done.exit_code == 3
    assert [(row["file_name"], row["error_type"]) for row in rows(done) if row["status"] == "error"] == [
        ("green.mp4", "not_found")
    ]


def test_shards_of_an_archive_share_the_work(archive: Path, tmp_path: Path) -> None:
    for shard in ("1/2", "2/2"):
        done = run("ask", "--index", archive, "What is shown?", "-o", f"{tmp_path}/rows/", "--shard", shard, "-q")
        assert done.exit_code == 0
    found = [row["id"] for row in pq.read_table(tmp_path / "rows").to_pylist()]
    assert sorted(Path(name).name for name in found) == sorted(FILMS)


@pytest.mark.parametrize("option", [["--prompt-column", "q"], ["--exclude", "*.mp4"], ["--keep-columns", "a"]])
def test_options_of_files_are_refused_with_an_archive(archive: Path, option: list[str]) -> None:
    done = run("ask", "--index", archive, "-p", "What is shown?", *option)
    assert (done.exit_code, done.stdout) == (2, "")
    assert option[0] in done.stderr


def test_media_that_failed_to_be_indexed_give_their_rows(films: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    index = tmp_path / "a"
    assert run("index", tmp_path / "bad.mp4", films / "green.mp4", "-o", index, "-m", "demo", "-q").exit_code == 3
    done = run("ask", "--index", index, "What is shown?", "-q")
    assert done.exit_code == 3
    bad, good = sorted(rows(done), key=lambda row: row["file_name"])
    assert (good["status"], bad["status"], bad["file_name"]) == ("ok", "error", "bad.mp4")
    (asked,) = rows(run("ask", tmp_path / "bad.mp4", "What?", "-m", "demo", "-q"))
    assert (bad["error_type"], bad["error"]) == (asked["error_type"], asked["error"])
    assert len(rows(run("ask", "--index", index, "What is shown?", "--path", "green*", "-q"))) == 1


def test_damage_counts_in_the_summary(films: Path, archive: Path, tmp_path: Path) -> None:
    folder, summary = tmp_path / "a", tmp_path / "summary.json"
    shutil.copytree(archive, folder)
    shutil.copy(films / "green.mp4", tmp_path / "more.mp4")
    more = ["-o", folder, "-m", "demo", "--features", "--caption-every", "3", "-q"]
    assert run("index", tmp_path / "more.mp4", *more).exit_code == 0
    sorted((folder / "media").iterdir())[-1].write_bytes(b"nonsense")
    done = run("ask", "--index", folder, "What is shown?", "--summary-json", summary, "-q")
    assert (done.exit_code, json.loads(summary.read_text())["exit_code"]) == (3, 3)
    for part in (folder / "media").iterdir():
        part.write_bytes(b"nonsense")
    done = run("ask", "--index", folder, "What is shown?", "-q")
    assert (done.exit_code, "nothing can be read: media/part-" in done.stderr) == (1, True)


def test_a_span_that_begins_inside_a_frame_is_answered_from_its_features(tmp_path: Path) -> None:
    """Two colours, the first of which stays for 95 s."""
    slow = ("-vf", "setpts='PTS+gte(N,1)*95/TB'", "-fps_mode", "passthrough")
    film = media_films.film(tmp_path / "slow.mp4", 3, *media_films.H264, *slow, fps="1")
    span = ("--start", "50", "--end", "98", "-q")
    assert run("index", film, "-o", tmp_path / "a", "-m", "demo", "--features", *span).exit_code == 0
    expected = answers(run("ask", film, *QUESTIONS[:1], "-m", "demo", *span))
    done = run("ask", "--index", tmp_path / "a", *QUESTIONS[:1], "-q")
    assert answers(done) == expected
    assert [row["frame_count"] for row in rows(done)] == [3]
