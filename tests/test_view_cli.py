"""`llava-mini view`: every output of ours as rows, the page from disk, and bad values, each one clear line."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
from configured_cli import llava_mini
from view_rows import picture_rows, row, video_rows, write_parquet

from llava_mini_cli.formats.archive.moments import Moment, write_moments
from llava_mini_cli.view import moments_page as moments_module
from llava_mini_cli.view import write_page
from llava_mini_cli.view.facets import chunk_script
from llava_mini_cli.view.filters import KEPT_ANSWERS, Filter, Finder
from llava_mini_cli.view.moments_page import moments_page
from llava_mini_cli.view.sources import open_rows
from llava_mini_cli.view.table import BINS, RowTable, filled


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Ten rows about pictures in `rows.parquet` and `rows.jsonl`, in a working directory of their own."""
    monkeypatch.chdir(tmp_path)
    made = picture_rows(Path("photos"), 5, 1)
    write_parquet(made, Path("rows.parquet"))
    lines = (json.dumps({k: v for k, v in one.items() if k != "thumbnail"}) for one in made)
    Path("rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return made


def shown(folder: Path) -> list[dict[str, Any]]:
    """The rows that a page holds."""
    found: list[dict[str, Any]] = []
    for path in sorted((folder / "rows").iterdir()):
        found += json.loads(path.read_text().partition(", ")[2].removesuffix(");\n"))
    return found


def test_a_page_holds_every_row_and_each_picture_once(rows: list[dict[str, Any]]) -> None:
    result = llava_mini("view", "rows.parquet", "-o", "page")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "llava-mini: 10 rows written to page/index.html\n"
    assert {path.name for path in Path("page").iterdir()} == {
        "index.html", "facets.js", "view.css", "view.js", "rows", "pictures",
    }  # fmt: skip
    told = shown(Path("page"))
    assert [one["n"] for one in told] == list(range(10))
    assert [one.get("text") for one in told] == [one["text"] for one in rows]
    assert {path.name for path in Path("page/pictures/000").iterdir()} == {f"{n:06}.jpg" for n in range(5)}
    assert Path("page", told[2]["picture"]).read_bytes() == rows[2]["thumbnail"]
    assert told[0]["error_type"] == "corrupt"
    assert "picture" not in told[0]
    assert told[2]["probs"] == pytest.approx({one["choice"]: one["probability"] for one in rows[2]["choice_probs"]})


def test_a_page_lies_in_a_folder_that_is_made(rows: list[dict[str, Any]]) -> None:
    assert llava_mini("view", "rows.jsonl", "-o", "some/new/page").exit_code == 0
    assert len(shown(Path("some/new/page"))) == 10


def test_numbers_that_json_has_not_are_left_out_and_others_stay() -> None:
    row = {"p": math.nan, "start": 1.5, "fields": {"a": [math.inf, 2.5, "</script>"]}}
    script = chunk_script(7, [row])
    assert script == ('llavaMini.chunk(7, [\n{"p":null,"start":1.5,"fields":{"a":[null,2.5,"\\u003c/script>"]}}\n]);\n')


def test_a_page_of_moments_holds_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "CHUNK", 2)
    moments = [
        Moment(
            rank=rank, score=1 / rank, path="/a.mp4", file_name="a.mp4", media="video", time=2.0, start=1.5, end=2.5,
            frames=1, duration_s=6.0, caption=f"caption {rank}",
        )
        for rank in range(1, 6)
    ]  # fmt: skip
    page = moments_page(moments, [None] * 5, "a car").decode()
    chunks = re.findall(r"llavaMini\.chunk\((\d), (\[.*?\])\);", page, re.DOTALL)
    told = [[row["text"] for row in json.loads(rows)] for _, rows in chunks]
    assert told == [["caption 1", "caption 2"], ["caption 3", "caption 4"], ["caption 5"]]
    assert [number for number, _ in chunks] == ["0", "1", "2"]


