"""One part of an archive while it is written: temporary files beside the finished ones, put in place one by one.

Rows go to disk a row group at a time, so memory does not grow with the length of a video. The part exists once the
manifest names it, which is left to the caller. Knows nothing of which media belong to it.
"""

import base64
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.archive.layout import (
    CLIP_SUM,
    SUMS,
    VECTORS,
    ArchiveHeader,
    caption_schema,
    feature_schema,
    frame_schema,
    media_schema,
    part_name,
)
from llava_mini_cli.formats.archive.manifest import FileFacts, PartFacts, file_facts
from llava_mini_cli.formats.archive.quantized import to_int8
from llava_mini_cli.formats.archive.sums import VectorSums
from llava_mini_cli.formats.disk import errors_of, sync_folder
from llava_mini_cli.safe_files import Temporary, make_own_folder

GROUP_BYTES = 16 << 20  # of vectors held in memory before they are written as a row group


@dataclass(frozen=True)
class FrameRows:
    """Some frames of one medium, as columns."""

    frame: NDArray[np.int32]  # [n] number among the sampled frames
    time: NDArray[np.float64]  # [n] seconds
    last_time: NDArray[np.float64]  # [n] of the last frame that each stands for
    stands_for: NDArray[np.int32]  # [n]
    tokens: NDArray[np.float16]  # [n, C * C, hidden]
    clip: NDArray[np.float16] | None  # [n, shared]
    features: NDArray[np.float16] | NDArray[np.float32] | None  # [n, parts, patches, width]


class TableFile:
    """One Parquet file, or one of plain numbers, that appears whole or not at all."""

    def __init__(self, path: Path, schema: pa.Schema | None, **options: Any) -> None:
        self.path = path
        make_own_folder(path.parent)
        self._temporary = Temporary(path)
        self._stream = self._temporary.stream
        self._schema = schema
        self._parquet = None
        if schema is not None:
            self._parquet = pq.ParquetWriter(self._stream, schema, write_page_checksum=True, **options)

    def write(self, columns: Mapping[str, Any]) -> None:
        """A row group."""
        arrays = [_array(columns[field.name], field.type) for field in self._schema or ()]
        self.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def write_table(self, rows: pa.Table) -> None:
        """A row group."""
        assert self._parquet is not None
        self._parquet.write_table(rows)

    def write_plain(self, numbers: NDArray[np.float16]) -> None:
        """Little-endian numbers, one row after the other."""
        self._stream.write(np.ascontiguousarray(numbers, "<f2").tobytes())

    def describe(self, facts: Mapping[str, bytes]) -> None:
        """Puts something into the file's own metadata."""
        assert self._parquet is not None
        self._parquet.add_key_value_metadata({key: base64.b64encode(fact).decode() for key, fact in facts.items()})

    def finish(self) -> Path:
        """Everything is on the disk after this, under the temporary name, which is given back."""
        if self._parquet is not None:
            self._parquet.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._temporary.path

    def publish(self) -> None:
        """Puts the file in place."""
        self._temporary.put()

    def discard(self) -> None:
        """Takes away what was written."""
        if self._parquet is not None:
            with suppress(OSError):
                self._parquet.close()
        self._temporary.discard()


