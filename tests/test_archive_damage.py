"""Archives with damage in one place, media that lie elsewhere or inside other files, and what is asked in vain."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from archive_films import film, rows, run
from http_server import serve
from test_formats_archive import as_format_1

from llava_mini_cli.commands.flags.search_flags import FoundFlags
from llava_mini_cli.commands.search import _show, _write
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.pipelines.pictures import picture_name
from llava_mini_cli.view.media import MediaPlaces, file_url


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, seconds in {
        "red.mp4": ["red circle"] * 2,
        "green.mp4": ["green cross"] * 2,
        "blue.mp4": ["blue square"],
    }.items():
        film(folder / name, seconds)
    return folder


@pytest.fixture(scope="module")
def two_parts(films: Path) -> Path:
    """red.mp4 in the first part, green.mp4 in the second; with captions."""
    folder = films.with_name("two.index")
    for name in ("red.mp4", "green.mp4"):
        done = run("index", films / name, "-o", folder, "-m", "demo", "--caption-every", "9", "-q")
        assert (done.exit_code, done.stderr) == (0, "")
    return folder


@pytest.fixture
def copy(two_parts: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_parts, tmp_path / "a")


def flip(path: Path) -> None:
    """Changes a byte in the middle of the embeddings, which the footer knows nothing of."""
    group = pq.read_metadata(path).row_group(0)
    column = next(c for i in range(group.num_columns) if (c := group.column(i)).path_in_schema.startswith("clip"))
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(data)


def numbers(archive: Path) -> list[int]:
    return [n for path in sorted((archive / "media").iterdir()) for n in pq.read_table(path)["medium"].to_pylist()]


def test_damaged_captions_cost_their_captions_alone(copy: Path) -> None:
    (copy / "captions" / "part-000001.parquet").write_bytes(b"nonsense")
    done = run("search", copy, "a red circle")
    assert done.exit_code == 3
    captions = {row["file_name"]: row["caption"] for row in rows(done)}
    assert captions["red.mp4"] is None
    assert captions["green.mp4"]
    assert done.stderr.count("captions/part-000001.parquet") == 1


def test_the_approximate_search_leaves_out_what_is_damaged(copy: Path) -> None:
    pytest.importorskip("faiss")
    assert run("index", "-o", copy, "--ann", "-q").exit_code == 0
    (copy / "vectors" / "part-000001.f16").unlink()
    flip(copy / "frames" / "part-000001.parquet")
    done = run("search", copy, "a red circle", "--approximate")
    assert (done.exit_code, [row["file_name"] for row in rows(done)]) == (3, ["green.mp4"])
    assert "frames/part-000001.parquet" in done.stderr


def test_compacting_takes_out_a_part_with_a_damaged_page_and_indexing_brings_it_back(copy: Path, films: Path) -> None:
    flip(copy / "frames" / "part-000001.parquet")
    done = run("index", "-o", copy, "--compact")
    assert done.exit_code == 0
    assert "frames/part-000001.parquet was damaged and is taken out" in done.stderr
    assert {row["file_name"] for row in rows(run("search", copy, "a circle"))} == {"green.mp4"}
    again = run("index", films / "red.mp4", films / "green.mp4", "-o", copy, "-m", "demo", "--caption-every", "9")
    assert (again.exit_code, "1 media indexed, 1 there already" in again.stderr) == (0, True)
    assert {row["file_name"] for row in rows(run("search", copy, "a circle"))} == {"red.mp4", "green.mp4"}


def found(archive: Path) -> list[tuple[str, float, float]]:
    """What a search says; a score is summed in another order where a part has more rows."""
    return [(row["file_name"], row["time"], round(row["score"], 5)) for row in rows(run("search", archive, "a circle"))]


def test_an_archive_of_an_older_version_is_read_and_becomes_a_new_one(copy: Path) -> None:
    before = found(copy)
    assert found(as_format_1(copy)) == before
    said = run("index", "-o", copy, "--compact")
    assert (said.exit_code, f"{copy} was made by an older version" in said.stderr) == (0, True)
    assert "older version" not in run("index", "-o", copy, "--prune", "-m", "demo").stderr
    assert found(copy) == before


def test_a_manifest_that_is_damaged_is_made_anew(copy: Path) -> None:
    before = rows(run("search", copy, "a red circle"))
    (copy / "parts.json").write_text("{")
    done = run("search", copy, "a red circle")
    assert (done.exit_code, rows(done), "parts.json is damaged" in done.stderr) == (3, before, True)
    assert "parts.json was damaged and is made anew" in run("index", "-o", copy, "--compact").stderr
    assert run("search", copy, "a red circle").exit_code == 0


def test_compacting_keeps_what_the_system_refuses_to_read(copy: Path) -> None:
    victim = copy / "media" / "part-000001.parquet"
    aside = victim.rename(copy.with_name("aside"))
    victim.symlink_to(victim)  # the system refuses to follow it; a permission would not stop root
    done = run("index", "-o", copy, "--compact")
    assert (done.exit_code, "cannot compact" in done.stderr) == (1, True)
    victim.unlink()
    aside.rename(victim)
    assert {row["file_name"] for row in rows(run("search", copy, "a circle"))} == {"red.mp4", "green.mp4"}


def test_numbers_are_not_given_out_again_while_a_part_cannot_be_read(copy: Path, films: Path) -> None:
    victim = copy / "media" / "part-000002.parquet"
    whole = victim.read_bytes()
    victim.write_bytes(b"nonsense")
    assert run("index", films / "blue.mp4", "-o", copy, "-m", "demo", "--caption-every", "9", "-q").exit_code == 3
    victim.write_bytes(whole)
    assert len(set(numbers(copy))) == 3
    assert run("index", "-o", copy, "--compact", "-q").exit_code == 0
    with open_archive(copy) as opened:
        assert {medium.file_name: medium.frames for medium in opened.each_medium()} == {
            "red.mp4": 2,
            "green.mp4": 2,
            "blue.mp4": 1,
        }
    assert rows(run("search", copy, "a blue square", "-k", "1"))[0]["file_name"] == "blue.mp4"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--fps", "1"], "sampled with 2"),
        (["--model", "ICTNLP/llava-mini-llama-3.1-8b"], "made with 'demo'"),
    ],
)
def test_an_option_that_says_what_the_default_is_counts_as_given(
    films: Path, tmp_path: Path, option: list[str], words: str
) -> None:
    archive = tmp_path / "a"
    assert run("index", films / "blue.mp4", "-o", archive, "-m", "demo", "--fps", "2", "-q").exit_code == 0
    done = run("ask", "--index", archive, "What is shown?", *option)
    assert (done.exit_code in (1, 2), done.stdout) == (True, "")
    assert words in done.stderr
    assert run("ask", "--index", archive, "What is shown?", "-q").exit_code == 0


def test_members_of_shards_stay_while_their_shard_does(films: Path, tmp_path: Path) -> None:
    archive, shard = tmp_path / "a", tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(films / "red.mp4", "red.mp4")
    assert run("index", shard, "-o", archive, "-m", "demo", "--prune", "-q").exit_code == 0
    assert [row["file_name"] for row in rows(run("search", archive, "a red circle"))] == ["shard.tar/red.mp4"]
    asked = run("ask", "--index", archive, "What is shown?", "-q")
    (row,) = rows(asked)
    assert (asked.exit_code, row["status"], "--features" in row["error"]) == (3, "error", True)
    shard.unlink()
    assert "1 dropped" in run("index", "-o", archive, "-m", "demo", "--prune").stderr


def test_media_from_elsewhere_are_fetched_again_where_their_features_are_not_stored(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve({"red.mp4": (films / "red.mp4").read_bytes()}) as server:
        url = f"{server.url}/red.mp4"
        assert run("index", url, "-o", tmp_path / "a", "-m", "demo", "-q").exit_code == 0
        done = run("ask", "--index", tmp_path / "a", "What shapes are shown?", "-q")
        (row,) = rows(done)
        (asked,) = rows(run("ask", url, "What shapes are shown?", "-m", "demo", "-q"))
    assert (done.exit_code, row["status"], row["text"]) == (0, "ok", asked["text"])
    assert json.dumps(row["id"]).count("red.mp4") == 1


def test_names_are_shown_and_cut_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "ä" * 200 + ".mp4"
    times = {"time": 1.0, "start": 0.5, "end": 1.5, "duration_s": 2.0}
    moment = Moment(
        rank=1, score=0.5, path=":100:[red].mp4", file_name=name, media="video", frames=1, caption=None, **times
    )
    _show([moment])
    assert ":100:[red].mp4" in capsys.readouterr().out
    assert picture_name(moment) == "001-" + "ä" * 100 + "-1.0s.jpg"


def test_names_that_are_no_utf8_lead_to_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "caf\udce9.mp4").touch()
    times = {"time": None, "start": None, "end": None, "duration_s": None}
    kind = {"file_name": "a", "media": "image", "frames": 1, "caption": None}
    moment = Moment(rank=1, score=0.5, path=f"{tmp_path}/caf\\xe9.mp4", **times, **kind)  # pyright: ignore
    found = MediaPlaces(tmp_path).medium({"path": moment.path, "file": moment.file_name})
    assert found is not None
    assert file_url(found) == f"file://{tmp_path}/caf%E9.mp4"
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written))
    _write([moment, moment], FoundFlags(paths_only=True, null=True), None, "jsonl")
    assert written.getvalue() == f"{tmp_path}/caf".encode() + b"\xe9.mp4\0"
