"""Rows of a table that ask about stretches of their media: what cells say, how rows share a pass, what they answer."""

import json
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from math import inf
from pathlib import Path

import media_films as films
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine, MadeClip
from configured_cli import echo_engines, llava_mini
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.engine.request import Window
from llava_mini_cli.errors import MediaError, UsageError
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.span_columns import MOST_OVERLAPS, SpanColumns, crowds
from llava_mini_cli.formats.job import Job, Prompt, Question, TimeSpan
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.spans import RowWindows

BOTH = InputOptions(start_column="from", end_column="to")
VIDEO = ClipInfo("a", "video", 64, 48, 9.0, 9, 1.0)


def question(text: str, start: float | None = None, end: float | None = None, number: int = 1) -> Question:
    return Question(Prompt(text), text, span=None if start is None else TimeSpan(number, start, end, ""))


# Cells


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((1, 2.5), (1.0, 2.5)),
        (("1:30", " 2m "), (90.0, 120.0)),
        ((Decimal("1.5"), timedelta(minutes=1)), (1.5, 60.0)),
        ((None, "3"), (0.0, 3.0)),
        (("2", float("nan")), (2.0, None)),
        (("", None), None),
    ],
)
def test_cells_hold_times_in_many_forms(cells: tuple[object, object], expected: tuple[float, float] | None) -> None:
    span = SpanColumns(BOTH, ("from", "to"), "t").read(cells, 7)
    assert (span and span[:3]) == (expected and (7, *expected))


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ((-1, 2), "column 'from' holds no time: -1"),
        ((0, "soon"), "column 'to' holds no time: soon"),
        ((True, 2), "column 'from' holds no time: True"),
        ((0, inf), "column 'to' holds no time: inf"),
        ((10**400, None), "column 'from' holds no time: 1000"),
        (([1], None), r"column 'from' holds no time: \[1\]"),
        ((2, 2), "a stretch from 2 to 2 s"),
        ((None, 0), "a stretch from 0 to 0 s"),
    ],
)
def test_cells_that_hold_no_stretch_say_so(cells: tuple[object, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpanColumns(BOTH, ("from", "to"), "t").read(cells, 1)


def test_one_column_is_enough_and_both_have_to_be_there() -> None:
    assert SpanColumns(InputOptions(end_column="to"), ("to",), "t").read([4], 1) == TimeSpan(1, 0.0, 4.0, "")
    assert SpanColumns(InputOptions(start_column="from"), ("from",), "t").read([4], 1) == TimeSpan(1, 4.0, None, "")
    with pytest.raises(UsageError, match="--end-column"):
        SpanColumns(BOTH, ("from",), "t")
    with pytest.raises(UsageError, match="both name the column 'at'"):
        InputOptions(start_column="at", end_column="at")


def test_stretches_that_overlap_are_counted() -> None:
    others = [question("?", float(n), 100.0) for n in range(MOST_OVERLAPS)]
    assert crowds(TimeSpan(1, 50.0, 60.0, ""), others)
    assert not crowds(TimeSpan(1, 50.0, 60.0, ""), others[1:])
    assert not crowds(TimeSpan(1, 100.0, None, ""), others)
    assert not crowds(TimeSpan(1, 3.0, 100.0, ""), others)  # one of them


# Windows


def test_rows_share_windows_and_prompts() -> None:
    asked = [question("a", 4, 6), question("b", 0, 2), question("a", 0, 2), question("a", 0, 2), question("b")]
    job = Job("v", "v", tuple(one._replace(key=str(n)) for n, one in enumerate(asked)))
    windows = RowWindows(job, VIDEO)
    assert [prompt.text for prompt in windows.prompts] == ["a", "b"]
    assert list(windows) == [
        Window(0, 2), Window(0, 2, frozenset({1})), Window(0, inf, frozenset({0})), Window(4, 6, frozenset({1})),
    ]  # fmt: skip
    places = [(0, 0), (0, 1), (1, 0), (2, 1), (3, 0)]
    assert [windows.place(*one)[::2] for one in places] == [(2, "2"), (1, "1"), (3, "3"), (4, "4"), (0, "0")]
    assert windows.place(0, 0).span == TimeSpan(1, 0, 2, "")
    picture = RowWindows(job, ClipInfo("a", "image", 64, 48, None, 1, None))
    assert {(window.start, window.end) for window in picture} == {(0, inf)}
    assert {(place.span and place.span[1:3]) for place in (picture.place(0, 0), picture.place(0, 1))} == {(None, None)}


@pytest.mark.parametrize("decoder", ["decord", "ffmpeg"])
def test_frames_that_nobody_needs_are_not_decoded(tmp_path: Path, decoder: str) -> None:
    path = films.film(tmp_path / "a.mp4", 300, *films.B_FRAMES)
    everything, times, info = films.read(path, decoder=decoder, fps=2.0)
    some, kept, other = films.read(path, decoder=decoder, fps=2.0, needed=(3.1, 6.6))
    inside = (times >= 3.1) & (times < 6.6)
    assert 0 < len(kept) == inside.sum() < len(times)
    assert np.array_equal(kept, times[inside])
    assert films.numbers(some) == films.numbers(everything[inside])
    assert (other.duration_s, other.fps_sampled) == (info.duration_s, info.fps_sampled)
    with pytest.raises(MediaError, match="no frame between 11 and 12 s"):
        open_clip(path, SamplingOptions(needed=(11.0, 12.0)))


# Runs

engines = pytest.fixture(echo_engines)


def written(path: Path, rows: Sequence[tuple[object, ...]]) -> Path:
    names = ("video", "from", "to", "question", "episode")
    made = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(made), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    else:
        lines = [",".join("" if cell is None else str(cell) for cell in row) for row in (names, *rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


COLUMNS = ("--column", "video", "--start-column", "from", "--end-column", "to", "--keep-columns", "episode")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_consecutive_rows_of_one_file_share_a_pass(engines: list[EchoEngine], suffix: str) -> None:
    Path("b.mp4").write_text("9")
    table = written(
        Path(f"t{suffix}"),
        [
            ("a.mp4", 0.0, 1.0, "Who?", "e0"), ("a.mp4", 1.0, 4.0, "Who?", "e1"), ("a.mp4", 3.0, None, "Where?", "e2"),
            ("b.mp4", 7.0, 9.0, "Who?", "e3"), ("b.mp4", 20.0, 21.0, "Who?", "e4"), ("b.mp4", 5.0, 4.0, "Who?", "e5"),
            ("b.mp4", None, None, "Who?", "e6"),
        ],
    )  # fmt: skip
    command = ("ask", str(table), *COLUMNS, "--prompt-column", "question", "-o", "rows.jsonl")
    MadeClip.opened.clear()
    done = llava_mini(*command)
    assert (done.exit_code, len(MadeClip.opened_in(Path.cwd()))) == (3, 2)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    found = sorted((one["episode"], one["segment"], one["start"], one["end"], one["text"]) for one in rows)
    assert found == [
        ("e0", 1, 0, 1, "Who? [1]"), ("e1", 2, 1, 4, "Who? [3]"), ("e2", 3, 3, None, "Where? [1]"),
        ("e3", 1, 7, 9, "Who? [2]"), ("e4", 2, 20, 21, None), ("e5", None, None, None, None),
        ("e6", None, None, None, "Who? [9]"),
    ]  # fmt: skip
    errors = {one["episode"]: (one["error_type"], one["error"]) for one in rows if one["status"] == "error"}
    assert errors["e4"][0] == "empty"
    assert errors["e5"][0] == "bad_row"
    assert "a stretch from 5 to 4 s" in errors["e5"][1]
    assert len({one["fingerprint"] for one in rows}) == 7
    assert "7 were there" in llava_mini(*command).stderr
    lines = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("rows.jsonl").write_text("".join(lines[::2]))
    llava_mini(*command)
    again = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert sorted(one["fingerprint"] for one in again) == sorted(one["fingerprint"] for one in rows)


def test_a_picture_and_a_missing_column_and_an_end_that_came(engines: list[EchoEngine]) -> None:
    Image.new("RGB", (8, 8)).save("c.png")
    Path("c.png").write_text("1")  # the double's picture
    table = written(Path("t.csv"), [("c.png", 0, 5, "?", "e")])
    assert llava_mini("ask", str(table), *COLUMNS, "--prompt-column", "question").exit_code == 0
    done = llava_mini("ask", str(table), "What?", "--column", "video", "--start-column", "begin")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--start-column" in done.stderr
    for more in (["--every", "2s"], ["--fit"], ["-f", "txt"]):
        refused = llava_mini("ask", str(table), "What?", *COLUMNS, *more)
        assert (refused.exit_code, "--start-column" in refused.stderr) == (2, True)
    assert llava_mini("ask", "a.mp4", "What?", "--start-column", "from").exit_code == 2