def test_a_page_is_replaced_on_demand_and_nothing_else_ever(rows: list[dict[str, Any]]) -> None:
    assert llava_mini("view", "rows.jsonl", "-o", "page", "-q").stderr == ""
    result = llava_mini("view", "rows.parquet", "-o", "page")
    assert result.exit_code == 1
    assert result.stderr == "llava-mini: error: 'page' holds a page already; --overwrite writes it anew\n"
    assert llava_mini("view", "rows.parquet", "-o", "page", "--overwrite").exit_code == 0
    assert len(list(Path("page/pictures/000").iterdir())) == 5
    Path("page/mine.txt").touch()
    result = llava_mini("view", "rows.jsonl", "-o", "page", "--overwrite")
    assert (result.exit_code, result.stderr) == (
        1, "llava-mini: error: 'page' holds other things than a page; name a new folder\n",
    )  # fmt: skip
    Path("page/mine.txt").unlink()
    (Path("elsewhere")).mkdir()
    Path("elsewhere/precious").touch()
    for path in Path("page/pictures").rglob("*.jpg"):
        path.unlink()
    Path("page/pictures/000").rmdir()
    Path("page/pictures").rmdir()
    Path("page/pictures").symlink_to("../elsewhere")
    assert llava_mini("view", "rows.parquet", "-o", "page", "--overwrite").exit_code == 1
    assert [path.name for path in Path("elsewhere").iterdir()] == ["precious"]


BAD = [
    (["gone.parquet"], 2, "'gone.parquet' is not there"),
    (["notes.txt"], 2, "'notes.txt': the rows of view are in .parquet, .jsonl, .ndjson or .csv, in a folder"),
    (["empty"], 2, "'empty' holds no part of an output: no .parquet file, and it is no archive"),
    (["pipe.jsonl"], 2, "'pipe.jsonl' cannot be read: not a regular file"),
    (["other.parquet"], 2, "'other.parquet' cannot be read: no output of llava-mini: no column is id, path or "),
    (["torn.parquet"], 2, "'torn.parquet' cannot be read: "),
    (["rows.jsonl", "--media", "gone"], 2, "--media: 'gone' is not a folder"),
    (["rows.jsonl", "--track", "gone.jsonl"], 2, "'gone.jsonl' is not there"),
    (["rows.jsonl", "--track", "torn.parquet"], 2, "'torn.parquet' cannot be read: "),
    (["rows.jsonl", "--port", "80"], 2, "--port is for a page that is served; with -o it is written"),
    (["rows.jsonl", "-o", "file"], 1, "cannot write 'file': 'file' is not a folder"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "words"), BAD)
def test_what_cannot_be_used_is_one_line(
    arguments: list[str], code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path("notes.txt").touch()
    Path("file").touch()
    Path("empty").mkdir()
    Path("rows.jsonl").touch()
    os.mkfifo("pipe.jsonl")
    Path("torn.parquet").write_bytes(b"PAR1 and no end")
    pq.write_table(pa.table({"x": [1]}), "other.parquet")
    result = llava_mini("view", *(["-o", "page"] if "-o" not in arguments else []), *arguments)
    assert result.exit_code == code
    assert result.stderr.startswith(f"llava-mini: error: {words}")
    assert result.stderr.count("\n") == 1
    assert not Path("page").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--overwrite"], "--overwrite is for a page that is written; add -o DIR"),
        (["--port", "0"], "--port is a number from 1 to 65535, not 0"),
        (["--port", "65536"], "--port is a number from 1 to 65535, not 65536"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], words: str) -> None:
    result = llava_mini("view", "rows.jsonl", *arguments)
    assert (result.exit_code, result.stderr) == (2, f"llava-mini: error: {words}\n")