class ArchivePartWriter:
    """A part that is being written. Any method may raise `OutputError`; then the part is discarded."""

    def __init__(self, folder: Path, number: int, header: ArchiveHeader) -> None:
        self.number = number
        self.rows = 0  # frames and media
        self.nbytes = 0
        self.began = time.monotonic()
        self._folder = folder
        self._header = header
        self._files: dict[str, TableFile] = {}
        self._media: list[Mapping[str, Any]] = []
        self._captions: list[Mapping[str, Any]] = []
        self._frames: list[tuple[int, FrameRows]] = []
        self._waiting = 0  # bytes in `_frames`
        self._clip_sum: NDArray[np.float32] | None = None  # of all embeddings; tells searches what is usual here
        self._facts: dict[str, FileFacts] = {}  # of the files that are complete

    def add_frames(self, medium: int, rows: FrameRows) -> None:
        """Some more frames of a medium."""
        self._frames.append((medium, rows))
        size = rows.tokens.nbytes + (0 if rows.features is None else rows.features.nbytes)
        self._waiting += size
        self.nbytes += size
        self.rows += len(rows.time)
        if self._waiting >= GROUP_BYTES:
            self._guarded(self._flush)

    def add_medium(self, row: Mapping[str, Any], captions: Sequence[Mapping[str, Any]]) -> None:
        """A medium whose frames are all there."""
        self._media.append(row)
        self.rows += 1
        self._captions += captions

    def complete(self) -> None:
        """Everything is on the disk after this, under temporary names; without a single medium nothing is kept."""
        if self._facts:
            return
        if self._media or "media" in self._files:
            self._guarded(self._finish)
        else:
            self.discard()

    def publish(self) -> PartFacts | None:
        """Completes the files and puts them in place, where nobody reads them before the manifest names the part.

        Returns what the manifest says of them; None where there is nothing.
        """
        self.complete()
        if not self._facts:
            return None
        self._guarded(self._put)
        return self._facts

    def discard(self) -> None:
        """Takes away everything that is not in place."""
        for file in self._files.values():
            file.discard()
        self._files.clear()

    def append(self, table: str, rows: pa.Table) -> None:
        """Rows of another part, as they are."""
        self._guarded(lambda: self._append(table, rows))

    def _append(self, table: str, rows: pa.Table) -> None:
        self._file(table).write_table(rows)
        if table == "frames" and self._header.shapes.clip is not None:
            vectors: Any = rows["clip"].combine_chunks()
            self._add_vectors(vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, self._header.shapes.clip))

    def _add_vectors(self, vectors: NDArray[np.float16]) -> None:
        self._file(VECTORS).write_plain(vectors)
        total = vectors.sum(axis=0, dtype=np.float32)
        self._clip_sum = total if self._clip_sum is None else self._clip_sum + total

    def _finish(self) -> None:
        self._flush()
        if self._captions:
            self._file("captions").write(_columns(self._captions))
        if self._media:
            self._file("media").write(_columns(self._media))
        if "frames" in self._files and self._clip_sum is not None:
            sums = VectorSums.of_file(self._files[VECTORS].finish(), 2 * len(self._clip_sum))
            self._files["frames"].describe({CLIP_SUM: self._clip_sum.tobytes(), SUMS: sums.data})
        for table, file in self._files.items():
            self._facts[table] = file_facts(file.finish(), table)

    def _put(self) -> None:
        for table, file in self._files.items():
            file.publish()
            sync_folder(self._folder / table)
        self._files.clear()

    def _flush(self) -> None:
        """Writes the frames that wait as a row group."""
        if not self._frames:
            return
        columns = _frame_columns(self._frames)
        self._file("frames").write(columns)
        if self._header.shapes.clip is not None:
            self._add_vectors(columns["clip"])
        if self._header.features is not None:
            self._file("features").write(self._feature_columns(columns))
        self._frames.clear()
        self._waiting = 0

    def _feature_columns(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        features: Any = np.concatenate([rows.features for _, rows in self._frames if rows.features is not None])
        owners = {name: columns[name] for name in ("medium", "frame", "time")}
        if self._header.features != "int8":
            return owners | {"features": features}
        quantized, scales = to_int8(features)
        return owners | {"features": quantized, "scales": scales}

    def _file(self, table: str) -> TableFile:
        """The file of a table, opened when its first rows come."""
        if table not in self._files:
            schema, options = _layout(table, self._header)
            self._files[table] = TableFile(self._folder / part_name(self.number, table), schema, **options)
        return self._files[table]

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            with errors_of(self._folder):
                act()
        except OutputError:
            self.discard()
            raise


def _layout(table: str, header: ArchiveHeader) -> tuple[pa.Schema | None, dict[str, Any]]:
    """The columns of a table and how Parquet stores them; no columns for plain numbers."""
    by_frame: dict[str, Any] = {"use_dictionary": ["medium"], "write_statistics": ["medium", "frame", "time"]}
    if table == VECTORS:
        return None, {}
    if table == "frames":
        # Byte-stream-split would take 8 % off the vectors, but not every reader knows it for 16 bits.
        return frame_schema(header.shapes), by_frame | {"compression": "zstd"}
    if table == "features":
        assert header.features is not None
        # zstd takes a tenth off the features and costs more than reading them.
        return feature_schema(header.shapes, header.features), by_frame | {"compression": "none"}
    schema = media_schema() if table == "media" else caption_schema()
    return schema, {"compression": "zstd"}


def _frame_columns(parts: list[tuple[int, FrameRows]]) -> dict[str, Any]:
    """The columns of `frames`, `clip` as `[n, shared]` or nulls."""
    clips = [rows.clip for _, rows in parts if rows.clip is not None]
    return {
        "medium": np.concatenate([np.full(len(rows.time), medium, np.int64) for medium, rows in parts]),
        "frame": np.concatenate([rows.frame for _, rows in parts]),
        "time": np.concatenate([rows.time for _, rows in parts]),
        "last_time": np.concatenate([rows.last_time for _, rows in parts]),
        "stands_for": np.concatenate([rows.stands_for for _, rows in parts]),
        "token": np.concatenate([rows.tokens.reshape(len(rows.time), -1) for _, rows in parts]),
        "clip": np.concatenate(clips) if clips else [None] * sum(len(rows.time) for _, rows in parts),
    }


def _columns(rows: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]}


def _array(values: Any, kind: pa.DataType) -> Any:
    """Numbers `[n]`, vectors `[n, width]`, blobs `[n, ...]` or a list as a column; None where there is nothing."""
    if isinstance(values, np.ndarray) and pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), kind.list_size)
    if isinstance(values, np.ndarray) and pa.types.is_fixed_size_binary(kind):
        blob = pa.py_buffer(np.ascontiguousarray(values).data)
        return pa.Array.from_buffers(kind, len(values), [None, blob])
    return pa.array(values, kind)
