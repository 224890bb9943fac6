"""Names, columns and the header of an archive."""

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from llava_mini_cli.config import FeatureKind
from llava_mini_cli.errors import ArchiveError, UsageError
from llava_mini_cli.formats.archive.verify import LARGEST_HEADER, check_header
from llava_mini_cli.formats.disk import write_own_file
from llava_mini_cli.formats.job import ItemIdentity
from llava_mini_cli.formats.row import one_line
from llava_mini_cli.plain_files import parse_json, read_bytes

FORMAT = "llava-mini archive"
FORMAT_VERSION = 2  # 1: without `parts.json` (`formats.archive.manifest`)
HEADER = "archive.json"
LOCK = ".lock"  # held by whoever writes
READERS = ".readers"  # shared by whoever reads; a writer takes it alone while it takes files away
TABLES = ("features", "captions", "frames", "media")  # in the order in which the files of a part appear
VECTORS = "vectors"
NEAR = "near"  # the folder of the approximate index
LAST_NS = (1 << 63) - 1  # nanoseconds from 1970 that 64 bits hold; file systems have times beyond
CLIP_SUM = "llava_mini.clip_sum"  # metadata of a file of `frames`: the sum of its embeddings, base64 of float32
SUMS = "llava_mini.vector_sums"  # the same: `VectorSums` of the plain embeddings, base64

_PART = re.compile(r"part-[0-9]{1,18}")  # a number that 64 bits hold

Setting = str | int | float | bool | None

MEDIA_COLUMNS: dict[str, pa.DataType] = {
    "medium": pa.int64(),  # its number; frames refer to it
    "path": pa.string(),  # absolute path or URL
    "file_name": pa.string(),  # relative to the folder that was given
    "size": pa.int64(),  # bytes
    "mtime": pa.timestamp("ns", tz="UTC"),
    "digest": pa.string(),  # size and digest of what the file holds (`formats.content`); null for a URL
    "media": pa.string(),  # image or video
    "duration_s": pa.float64(),
    "width": pa.int32(),  # pixels, as displayed
    "height": pa.int32(),
    "frames": pa.int64(),  # rows in `frames`
    "frames_of": pa.int64(),  # the number they are under, where the medium was moved or touched after it was indexed
    "frames_sampled": pa.int64(),  # more than `frames` where near-identical ones were skipped
    "fps_sampled": pa.float64(),
    "model": pa.string(),
    "model_revision": pa.string(),
    "settings": pa.string(),  # JSON
    "status": pa.string(),  # ok, error, or dropped: the medium with this path is not part of the archive any more
    "error": pa.string(),
    "error_type": pa.string(),
    "error_stage": pa.string(),
    "warning": pa.string(),
    "indexed_at": pa.timestamp("ms", tz="UTC"),
}
LATER_COLUMNS = ("digest", "frames_of")  # that the first archives do not have
CAPTION_COLUMNS: dict[str, pa.DataType] = {
    "medium": pa.int64(),
    "start": pa.float64(),  # seconds
    "end": pa.float64(),
    "prompt": pa.string(),
    "text": pa.string(),
    "finish_reason": pa.string(),
    "frame_count": pa.int64(),
}


@dataclass(frozen=True)
class Shapes:
    """The widths of the vectors of one frame."""

    token: tuple[int, int]  # C * C, hidden
    clip: int | None  # None: the model's CLIP has no projection
    features: tuple[int, int, int]  # parts, patches, width