def test_nothing_is_served_of_what_holds_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.parquet").write_bytes(b"PAR1 and no end")
    result = llava_mini("view", "torn.parquet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("llava-mini: error: 'torn.parquet' cannot be read: ")
    assert result.stderr.count("\n") == 1


def test_more_rows_than_a_page_takes_are_refused(rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_page, "MOST_ROWS", 9)
    result = llava_mini("view", "rows.jsonl", "-o", "page")
    assert result.exit_code == 2
    assert result.stderr == (
        "llava-mini: error: 10 rows are too many for a page from disk (9); without -o they are served\n"
    )


def test_pictures_beside_the_rows_lie_below_their_folder(rows: list[dict[str, Any]]) -> None:
    Path("out/kept").mkdir(parents=True)
    kept: bytes = rows[2]["thumbnail"]
    Path("out/kept/a.jpg").write_bytes(kept)
    Path("out/kept/no.jpg").write_bytes(b"no picture")
    Path("secret.jpg").write_bytes(kept)
    Path("out/link.jpg").symlink_to("../secret.jpg")
    os.mkfifo("out/pipe.jpg")
    outside = ["../secret.jpg", str(Path("secret.jpg").absolute()), "link.jpg"]
    names = ["kept/a.jpg", *outside, "kept/no.jpg", "gone", "a\0b", "pipe.jpg", "kept"]
    shared = row(id="x.jpg", file_name="x.jpg", prompt="?", text="y")
    with Path("out/rows.jsonl").open("w") as file:
        for name in names:
            file.write(json.dumps(shared | {"thumbnail": name}) + "\n")
    assert llava_mini("view", "out/rows.jsonl", "-o", "page").exit_code == 0
    told = shown(Path("page"))
    assert len(told) == len(names)
    assert ["picture" in one for one in told] == [True] + [False] * (len(names) - 1)
    assert Path("page", told[0]["picture"]).read_bytes() == kept


def table_of(path: Path) -> RowTable:
    table = RowTable(open_rows(path))
    table.refresh()
    assert table.unread == {}
    return table


@pytest.mark.parametrize("name", ["found.jsonl", "found.csv", "found.parquet"])
def test_what_search_found_has_scores(name: str, tmp_path: Path) -> None:
    moment = Moment(
        rank=3, score=-0.25, path="/a.mp4", file_name="a.mp4", media="video", time=2.0, start=1.0, end=3.0, frames=2,
        duration_s=9.0, caption="a car",
    )  # fmt: skip
    suffix = name.rpartition(".")[2]
    write_moments([moment], tmp_path / name, suffix)  # type: ignore[arg-type]
    with table_of(tmp_path / name) as table:
        (one,) = table.rows([0])
        told = {key: one[key] for key in ("path", "segment", "start", "end", "time", "text", "p", "duration", "status")}
        assert told == {
            "path": "/a.mp4", "segment": 3, "start": 1.0, "end": 3.0, "time": 2.0, "text": "a car", "p": -0.25,
            "duration": 9.0, "status": "ok",
        }  # fmt: skip
        assert table.measure() == "Score"
        about = Finder(table).about()
        assert (about["low"], about["high"]) == (-0.25, 1.0)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_events_of_when_and_labels_have_their_probability(kind: str, tmp_path: Path) -> None:
    given = [
        {"id": "a.mp4", "text": "yes", "p_yes": None, "p_mean": 0.6, "p_peak": 0.9, "peak_at": 4.0},
        {"id": "b.mp4", "text": "no", "p_yes": 0.125, "p_mean": None, "p_peak": None, "peak_at": None},
    ]  # fmt: skip
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(given), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in given))
    else:
        cells = (",".join("" if value is None else str(value) for value in one.values()) for one in given)
        path.write_text("\n".join([",".join(given[0]), *cells, ""]))
    with table_of(path) as table:
        assert [(one["p"], one["time"]) for one in table.rows([0, 1])] == [(0.9, 4.0), (0.125, None)]
        assert table.measure() == "Probability"


