"""index, search and ask --index with the demo model on rendered videos, as a user runs them."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_docs import ROOT, run_block, shell_blocks
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import Scene, Thing
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.moments import Moment
from llava_mini_cli.pipelines.check import widened

LLAVA_MINI = str(Path(sys.executable).with_name("llava-mini"))
EDGE, FPS = 192, 4
FILMS = {  # what is seen in each second
    "red.mp4": ["red circle"] * 2 + ["blue square"] * 3,
    "green.mp4": ["green triangle"] * 4,
    "yellow.mp4": ["purple cross"] * 2 + ["yellow circle"] * 2 + ["purple cross"] * 2,
}
QUESTIONS = ["What shapes are shown?", "What colour is the shape?", "How many shapes appear?", "Is there a red circle?"]


def picture(name: str) -> np.ndarray:
    colour, shape = name.split()
    rng = np.random.default_rng(1)
    scene = Scene((Thing(shape, colour, "large", 0.5, 0.5),), "black")
    return render(scene, random_look(rng, "black"), EDGE, rng)


def film(path: Path, seconds: list[str]) -> None:
    frames = b"".join(picture(name).tobytes() * FPS for name in seconds)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{EDGE}x{EDGE}", "-r", str(FPS), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=frames, check=True)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, seconds in FILMS.items():
        film(folder / name, seconds)
    return folder


@pytest.fixture(scope="module")
def archive(films: Path) -> Path:
    folder = films.with_name("films.index")
    done = run("index", films, "-o", folder, "-m", "demo", "--features", "--caption-every", "3", "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_an_archive_holds_what_was_seen(archive: Path) -> None:
    with open_archive(archive) as opened:
        media = {medium.file_name: medium for medium in opened.each_medium()}
        assert {name: medium.frames for name, medium in media.items()} == {
            name: len(seconds) for name, seconds in FILMS.items()
        }
        assert opened.header.shapes.token == (1, 192)
        assert opened.header.shapes.clip == 64
        captions = opened.captions(media["red.mp4"])
        assert [(caption["start"], caption["end"]) for caption in captions] == [(0.0, 3.0), (3.0, 5.0)]
        lengths = [np.linalg.norm(batch.astype(np.float32), axis=1) for batch in opened.vectors(opened.parts[0])]
        np.testing.assert_allclose(np.concatenate(lengths), 1, atol=2e-3)


def test_the_same_command_again_does_nothing(films: Path, archive: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("part-*")}
    done = run("index", films, "-o", archive, "-m", "demo", "--features", "--caption-every", "3")
    assert done.exit_code == 0
    assert "0 media indexed, 3 there already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in archive.rglob("part-*")} == before


@pytest.mark.parametrize(
    ("text", "name", "start", "end"),
    [("a red circle", "red.mp4", 0, 2), ("a blue square", "red.mp4", 2, 5), ("a yellow circle", "yellow.mp4", 2, 4)],
)
def test_a_moment_is_found_by_what_is_seen(archive: Path, text: str, name: str, start: float, end: float) -> None:
    done = run("search", archive, text, "-k", "2")
    assert (done.exit_code, done.stderr) == (0, "")
    first, second = rows(done)
    assert (first["rank"], first["file_name"]) == (1, name)
    assert (first["start"], first["end"]) == (pytest.approx(start, abs=0.6), pytest.approx(end, abs=0.6))
    assert start <= first["time"] <= end
    assert first["score"] > second["score"]
    assert isinstance(first["caption"], str)


def test_search_by_picture_and_by_both(archive: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture("green triangle")).save(tmp_path / "query.png")
    alone = rows(run("search", archive, "--image", tmp_path / "query.png", "-k", "1"))
    both = rows(run("search", archive, "a green triangle", "--image", tmp_path / "query.png", "-k", "1"))
    assert alone[0]["file_name"] == both[0]["file_name"] == "green.mp4"
    assert alone[0]["score"] > 0.9


def test_what_is_asked_for_narrows_the_search(archive: Path) -> None:
    assert {row["file_name"] for row in rows(run("search", archive, "a red circle", "--path", "y*"))} == {"yellow.mp4"}
    late = rows(run("search", archive, "a red circle", "--path", "red*", "--after", "3"))
    assert late
    assert all(row["time"] >= 3 for row in late)
    best = rows(run("search", archive, "a red circle", "-k", "1"))[0]["score"]
    assert rows(run("search", archive, "a red circle", "--min-score", str(best + 0.01))) == []


def test_results_in_every_form(archive: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert run("search", archive, "a circle", "-o", tmp_path / "found.csv").stdout == ""
    assert (tmp_path / "found.csv").read_text().startswith("rank,score,path,")
    run("search", archive, "a circle", "-o", tmp_path / "found.parquet")
    assert pq.read_table(tmp_path / "found.parquet").column_names[0] == "rank"
    paths = run("search", archive, "a circle", "--paths-only", "-0").stdout.split("\0")
    assert sorted(Path(path).name for path in paths if path) == sorted(FILMS)
    done = run(
        "search", archive, "a <b>circle", "--html", tmp_path / "found.html", "--thumbnails", tmp_path / "pictures"
    )
    assert done.exit_code == 0
    page = (tmp_path / "found.html").read_text()
    assert "a &lt;b&gt;circle" in page
    assert page.count("data:image/jpeg;base64,") == len(rows(done)) == len(list((tmp_path / "pictures").iterdir()))
    assert 'href="file://' in page
    assert "#t=" in page


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


def test_how_features_are_stored_needs_features(films: Path, tmp_path: Path) -> None:
    done = run("index", films, "-o", tmp_path / "archive", "-m", "demo", "--features-dtype", "int8")
    assert done.exit_code == 2
    assert "add --features" in done.stderr
    assert not (tmp_path / "archive").exists()


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


def test_another_model_or_sampling_is_refused_by_name(films: Path, archive: Path, tmp_path: Path) -> None:
    from llava_mini_cli.model.tiny import write_tiny_checkpoint

    tiny = write_tiny_checkpoint(tmp_path / "tiny")
    for command in (
        ["index", films, "-o", archive, "-m", tiny],
        ["search", archive, "a circle", "-m", tiny],
        ["ask", "--index", archive, "Why?", "-m", tiny],
    ):
        done = run(*command)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "made with the model 'demo'" in done.stderr
    refused = run("ask", "--index", archive, "Why?", "--fps", "2")
    assert (refused.exit_code, "sampled with 1" in refused.stderr) == (2, True)
    refused = run("index", films, "-o", archive, "-m", "demo", "--fps", "2")
    assert (refused.exit_code, "--fps 2 (the archive has 1)" in refused.stderr) == (2, True)


def test_a_damaged_part_is_named_and_the_rest_is_found(films: Path, archive: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "a"
    shutil.copytree(archive, damaged)
    film(tmp_path / "new.mp4", ["orange circle"])
    more = ["-o", damaged, "-m", "demo", "--features", "--caption-every", "3", "-q"]
    assert run("index", tmp_path / "new.mp4", *more).exit_code == 0
    victim = damaged / "frames" / "part-000001.parquet"
    victim.write_bytes(victim.read_bytes()[:1000])
    done = run("search", damaged, "an orange circle")
    assert done.exit_code == 3
    assert [row["file_name"] for row in rows(done)] == ["new.mp4"]
    assert "frames/part-000001.parquet is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


def test_near_identical_frames_are_left_out_on_request(films: Path, tmp_path: Path) -> None:
    run("index", films / "red.mp4", "-o", tmp_path / "a", "-m", "demo", "--dedupe", "0.05", "-q")
    with open_archive(tmp_path / "a") as opened:
        (medium,) = opened.each_medium()
        assert (medium.frames, medium.frames_sampled) == (2, 5)
        columns = opened.frames(opened.parts[0])
        assert columns.last_time[0] == pytest.approx(columns.time[0] + 1, abs=0.1)
    first = rows(run("search", tmp_path / "a", "a blue square", "-k", "1"))[0]
    assert (first["start"], first["end"]) == (pytest.approx(2, abs=0.6), pytest.approx(5, abs=0.6))


def test_a_model_without_clips_text_half_indexes_and_says_what_searching_needs(films: Path, tmp_path: Path) -> None:
    from llava_mini_cli.model.tiny import write_tiny_checkpoint

    tiny = write_tiny_checkpoint(tmp_path / "tiny")
    assert run("index", films / "green.mp4", "-o", tmp_path / "a", "-m", tiny, "-q").exit_code == 0
    with open_archive(tmp_path / "a") as opened:
        assert opened.header.shapes.clip is None
    done = run("search", tmp_path / "a", "a circle")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "no text_model weights" in done.stderr
    assert done.stderr.count("\n") == 1


def test_failed_media_are_told_and_not_tried_again(films: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("no video")
    media = [tmp_path / "bad.mp4", films / "green.mp4", tmp_path / "gone.mp4"]
    done = run("index", *media, "-o", tmp_path / "a", "-m", "demo")
    assert done.exit_code == 3
    assert "1 media indexed, 2 failed" in done.stderr
    again = run("index", *media, "-o", tmp_path / "a", "-m", "demo")
    assert again.exit_code == 3
    assert "0 media indexed, 3 there already (2 failed; --retry-errors tries them again)" in again.stderr


def test_files_that_are_gone_are_dropped_on_request(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    run("index", folder, "-o", tmp_path / "a", "-m", "demo", "-q")
    (folder / "red.mp4").unlink()
    assert "1 dropped" in run("index", folder, "-o", tmp_path / "a", "-m", "demo", "--prune").stderr
    assert sorted({row["file_name"] for row in rows(run("search", tmp_path / "a", "a circle"))}) == [
        "green.mp4",
        "yellow.mp4",
    ]


def test_the_approximate_index_finds_the_same_here(archive: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    folder = tmp_path / "a"
    shutil.copytree(archive, folder)
    missing = run("search", folder, "a red circle", "--approximate")
    assert (missing.exit_code, "--ann" in missing.stderr) == (2, True)
    built = run("index", "-o", folder, "--ann")
    assert "recall of the nearest 10 1.000" in built.stderr
    near = run("search", folder, "a red circle", "-k", "1", "--approximate")
    assert "100.0% of the nearest 10" in near.stderr
    (found,), (exact,) = rows(near), rows(run("search", folder, "a red circle", "-k", "1"))
    assert found.pop("score") == pytest.approx(exact.pop("score"), abs=1e-6)
    assert found == exact


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


def test_moments_do_not_go_into_one_text_file(archive: Path, tmp_path: Path) -> None:
    done = run("ask", "--index", archive, "What is shown?", "--top", "3", "-f", "txt", "-o", tmp_path / "texts")
    assert done.exit_code == 2
    assert "--top" in done.stderr


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


def test_failures_are_limited_and_remembered_before_there_is_an_archive(films: Path, tmp_path: Path) -> None:
    gone = [tmp_path / f"gone{number}.mp4" for number in range(3)]
    done = run("index", *gone, "-o", tmp_path / "a", "-m", "demo", "--max-failures", "2")
    assert done.exit_code == 101
    assert "2 failed" in done.stderr
    assert run("index", *gone, films / "green.mp4", "-o", tmp_path / "b", "-m", "demo", "-q").exit_code == 3
    with open_archive(tmp_path / "b") as opened:
        assert sorted(failure.file_name for failure in opened.each_failure()) == [path.name for path in gone]


@pytest.mark.parametrize("option", [["--repetition-penalty", "2"], ["--temperature", "1"]])
def test_captions_of_other_settings_are_not_mixed(films: Path, archive: Path, option: list[str]) -> None:
    done = run("index", films, "-o", archive, "-m", "demo", "--features", "--caption-every", "3", *option)
    assert done.exit_code == 2
    assert option[0] in done.stderr


def test_a_name_that_is_no_utf8_is_found_again(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(films / "green.mp4", os.fsencode(folder) + b"/caf\xe9.mp4")
    first = run("index", folder, "-o", tmp_path / "a", "-m", "demo", "--prune")
    assert "1 media indexed, 4 frames" in first.stderr
    assert "1 there already" in run("index", folder, "-o", tmp_path / "a", "-m", "demo", "--prune").stderr
    (row,) = rows(run("ask", "--index", tmp_path / "a", "What is shown?", "-q"))
    assert (row["status"], row["file_name"]) == ("ok", "caf\\xe9.mp4")
    done = run("search", tmp_path / "a", "a green triangle", "-k", "1", "--thumbnails", tmp_path / "pictures")
    assert (done.exit_code, len(os.listdir(tmp_path / "pictures"))) == (0, 1)


def test_a_medium_may_fail_while_its_first_captions_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from llava_mini_cli.errors import MediaError
    from llava_mini_cli.media.image import AnimationClip

    pages = [Image.new("RGB", (64, 64), (2 * number, 0, 0)) for number in range(100)]
    pages[0].save(tmp_path / "long.gif", save_all=True, append_images=pages[1:], duration=100)
    whole = AnimationClip._frame

    def breaks(clip: AnimationClip, index: int) -> np.ndarray:
        if index > 70:
            raise MediaError("corrupt", "the rest is damaged")
        return whole(clip, index)

    monkeypatch.setattr(AnimationClip, "_frame", breaks)
    options = ["-m", "demo", "--fps", "10", "--caption-every", "1s"]
    done = run("index", tmp_path / "long.gif", "-o", tmp_path / "a", *options)
    assert done.exit_code == 3
    assert "0 media indexed, 1 failed" in done.stderr
    with open_archive(tmp_path / "a") as opened:
        (failure,) = opened.each_failure()
        assert failure.error == "the rest is damaged"


def test_moments_of_sparse_frames_have_a_length(tmp_path: Path) -> None:
    long = tmp_path / "long.mp4"
    source = "color=c=green:s=64x64:r=1:d=7200"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source, str(long)]
    subprocess.run(command, check=True)
    options = ["-m", "demo", "--max-frames", "2", "--features", "-q"]
    assert run("index", long, "-o", tmp_path / "a", *options).exit_code == 0
    (moment,) = rows(run("search", tmp_path / "a", "a green square", "--check", "Is it green?"))
    assert (moment["start"], moment["end"]) == (pytest.approx(0, abs=2), pytest.approx(7200, abs=2))
    assert moment["p_yes"] is not None


def test_a_target_that_cannot_be_written_is_told_first(archive: Path, tmp_path: Path) -> None:
    for option in ("-o", "--html"):
        done = run("search", archive, "a circle", option, tmp_path / "none" / "x.jsonl")
        assert (done.exit_code, done.stdout) == (1, "")
        assert "there is no folder" in done.stderr


def test_an_approximate_index_does_not_outlive_compaction(films: Path, tmp_path: Path) -> None:
    """Part numbers are given out again; what was indexed under the old ones must not be found under the new."""
    pytest.importorskip("faiss")
    folder, index = tmp_path / "films", tmp_path / "a"
    folder.mkdir()
    shutil.copy(films / "red.mp4", folder / "1.mp4")
    assert run("index", folder, "-o", index, "-m", "demo", "-q").exit_code == 0
    assert run("index", "-o", index, "--ann", "-q").exit_code == 0
    (folder / "1.mp4").unlink()
    shutil.copy(films / "green.mp4", folder / "2.mp4")
    done = run("index", "-o", index, "-m", "demo", "--prune", "--compact")
    assert "2 parts merged into 0" in done.stderr or "1 parts merged into 0" in done.stderr
    assert run("index", folder, "-o", index, "-m", "demo", "-q").exit_code == 0
    near = run("search", index, "a green triangle", "--approximate")
    assert (near.exit_code, "has no approximate index" in near.stderr) == (2, True)


def wait_for_parts(archive: Path, count: int, process: "subprocess.Popen[Any]") -> None:
    """Until so many parts are there, the process has ended, or a generous time has passed."""
    end = time.monotonic() + 60
    while len(list(archive.glob("media/part-*"))) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def test_killing_index_at_any_moment_loses_nothing(films: Path, tmp_path: Path) -> None:
    """Each run is killed a little later than the last; what it had put in place stays, and the last one finishes."""
    folder, archive = tmp_path / "many", tmp_path / "a"
    folder.mkdir()
    for number in range(12):
        shutil.copy(films / sorted(FILMS)[number % len(FILMS)], folder / f"{number:02d}.mp4")
    often = "from llava_mini_cli.formats.archive import writer; writer.PART_SECONDS = 0.0; "  # a part for each medium
    code = often + "from llava_mini_cli.__main__ import main; main()"
    command = [sys.executable, "-c", code, "index", str(folder), "-o", str(archive), "-m", "demo", "-q"]
    rng = random.Random(0)
    held: set[str] = set()
    for number in range(6):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for_parts(archive, len(held) + 1 if number < 3 else 0, process)
        time.sleep(rng.uniform(0, 0.1 if number < 3 else 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (archive / "archive.json").exists():
            with open_archive(archive) as opened:
                assert not opened.damage
                now = {medium.path for medium in opened.each_medium()}
            assert held <= now
            held = now
    assert held
    assert subprocess.run(command, check=False).returncode == 0
    with open_archive(archive) as opened:
        media = list(opened.each_medium())
        assert sorted(medium.file_name for medium in media) == sorted(os.listdir(folder))
        rows_there = sum(len(opened.frames(part).medium) for part in opened.parts)
        assert rows_there == sum(medium.frames for medium in media)
    assert not list(archive.rglob("*.tmp"))


def test_sigterm_keeps_what_is_complete(films: Path, tmp_path: Path) -> None:
    folder, archive = tmp_path / "many", tmp_path / "a"
    folder.mkdir()
    for number in range(40):
        shutil.copy(films / "green.mp4", folder / f"{number:02d}.mp4")
    command = [LLAVA_MINI, "index", str(folder), "-o", str(archive), "-m", "demo", "-v"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    opened_media = 0
    while opened_media < 5:
        line = process.stderr.readline()
        assert line
        opened_media += ": video, " in line
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted by SIGTERM" in said
    with open_archive(archive) as opened:
        assert len(opened.media) < 40
        assert not opened.damage


def test_the_commands_of_the_archive_page_run(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    shutil.copytree(films, tmp_path / "films")
    Image.fromarray(picture("green triangle")).save(tmp_path / "like.png")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    for block in shell_blocks(ROOT / "docs" / "archive.md"):
        run_block(block, tmp_path, monkeypatch, PATH=path, LLAVA_MINI_MODEL="demo")
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
    assert {"moments.html", "found.csv", "rows.jsonl", "list.txt", "pictures"} <= set(os.listdir(tmp_path))


def test_the_query_of_the_archive_page_runs(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(archive.parent)
    (query,) = re.findall(r"^```sql\n(.*?)^```", (ROOT / "docs" / "archive.md").read_text(), re.MULTILINE | re.DOTALL)
    found = duckdb.sql(query).fetchall()
    assert sorted(row[0] for row in found) == sorted(name for name, seconds in FILMS.items() for _ in seconds)
    assert len(found[0][2]) == 64