@dataclass(frozen=True)
class ArchiveHeader:
    """The model, the settings and the widths of all rows of an archive; `archive.json`."""

    model: str  # as given; a directory as its absolute path
    model_revision: str | None
    model_digest: str  # of the checkpoint's files, so that another model under the same name is told from it
    shapes: Shapes
    features: FeatureKind | None  # how patch features are stored, if they are
    settings: Mapping[str, Setting] = field(default_factory=dict[str, Setting])  # of sampling and what is stored
    version: str = ""  # of llava-mini
    format_version: int = field(default=FORMAT_VERSION, compare=False)

    def write(self, folder: Path) -> None:
        """Puts it into an archive's folder, whole. Raises `OutputError`."""
        version = {"format_version": FORMAT_VERSION}
        content = {"format": FORMAT, **version, **asdict(self), **version}
        content["checksum"] = _checksum(content)
        write_own_file(folder / HEADER, json.dumps(content, indent=2).encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `UsageError` where there is no archive, `ArchiveError` where its header is damaged or too new."""
        path = folder / HEADER
        try:
            parsed: Any = parse_json(read_bytes(path, LARGEST_HEADER))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"'{folder}' is no archive: it holds no {HEADER}; llava-mini index makes one") from None
        except (OSError, ValueError) as error:
            raise ArchiveError(f"'{path}' cannot be read: {error}") from error
        if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
            raise ArchiveError(f"'{path}' is not the header of an archive")
        version = parsed.get("format_version")
        if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
            version = one_line(repr(version)[:100])
            raise ArchiveError(f"'{folder}' has format version {version}, and this is for {FORMAT_VERSION}")
        try:
            return cls._parse(parsed)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArchiveError(f"'{path}' is damaged: {error!r}") from error

    @classmethod
    def _parse(cls, parsed: dict[str, Any]) -> Self:
        check_header(parsed)
        if parsed["format_version"] > 1 and parsed.get("checksum") != _checksum(parsed):
            raise ValueError("it is not what was written")
        shapes = parsed["shapes"]
        token, features = tuple(shapes["token"]), tuple(shapes["features"])
        known = {item.name for item in fields(cls)} - {"shapes"}
        return cls(
            shapes=Shapes((token[0], token[1]), shapes["clip"], (features[0], features[1], features[2])),
            **{key: value for key, value in parsed.items() if key in known},
        )

    def difference(self, other: "ArchiveHeader") -> str | None:
        """The differences that keep rows of two headers apart, as `--fps 2 (the archive has 1)`; None without any."""
        if self.model_digest != other.model_digest:
            return f"the archive was made with the model {self.name}, and this is {other.name}"
        mine = {**self.settings, "features_dtype": self.features}
        theirs = {**other.settings, "features_dtype": other.features}
        changed = [
            f"--{key.replace('_', '-')} {_word(theirs.get(key))} (the archive has {_word(mine.get(key))})"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]
        if self.shapes != other.shapes:
            changed.append(f"vectors of {other.shapes} (the archive has {self.shapes})")
        return "; ".join(changed) or None

    @property
    def name(self) -> str:
        """The model in words, with enough of its digest to tell it from another of that name."""
        revision = f" at {self.model_revision[:12]}" if self.model_revision else ""
        return f"'{self.model}'{revision} ({self.model_digest[:8]})"


def _checksum(content: Mapping[str, Any]) -> int:
    """The CRC-32 of a header's fields."""
    fields_alone = {name: value for name, value in content.items() if name != "checksum"}
    return zlib.crc32(json.dumps(fields_alone, sort_keys=True).encode())


def _word(value: Setting) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def storable(item: ItemIdentity) -> ItemIdentity:
    """An item with a time of change that the column `mtime` can hold: one before 1677 or after 2262 becomes its end."""
    path, size, time = item
    return path, size, None if time is None else max(-LAST_NS, min(time, LAST_NS))


def media_schema() -> pa.Schema:
    """The columns of `media`."""
    return pa.schema(list(MEDIA_COLUMNS.items()))


def caption_schema() -> pa.Schema:
    """The columns of `captions`."""
    return pa.schema(list(CAPTION_COLUMNS.items()))


def frame_schema(shapes: Shapes) -> pa.Schema:
    """The columns of `frames`; `clip` is all null where CLIP has no projection."""
    clip = pa.list_(pa.float16()) if shapes.clip is None else pa.list_(pa.float16(), shapes.clip)
    return pa.schema(
        [
            ("medium", pa.int64()),
            ("frame", pa.int32()),  # number among the sampled frames
            ("time", pa.float64()),  # seconds
            ("last_time", pa.float64()),  # of the last frame that this one stands for; `time` without --dedupe
            ("stands_for", pa.int32()),  # sampled frames; 1 without --dedupe
            ("token", pa.list_(pa.float16(), shapes.token[0] * shapes.token[1])),
            ("clip", clip),
        ]
    )


def feature_schema(shapes: Shapes, kind: FeatureKind) -> pa.Schema:
    """The columns of `features`: plain little-endian numbers, `[parts, patches, width]`, and int8's scales."""
    parts, patches, width = shapes.features
    size = {"float32": 4, "float16": 2, "int8": 1}[kind]
    columns = [
        ("medium", pa.int64()),
        ("frame", pa.int32()),
        ("time", pa.float64()),
        ("features", pa.binary(parts * patches * width * size)),
    ]
    if kind == "int8":
        columns.append(("scales", pa.binary(parts * width * 4)))  # float32 [parts, width], one a channel
    return pa.schema(columns)


def part_name(number: int, table: str) -> str:
    """The file of a part, relative to the archive."""
    return f"{table}/part-{number:06d}" + (".f16" if table == VECTORS else ".parquet")


def files_of(folder: Path, part: int) -> list[Path]:
    """The files of a part that are there, `media` first: without it there is no part."""
    paths = [folder / part_name(part, table) for table in (*reversed(TABLES), VECTORS)]
    return [path for path in paths if path.exists()]


def part_numbers(folder: Path, table: str) -> list[int]:
    """The numbers of the parts that a table has, ascending."""
    directory = folder / table
    if not directory.is_dir():
        return []
    names = [path.stem for path in directory.iterdir()]
    return sorted(int(name.removeprefix("part-")) for name in names if _PART.fullmatch(name))


def last_part(folder: Path) -> int:
    """The highest number of a part, also of one that never came to be; 0 where there is none."""
    return max((number for table in (*TABLES, VECTORS) for number in part_numbers(folder, table)), default=0)
