"""The whole files that `fuzz.py` damages: a case is a few files by their names, and each target has several cases."""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llava_mini_cli.demo import __file__ as demo
from llava_mini_cli.formats.archive.layout import ArchiveHeader, FeatureKind, Shapes
from llava_mini_cli.formats.archive.part import FrameRows
from llava_mini_cli.formats.archive.writer import open_for_writing

Case = dict[str, bytes]

RECORDS = [
    {"path": "a.mp4", "name": "Ann", "q": "Who?", "n": 1, "tags": ["x", {"y": [1, 2.5, None]}], "day": "2024-01-01"},
    {"path": "b/ä.jpg", "name": "", "q": None, "n": -2.5, "tags": [], "day": "\u2028"},
    {"path": "http://127.0.0.1:9/c.png?x=1", "name": "{n}", "q": "Why\n?", "n": True, "tags": {}, "day": "x" * 200},
]


@cache
def tars() -> list[Case]:
    """Archives of the three formats, with long names, times in parts of a second and members that are not read."""
    return [{"a.tar": _tar(format)} for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def _tar(format: int) -> bytes:
    stream = io.BytesIO()
    lines = [json.dumps(each).encode() for each in RECORDS]
    long = "folder/" * 14 + "y" * 90 if format == tarfile.USTAR_FORMAT else "folder/" * 30 + "ü" * 90
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for name, data, kind in (
            ("0001.jpg", b"one" * 300, tarfile.REGTYPE), ("0001.json", lines[0], tarfile.REGTYPE),
            ("0002.jsonl", b"\n".join(lines), tarfile.REGTYPE), ("0002.png", b"two", tarfile.REGTYPE),
            (f"{long}.mp4", b"", tarfile.REGTYPE), (f"{long}.txt", b"x", tarfile.REGTYPE),
            ("0003.png", b"", tarfile.SYMTYPE), ("0004.png", b"", tarfile.FIFOTYPE), ("d", b"", tarfile.DIRTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "z" * (150 if format != tarfile.USTAR_FORMAT else 9)
            info.mtime = 1_700_000_000.25 if format == tarfile.PAX_FORMAT else 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@cache
def csvs() -> list[Case]:
    """Comma and tab separated, with quotes, line ends in them and letters of all kinds."""
    text = 'path,name,q\n"a.mp4","An ""n""",Who?\nb.jpg,"two\r\nlines",\n\nü.png,{name},"x,y"\nshort\n'
    return [{"a.csv": text.encode()}, {"a.tsv": text.replace(",", "\t").encode("utf-8-sig")}]


@cache
def jsonls() -> list[Case]:
    """Objects a line, flat and nested."""
    lines = b"\n".join(json.dumps(record).encode() for record in RECORDS)
    return [{"a.jsonl": lines + b"\n"}, {"a.ndjson": b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n")}]


@cache
def parquets() -> list[Case]:
    """Tables of one and of several row groups and codecs, with texts, numbers, times, lists, and media in them."""
    records = [{**record, "n": float(record["n"]), "tags": json.dumps(record["tags"])} for record in RECORDS] * 3
    table = pa.Table.from_pylist(records)
    media = pa.table(
        {
            "image": pa.array([{"bytes": b"x" * 9, "path": "a.png"}, None, {"bytes": None, "path": "b.png"}] * 3),
            "when": pa.array([0, 1, None] * 3, pa.timestamp("ns")),
            "list": pa.array([[1, 2], [], None] * 3, pa.list_(pa.int32())),
            "big": pa.array(["x" * 40, "y", None] * 3, pa.large_string()),
            "dec": pa.array([1, 2, None] * 3, pa.int64()).cast(pa.decimal128(30, 2)),
            "day": pa.array([1, -800_000, None] * 3, pa.date32()),
            "kind": pa.array(["a", "b", "a"] * 3).dictionary_encode(),
        }
    )
    found: list[Case] = []
    for each in (table, media):
        for options in (
            {"compression": "zstd"},
            {"compression": "none", "row_group_size": 2},
            {"use_dictionary": False},
        ):
            stream = io.BytesIO()
            pq.write_table(each, stream, **options)
            found.append({"a.parquet": stream.getvalue()})
    return found


@cache
def lists() -> list[Case]:
    """Paths and URLs, a line each or with NUL bytes between them."""
    names = [
        b"a.mp4",
        b"b/",
        b"\xff.jpg",
        b"http://127.0.0.1:9/x.png",
        b"s3://b/c.jpg",
        b"zip://a::file://b",
        b"c.tar",
        b"",
    ]
    return [{"a.txt": b"\r\n".join(names)}, {"a.txt": b"\0".join(names)}]


@cache
def archives() -> list[Case]:
    """Two small archives of two parts: without features, and with some in 8 bits."""
    return [_archive(kind) for kind in (None, "int8")]


def _archive(kind: FeatureKind | None) -> Case:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("one", "two"):
            with open_for_writing(folder) as writer:
                writer.start(ArchiveHeader("demo", None, "abc", Shapes((1, 8), 4, (1, 9, 6)), kind, {"fps": 1.0}))
                medium = writer.begin()
                writer.add_frames(medium, _frames(3))
                row = {"path": f"/x/{part}.mp4", "file_name": f"{part}.mp4", "size": 5, "mtime": 7, "media": "video"}
                info = {
                    "duration_s": 3.0,
                    "width": 64,
                    "height": 48,
                    "frames": 3,
                    "frames_sampled": 3,
                    "fps_sampled": 1.0,
                }
                writer.finish(medium, {**row, **info, "status": "ok"}, [{"start": 0.0, "end": 1.0, "text": "words"}])
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _frames(count: int) -> FrameRows:
    return FrameRows(
        frame=np.arange(count, dtype=np.int32),
        time=np.arange(count) + 0.5,
        last_time=np.arange(count) + 0.5,
        stands_for=np.ones(count, np.int32),
        tokens=np.ones((count, 1, 8), np.float16),
        clip=np.full((count, 4), 0.5, np.float16),
        features=np.ones((count, 1, 9, 6), np.float32),
    )


@cache
def configs() -> list[Case]:
    """Settings for all commands and for one."""
    text = (
        'fps = 1.5\nprompt = ["a", "b=c"]\nquiet = true\n\n[ask]\nmodel = "demo"\nmax-frames = 12\nseed = 1979-05-27\n'
    )
    return [{"a.toml": text.encode()}]


@cache
def checkpoints() -> list[Case]:
    """The texts of the demo's checkpoint, and the index of weights that are not there."""
    folder = Path(demo).parent / "model"
    names = ("config.json", "generation_config.json", "preprocessor_config.json", "clip/config.json")
    case = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    return [{**case, "model.safetensors.index.json": json.dumps(index).encode()}]


SEEDS: dict[str, Callable[[], list[Case]]] = {
    "tar": tars, "csv": csvs, "jsonl": jsonls, "parquet": parquets, "list": lists,
    "archive": archives, "config": configs, "checkpoint": checkpoints,
}  # fmt: skip
