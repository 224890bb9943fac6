"""`llava-mini when` with the demo model, as a user runs it: films of known truth, an archive, odd media."""

import subprocess
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
from archive_films import FILMS, picture, rows, run
from PIL import Image
from when import Film, random_film, score

RED = ("-p", "red=Is there a red circle?", "-p", "yellow=Is there a yellow circle?")


def spans(done: object) -> list[tuple[str, str, float, float]]:
    found = rows(done)  # type: ignore[arg-type]
    return sorted((row["file_name"], row["prompt_name"], row["start"], row["end"]) for row in found if row["segment"])


def test_events_of_films_and_of_their_archive(films: Path, archive: Path, tmp_path: Path) -> None:
    track = tmp_path / "track.parquet"
    done = run("when", films, *RED, "-m", "demo", "--track", track, "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    found = spans(done)
    assert [one[:2] for one in found] == [("red.mp4", "red"), ("yellow.mp4", "yellow")]
    for _, colour, start, end in found:
        truth = {"red": (0, 2), "yellow": (2, 4)}[colour]
        assert abs(start - truth[0]) <= 1
        assert abs(end - truth[1]) <= 1
    assert sorted(row["file_name"] for row in rows(done) if row["text"] == "no") == [
        "green.mp4", "green.mp4", "red.mp4", "yellow.mp4",
    ]  # fmt: skip
    # Times are the frames' own.
    windows = pq.read_table(track).to_pylist()
    assert len(windows) == 2 * sum(map(len, FILMS.values()))
    for name in FILMS:
        times = sorted({row["time"] for row in windows if row["file_name"] == name})
        assert times == sorted(times)
        assert all(0.5 <= later - earlier <= 1.5 for earlier, later in pairwise(times))
        edges = {0.0, *times, max(row["duration_s"] for row in windows if row["file_name"] == name)}
        assert {edge for one in found if one[0] == name for edge in one[2:]} <= edges
    again = run(
        "when", "--index", archive, *RED, "-q", "-o", tmp_path / "rows.jsonl", "--track", tmp_path / "t.parquet"
    )
    assert (again.exit_code, again.stderr) == (0, "")
    stored = pq.read_table(tmp_path / "t.parquet").to_pylist()
    keys = ("file_name", "prompt_name", "segment", "time")
    probabilities = {tuple(row[key] for key in keys): row["p_yes"] for row in stored}
    assert probabilities == pytest.approx({tuple(row[key] for key in keys): row["p_yes"] for row in windows}, abs=1e-4)
    one = run("when", "--index", archive, "--path", "*red*", *RED, "-q")
    assert spans(one) == [span for span in found if span[0] == "red.mp4"]


def test_an_archive_that_was_cut_is_looked_at_as_a_whole(films: Path, tmp_path: Path) -> None:
    cut = ("--start", "1s", "--end", "4s")
    made = run("index", films / "yellow.mp4", "-o", tmp_path / "x", "-m", "demo", "--features", "-q", *cut)
    assert made.exit_code == 0
    stored = run("when", "--index", tmp_path / "x", *RED, "-q")
    assert spans(stored) == spans(run("when", films / "yellow.mp4", *RED, "-m", "demo", "-q", *cut))
    assert len(spans(stored)) == 1


def test_odd_media_are_rows(tmp_path: Path) -> None:
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i"]
    subprocess.run([*ffmpeg, "sine=duration=1", str(tmp_path / "audio.mp4")], check=True)
    subprocess.run([*ffmpeg, "color=red:size=64x48:rate=1:duration=1", str(tmp_path / "one.mp4")], check=True)
    subprocess.run([*ffmpeg, "color=red:size=64x48:rate=25:duration=0.2", str(tmp_path / "short.mp4")], check=True)
    Image.fromarray(picture("red circle")).save(tmp_path / "circle.png")
    frames = [Image.fromarray(np.full((48, 64, 3), shade, np.uint8)) for shade in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=1000)
    (tmp_path / "empty.mp4").touch()
    done = run("when", tmp_path, "Is there a red circle?", "-m", "demo", "-q")
    assert done.exit_code == 3
    found = {row["file_name"]: row for row in rows(done)}
    assert len(found) == len(rows(done)) == 6
    assert {name: row["error_type"] for name, row in found.items() if row["status"] == "error"} == {
        "audio.mp4": "no_video", "empty.mp4": found["empty.mp4"]["error_type"],
    }  # fmt: skip
    still = found["circle.png"]
    assert (still["media"], still["text"], still["segment"], still["start"], still["end"], still["peak_at"]) == (
        "image", "yes", 1, None, None, None,
    )  # fmt: skip
    assert still["p_mean"] == still["p_peak"] > 0.9
    assert [found[name]["frame_count"] for name in ("one.mp4", "short.mp4", "moving.gif")] == [1, 1, 2]
    late = run("when", tmp_path / "one.mp4", "Is it red?", "-m", "demo", "-q", "--start", "50s")
    assert (late.exit_code, [row["error_type"] for row in rows(late)]) == (3, ["empty"])
    files = run("when", tmp_path / "circle.png", "Is it red?", "-m", "demo", "-q", "-f", "srt", "-o", tmp_path / "out")
    assert files.exit_code == 3
    assert "a picture has no times, which the format needs" in files.stderr
    assert not list((tmp_path / "out").glob("*.srt"))


# The benchmark's own arithmetic


def film(story: str, *events: tuple[float, float]) -> Film:
    made = random_film(0)
    return Film("a.mp4", story, made.thing, events, (), "black", 20.0, "Is there a red circle?")


def test_the_score_counts_events() -> None:
    made = film("twice", (1.0, 3.0), (10.0, 12.0))
    assert score([made], {"a.mp4": [(1.9, 3.9), (10.0, 12.0)]})["f1"] == 1
    assert score([made], {"a.mp4": [(2.1, 3.0), (10.0, 12.0)]})["f1"] == 0.5
    assert score([made], {"a.mp4": [(10.0, 12.0)]})["f1"] == pytest.approx(2 / 3, abs=1e-4)
    assert score([made], {"a.mp4": [(1.0, 3.0)] * 2})["found"] == 1
    assert score([film("never")], {"a.mp4": [(0.0, 20.0)]})["f1"] == 0


def test_stories_are_what_they_say() -> None:
    made = [random_film(index) for index in range(50)]
    assert {one.story: {len(film.spans) for film in made if film.story == one.story} for one in made} == {
        "appears": {1}, "vanishes": {1}, "brief": {1}, "twice": {2}, "never": {0},
    }  # fmt: skip
    for one in made:
        assert all(0 <= start < end <= one.seconds for start, end in one.spans)
        assert all(later[0] - earlier[1] > 1 for earlier, later in pairwise(one.spans))
        seen = {(thing.colour, thing.shape) for thing in one.others}
        assert (one.thing.colour, one.thing.shape) not in seen
