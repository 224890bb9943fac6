"""index with the demo model on rendered videos, as a user runs it; killed at any moment, too."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_films import FILMS, picture, rows, run
from test_docs import ROOT, run_block, shell_blocks
from warm_command import started

from llava_mini_cli.formats.archive.reader import open_archive


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


def test_how_features_are_stored_needs_features(films: Path, tmp_path: Path) -> None:
    done = run("index", films, "-o", tmp_path / "archive", "-m", "demo", "--features-dtype", "int8")
    assert done.exit_code == 2
    assert "add --features" in done.stderr
    assert not (tmp_path / "archive").exists()


def test_another_model_or_sampling_is_refused_by_name(films: Path, archive: Path, tmp_path: Path) -> None:
    from tiny_checkpoints import write_tiny_checkpoint

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


def test_near_identical_frames_are_left_out_on_request(films: Path, tmp_path: Path) -> None:
    run("index", films / "red.mp4", "-o", tmp_path / "a", "-m", "demo", "--dedupe", "0.05", "-q")
    with open_archive(tmp_path / "a") as opened:
        (medium,) = opened.each_medium()
        assert (medium.frames, medium.frames_sampled) == (2, 5)
        columns = opened.frames(opened.parts[0])
        assert columns.last_time[0] == pytest.approx(columns.time[0] + 1, abs=0.1)
    first = rows(run("search", tmp_path / "a", "a blue square", "-k", "1"))[0]
    assert (first["start"], first["end"]) == (pytest.approx(2, abs=0.6), pytest.approx(5, abs=0.6))


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
    from llava_mini_cli.media.picture import Picture

    pages = [Image.new("RGB", (64, 64), (2 * number, 0, 0)) for number in range(100)]
    pages[0].save(tmp_path / "long.gif", save_all=True, append_images=pages[1:], duration=100)
    whole = Picture.frames

    def breaks(picture: Picture, indices: np.ndarray, size: int) -> np.ndarray:
        if indices.max() > 70:
            raise MediaError("corrupt", "the rest is damaged")
        return whole(picture, indices, size)

    monkeypatch.setattr(Picture, "frames", breaks)
    options = ["-m", "demo", "--fps", "10", "--caption-every", "1s"]
    done = run("index", tmp_path / "long.gif", "-o", tmp_path / "a", *options)
    assert done.exit_code == 3
    assert "0 media indexed, 1 failed" in done.stderr
    with open_archive(tmp_path / "a") as opened:
        (failure,) = opened.each_failure()
        assert failure.error == "the rest is damaged"


def wait_for_parts(archive: Path, count: int, process: "subprocess.Popen[Any]") -> None:
    """Until so many parts are there, the process has ended, or a generous time has passed."""
    end = time.monotonic() + 60
    while len(list(archive.glob("media/part-*"))) < count and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def test_killing_index_at_any_moment_loses_nothing(films: Path, tmp_path: Path, warm_command: Path) -> None:
    """Each run is killed a little later than the last; what it had put in place stays, and the last one finishes."""
    folder, archive = tmp_path / "many", tmp_path / "a"
    folder.mkdir()
    for number in range(12):
        shutil.copy(films / sorted(FILMS)[number % len(FILMS)], folder / f"{number:02d}.mp4")
    often = "from llava_mini_cli.formats.archive import writer; writer.PART_SECONDS = 0.0; "  # a part for each medium
    code = often + "from llava_mini_cli.__main__ import main; main()"
    command = [warm_command / "python", "-c", code, "index", folder, "-o", archive, "-m", "demo", "-q"]
    rng = random.Random(0)
    held: set[str] = set()
    for number in range(6):
        process, pid = started(command, tmp_path / "pid", stderr=subprocess.DEVNULL)
        wait_for_parts(archive, len(held) + 1 if number < 3 else 0, process)
        time.sleep(rng.uniform(0, 0.1 if number < 3 else 1.5))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
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


def test_sigterm_keeps_what_is_complete(films: Path, tmp_path: Path, warm_command: Path) -> None:
    folder, archive = tmp_path / "many", tmp_path / "a"
    folder.mkdir()
    for number in range(40):
        shutil.copy(films / "green.mp4", folder / f"{number:02d}.mp4")
    command = [warm_command / "llava-mini", "index", folder, "-o", archive, "-m", "demo", "-v"]
    process, pid = started(command, tmp_path / "pid", stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    opened_media = 0
    while opened_media < 5:
        line = process.stderr.readline()
        assert line
        opened_media += ": video, " in line
    os.kill(pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted by SIGTERM" in said
    with open_archive(archive) as opened:
        assert len(opened.media) < 40
        assert not opened.damage


def test_the_commands_of_the_archive_page_run(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_command: Path
) -> None:
    from PIL import Image

    shutil.copytree(films, tmp_path / "films")
    Image.fromarray(picture("green triangle")).save(tmp_path / "like.png")
    path = f"{warm_command}:{Path(sys.executable).parent}:/usr/bin:/bin"
    for block in shell_blocks(ROOT / "docs" / "archive.md"):
        run_block(block, tmp_path, monkeypatch, PATH=path, LLAVA_MINI_MODEL="demo")
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3
    assert {"moments.html", "found.csv", "rows.jsonl", "list.txt", "pictures"} <= set(os.listdir(tmp_path))
