"""search with the demo model on an archive of rendered videos, as a user runs it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pyarrow.parquet as pq
import pytest
from archive_films import FILMS, film, picture, rows, run
from test_docs import ROOT

from llava_mini_cli.commands.stderr import KNOWN_TO_DEMO
from llava_mini_cli.formats.archive.reader import open_archive


@pytest.mark.parametrize(
    ("text", "name", "start", "end"),
    [("a red circle", "red.mp4", 0, 2), ("a blue square", "red.mp4", 2, 5), ("a yellow circle", "yellow.mp4", 2, 4)],
)
def test_a_moment_is_found_by_what_is_seen(archive: Path, text: str, name: str, start: float, end: float) -> None:
    done = run("search", archive, text, "-k", "2")
    assert (done.exit_code, done.stderr) == (0, KNOWN_TO_DEMO + "\n")
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
    assert '"source":"file://' in page


def test_a_damaged_part_is_named_and_the_rest_is_found(films: Path, archive: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "a"
    shutil.copytree(archive, damaged)
    film(tmp_path / "new.mp4", ["orange circle"])
    more = ["-o", damaged, "-m", "demo", "--features", "--caption-every", "3", "-q"]
    assert run("index", tmp_path / "new.mp4", *more).exit_code == 0
    victim = damaged / "frames" / "part-000001.parquet"
    victim.write_bytes(victim.read_bytes()[:1000])
    done = run("search", damaged, "an orange circle", "-q")
    assert done.exit_code == 3
    assert [row["file_name"] for row in rows(done)] == ["new.mp4"]
    assert "frames/part-000001.parquet is damaged" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_model_without_clips_text_half_indexes_and_says_what_searching_needs(films: Path, tmp_path: Path) -> None:
    from tiny_checkpoints import write_tiny_checkpoint

    tiny = write_tiny_checkpoint(tmp_path / "tiny")
    assert run("index", films / "green.mp4", "-o", tmp_path / "a", "-m", tiny, "-q").exit_code == 0
    with open_archive(tmp_path / "a") as opened:
        assert opened.header.shapes.clip is None
    done = run("search", tmp_path / "a", "a circle", "-m", tiny)  # an archive alone does not choose a folder
    assert (done.exit_code, done.stdout) == (2, "")
    assert "holds no CLIP embeddings" in done.stderr
    assert done.stderr.count("\n") == 1


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


def test_moments_do_not_go_into_one_text_file(archive: Path, tmp_path: Path) -> None:
    done = run("ask", "--index", archive, "What is shown?", "--top", "3", "-f", "txt", "-o", tmp_path / "texts")
    assert done.exit_code == 2
    assert "--top" in done.stderr


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


def test_an_approximate_index_of_parts_that_are_gone_hides_and_shows_nothing(films: Path, tmp_path: Path) -> None:
    """Part numbers are not given out again: what was indexed under the old ones is not found under the new."""
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
    near = run("search", index, "a green triangle", "--approximate", "-q")
    assert (near.exit_code, [row["file_name"] for row in rows(near)]) == (0, ["2.mp4"])


# What docs/archive.md says of other tools


@pytest.fixture(scope="module")
def changed(films: Path, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive after one of its films became another one: rows and frames of it lie there that do not count."""
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(archive, folder / "films.index")
    shutil.copytree(films, folder / "films")
    options = ["-o", folder / "films.index", "-m", "demo", "--features", "--caption-every", "3", "-q"]
    assert run("index", folder / "films" / "red.mp4", *options).exit_code == 0
    film(folder / "films" / "red.mp4", ["green circle"] * 3)
    assert run("index", folder / "films" / "red.mp4", *options).exit_code == 0
    return folder


def that_count(folder: Path) -> list[tuple[str, float]]:
    """The name and time of each frame that counts, as our own reader tells them."""
    with open_archive(folder / "films.index") as archive:
        names = {medium.number: medium.file_name for medium in archive.each_medium()}
        columns = [archive.frames(part) for part in archive.parts]
    every = [row for part in columns for row in zip(part.medium.tolist(), part.time.tolist(), strict=True)]
    return sorted((names[medium], time) for medium, time in every if medium in names)


def blocks(language: str) -> list[str]:
    page = (ROOT / "docs" / "archive.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_query_of_the_archive_page_runs(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(changed)
    (query,) = blocks("sql")
    found = duckdb.sql(query).fetchall()
    assert sorted((row[0], row[1]) for row in found) == that_count(changed)
    assert len(found[0][2]) == 64


def test_pandas_and_ray_read_an_archive_as_its_page_says(changed: Path) -> None:
    pytest.importorskip("ray.data")
    of_pandas, of_ray = blocks("python")
    show = """
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
%s
made = pd.read_parquet("norms")
print(json.dumps([sorted(zip(frames.file_name, frames.time)), sorted(zip(made.file_name, made.time)), min(made.norm)]))
"""
    code = f"import ray\n{of_pandas}{show % of_ray}"
    environment = os.environ | {"RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=changed, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    in_pandas, in_ray, least = json.loads(done.stdout.splitlines()[-1])
    assert in_pandas == in_ray == [list(one) for one in that_count(changed)]
    assert least > 0
