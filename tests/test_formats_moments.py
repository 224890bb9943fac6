"""Found moments as lines, records, tables and a page; patch features in 8 bits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.archive.moments import COLUMNS, Moment, MomentFormat, format_of, write_moments
from llava_mini_cli.formats.archive.quantized import SMALLEST, from_int8, to_int8
from llava_mini_cli.formats.timecodes import clock
from llava_mini_cli.view.media import file_url, link
from llava_mini_cli.view.moments_page import moments_page

VIDEO = Moment(
    rank=1, score=0.625, path="/x/ä 1.mp4", file_name="ä 1.mp4", media="video", time=61.5, start=61.0, end=3723.25,
    frames=3, duration_s=4000.0, caption='a "b"', p_yes=0.5,
)  # fmt: skip
IMAGE = Moment(
    rank=2, score=0.5, path="https://a.b/c.jpg", file_name="<c>.jpg", media="image", time=None, start=None, end=None,
    frames=1, duration_s=None, caption=None,
)  # fmt: skip
LINE = (
    '{"rank": 1, "score": 0.625, "path": "/x/ä 1.mp4", "file_name": "ä 1.mp4", "media": "video", "time": 61.5, '
    '"start": 61.0, "end": 3723.25, "frames": 3, "duration_s": 4000.0, "caption": "a \\"b\\"", "p_yes": 0.5}\n'
)
RECORDS = (
    "rank,score,path,file_name,media,time,start,end,frames,duration_s,caption,p_yes\n"
    '1,0.625,/x/ä 1.mp4,ä 1.mp4,video,61.5,61.0,3723.25,3,4000.0,"a ""b""",0.5\n'
    "2,0.5,https://a.b/c.jpg,<c>.jpg,image,,,,1,,,\n"
)


@pytest.mark.parametrize(
    ("path", "format", "expected"),
    [
        (None, None, "jsonl"),
        (None, "csv", "csv"),
        ("a.JSONL", None, "jsonl"),
        ("a.ndjson", None, "jsonl"),
        ("a.csv", None, "csv"),
        ("a.parquet", None, "parquet"),
        ("a.csv", "parquet", "parquet"),
        ("a.txt", "csv", "csv"),
    ],
)
def test_a_format_by_flag_or_suffix(path: str | None, format: MomentFormat | None, expected: str) -> None:
    assert format_of(Path(path) if path else None, format) == expected


def test_formats_that_nothing_names() -> None:
    with pytest.raises(UsageError, match="--format parquet needs a file"):
        format_of(None, "parquet")
    with pytest.raises(UsageError, match=r"-o 'a.txt': the suffix must be one of .jsonl, .ndjson, .csv, .parquet, or"):
        format_of(Path("a.txt"), None)


def test_moments_in_every_format(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_moments([VIDEO, IMAGE], None, "jsonl")
    said = capfdbinary.readouterr().out.decode()
    assert said.startswith(LINE)
    assert [json.loads(line)["time"] for line in said.splitlines()] == [61.5, None]
    write_moments([VIDEO, IMAGE], tmp_path / "a", "csv")
    assert (tmp_path / "a").read_text() == RECORDS
    write_moments([VIDEO, IMAGE], tmp_path / "a", "parquet")
    table = pq.read_table(tmp_path / "a")
    assert table.to_pylist() == [vars(VIDEO), vars(IMAGE)]
    write_moments([IMAGE], tmp_path / "a", "parquet")  # the types do not depend on the values
    kinds = {name: pq.read_schema(tmp_path / "a").field(name).type for name in COLUMNS}
    assert {name for name, kind in kinds.items() if kind == pa.float64()} == {
        "score", "time", "start", "end", "duration_s", "p_yes",
    }  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == pa.int64()} == {"rank", "frames"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00.0"), (59.96, "1:00.0"), (3599.94, "59:59.9"), (3600, "1:00:00.0"), (3723.54, "1:02:03.5")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_page_holds_its_pictures_and_runs_nothing_of_a_file_name(tmp_path: Path) -> None:
    there = tmp_path / "\u00e4 1.mp4"
    there.touch()
    moments = [replace(VIDEO, path=str(there)), IMAGE]
    text = moments_page(moments, [b"\xff\xd8\xffjpeg", None], "<a> & b").decode()
    assert text.count("&lt;a&gt; &amp; b") == 2
    assert "<a>" not in text.split("<script>")[0]
    first, second = (json.loads(line.rstrip(",")) for line in text.split("llavaMini.chunk(0, [\n")[1].splitlines()[:2])
    assert first["picture"] == "data:image/jpeg;base64,/9j/anBlZw=="
    assert first["source"] == file_url(there)
    assert (first["start"], first["p"], first["text"]) == (VIDEO.start, 0.5, VIDEO.caption)
    assert (second["link"], second.get("source"), second["p"]) == ("https://a.b/c.jpg", None, 0.5)
    assert link("https://a.b/c.jpg") == "https://a.b/c.jpg"
    with pytest.raises(ValueError, match="shorter"):
        moments_page(moments, [None], "")


def test_int8_has_a_scale_for_each_channel_and_frame() -> None:
    features = np.array([[[[127.0, 0.0], [-63.5, 0.0]]], [[[1.0, 254.0], [0.5, 2.0]]]], np.float32)
    quantized, scales = to_int8(features)
    assert (quantized.dtype, scales.dtype) == (np.int8, np.float32)
    assert quantized.tolist() == [[[[127, 0], [-64, 0]]], [[[127, 127], [64, 1]]]]
    np.testing.assert_array_equal(scales, np.array([[[1.0, 1.0]], [[1 / 127, 2.0]]], np.float32))
    exact: Any = from_int8(quantized, scales)
    assert (exact.dtype, exact[0].tolist()) == (np.float32, [[[127.0, 0.0], [-64.0, 0.0]]])
    least = np.full((1, 1, 1, 1), SMALLEST * 127, np.float32)
    assert to_int8(least)[1].item() == SMALLEST
    assert to_int8(least / 2)[1].item() == 1.0