def test_an_archive_shows_its_newest_media_with_their_captions(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from llava_mini_cli.formats.archive.layout import CAPTION_COLUMNS, HEADER, MEDIA_COLUMNS

    media, captions = pa.schema(list(MEDIA_COLUMNS.items())), pa.schema(list(CAPTION_COLUMNS.items()))
    for name in ("media", "captions"):
        (tmp_path / name).mkdir()
    (tmp_path / HEADER).write_text("{}")
    old = [
        {"medium": 1, "path": "/a.mp4", "file_name": "a.mp4", "media": "video", "status": "ok"},
        {"medium": 2, "path": "/b.mp4", "file_name": "b.mp4", "status": "error", "error": "broken"},
        {"medium": 3, "path": "/c.mp4", "file_name": "c.mp4", "status": "ok"},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(old, media), tmp_path / "media/part-000001.parquet")
    said = [{"medium": 1, "start": 2.0 * n, "end": 2.0 * n + 2, "prompt": "?", "text": f"t{n}"} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(said, captions), tmp_path / "captions/part-000001.parquet")
    with table_of(tmp_path) as table:
        wanted = "SELECT file, status, text, start FROM rows ORDER BY n"
        first = [("a.mp4", "ok", "t0", 0.0), ("a.mp4", "ok", "t1", 2.0), ("b.mp4", "error", None, None)]
        assert table.ask(wanted) == [*first, ("c.mp4", "ok", None, None)]
        newer = [{"medium": 4, "path": "/c.mp4", "file_name": "c.mp4", "status": "dropped"}]
        newer += [{"medium": 5, "path": "/a.mp4", "file_name": "new.mp4", "status": "ok", "frames_of": 1}]
        pq.write_table(pa.Table.from_pylist(newer, media), tmp_path / "media/part-000002.parquet")
        table.refresh()
        assert sorted(table.ask(wanted)) == [
            ("b.mp4", "error", None, None),
            ("new.mp4", "ok", "t0", 0.0),
            ("new.mp4", "ok", "t1", 2.0),
        ]


def test_filters_of_the_server(tmp_path: Path) -> None:
    rows = picture_rows(tmp_path, 40, 8) + video_rows(_films(tmp_path), 1, 6)
    with table_of(write_parquet(rows, tmp_path / "rows.parquet")) as table:
        finder = Finder(table)

        def found(**wanted: Any) -> list[dict[str, Any]]:
            return [rows[int(n)] for n in finder.find(Filter(**wanted)).numbers]

        assert found() == rows
        assert found(status="error") == [one for one in rows if one["error"]]
        assert found(error="corrupt") == [one for one in rows if one["error_type"] == "corrupt"]
        assert found(label="night", question="light") == [one for one in rows if one["choice"] == "night"]
        assert found(kind="video") == rows[-6:]
        assert found(text="BROKEN Data") == found(error="corrupt")
        assert found(file="CAMERA") == rows[-6:]
        p = [one["p_yes"] for one in found(kind="video", low=0.6, high=0.9)]
        assert p == [one["p_yes"] for one in rows[-6:] if 0.6 <= one["p_yes"] <= 0.9] != []
        assert [one["p_yes"] for one in found(kind="video", sort="likely")] == sorted(
            (one["p_yes"] for one in rows[-6:]), reverse=True
        )
        assert found(sort="unlikely")[-1]["choice"] is None
        grouped = finder.find(Filter(group="medium"))
        assert (grouped.rows, grouped.media, len(grouped.numbers)) == (86, 41, 41)
        assert grouped.counts is not None
        assert grouped.counts.tolist() == [2] * 40 + [6]
        assert sum(finder.find(Filter(low=0.99)).histogram) == sum(finder.find(Filter()).histogram)
        assert finder.find(Filter()) is finder.find(Filter())
        last = [finder.find(Filter(text=str(number))) for number in range(KEPT_ANSWERS + 1)][-1]
        assert finder.find(Filter(text=str(KEPT_ANSWERS))) is last
        nothing = finder.find(Filter(text="nothing is like this"))
        assert (nothing.rows, nothing.media) == (0, 0)


def _films(folder: Path) -> Path:
    (folder / "camera 0.mp4").touch()  # no film is looked at
    return folder


def test_a_track_is_filled_between_its_frames_and_not_beyond() -> None:
    assert filled({0: 0.5}) == [0.5] * BINS
    whole = filled({0: 0.0, 32: 1.0})
    assert (whole[15], whole[17], whole[32], whole[48], whole[50]) == (0.0, 1.0, 1.0, 1.0, None)
