"""An approximate index of an archive's embeddings, through faiss: an inverted file that is read from disk as needed.

It only says which media to look at; their scores are exact. Built on request and never used unasked. Its recall is
measured when it is built, on frames of the archive itself, and kept beside it. So is a table of all frames, medium by
medium, that spares a search the Parquet files.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import ArchiveError, OutputError, UsageError, first_line
from llava_mini_cli.formats.archive.layout import NEAR
from llava_mini_cli.formats.archive.locks import writing
from llava_mini_cli.formats.archive.reader import Archive
from llava_mini_cli.formats.archive.verify import plain
from llava_mini_cli.formats.disk import write_own_file
from llava_mini_cli.needs import ANN
from llava_mini_cli.plain_files import read_object
from llava_mini_cli.safe_files import Temporary, make_own_folder, sweep

INDEX, FRAMES, FACTS = "vectors.faiss", "frames.npy", "near.json"
TRAINED_ON = 40  # vectors a cell
ROUNDS = 10  # of k-means
SAMPLE = 100  # frames that recall is measured on
NEIGHBOURS = 10
WANTED_RECALL = 0.98
TIE = 1e-4  # of a score: faiss sums in another order
LEAST_PROBES = 32  # the best moments are in several media, whose frames are in several cells
ADDED_AT_ONCE = 4096
TABLE = np.dtype(
    [
        ("part", "<i4"),
        ("row", "<i4"),  # of the part
        ("medium", "<i8"),
        ("time", "<f8"),
        ("last_time", "<f8"),
        ("first", "<i8"),  # place in this table of the medium's first frame
        ("count", "<i4"),  # of the medium's frames
    ]
)


@dataclass(frozen=True)
class NearFacts:
    """The facts of an approximate index, `near.json`."""

    parts: list[int]  # that it covers
    rows: int
    cells: int
    probes: int  # cells that are looked into
    recall: float  # of the nearest 10, on frames of the archive
    mean: list[float]  # of all embeddings, as `Archive.mean_vector`

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `UsageError` where there is none, `ArchiveError` where it is damaged."""
        path = folder / NEAR / FACTS
        try:
            facts = cls(**read_object(path))
            facts._check()
            return facts
        except FileNotFoundError:
            raise UsageError(f"'{folder}' has no approximate index; llava-mini index --ann makes one") from None
        except (OSError, ValueError, TypeError) as error:
            raise ArchiveError(f"'{path}' is damaged: {error}") from error

    def _check(self) -> None:
        """Raises `TypeError` or `ValueError` for facts that are none."""
        counts = (*self.parts, self.rows, self.cells, self.probes)
        if any(type(count) is not int or not 0 < count < 1 << 62 for count in counts):
            raise ValueError("parts, rows, cells and probes are positive numbers")
        numbers: list[Any] = [self.recall, *self.mean]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("recall and mean are numbers")


def faiss() -> Any:
    """The library. Raises `UsageError` where it is not installed, or is broken."""
    return ANN.load("an approximate index", "faiss")


@dataclass(frozen=True)
class Stretch:
    """The frames of one medium, in order of time."""

    part: int
    medium: int
    rows: NDArray[np.int32]  # of the part
    time: NDArray[np.float64]
    last_time: NDArray[np.float64]


def build(archive: Archive) -> NearFacts:
    """Makes the index of everything that the archive holds now, in place of an older one.

    Takes 2 bytes a number in memory. Raises `UsageError`, `OutputError`, `ArchiveError`.
    """
    library = faiss()
    with writing(archive.folder):
        table = np.concatenate([_table(archive, part) for part in archive.parts] or [np.zeros(0, TABLE)])
        rows, width = len(table), archive.header.shapes.clip
        if not rows or width is None:
            raise UsageError(f"'{archive.folder}' holds no embeddings to index")
        cells = max(1, min(int(2 * sqrt(rows)), rows // TRAINED_ON))
        index = library.index_factory(width, f"IVF{cells},SQfp16", library.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.min_points_per_centroid = ROUNDS, 1
        sample = _sample(archive, rows, cells * TRAINED_ON)
        index.train(sample)
        start = 0
        for part in archive.parts:
            start += _add_part(archive, index, table, part, start)
        queries = sample[np.linspace(0, len(sample) - 1, min(SAMPLE, len(sample))).astype(int)]
        probes, recall = _tuned(archive, index, queries)
        facts = NearFacts(archive.parts, rows, cells, probes, round(recall, 4), archive.mean_vector().tolist())
        _write(library, archive.folder, index, table, facts)
    return facts


def nearest(folder: Path, query: NDArray[np.float32], most: int) -> tuple[NearFacts, Iterator[Stretch]]:
    """The media of about the nearest `most` frames, that of the nearest one first, and what is known of the index."""
    library, facts = faiss(), NearFacts.read(folder)
    path = folder / NEAR / INDEX
    try:
        index = library.read_index(str(plain(path)), library.IO_FLAG_MMAP | library.IO_FLAG_READ_ONLY)
        table = np.load(plain(folder / NEAR / FRAMES), mmap_mode="r")
        if (index.d, len(facts.mean), index.ntotal, *table.shape) != (*query.shape * 2, facts.rows, facts.rows):
            raise ValueError("it is not of this archive's frames")
        if table.dtype != TABLE:
            raise ValueError("its table has other columns")
        index.nprobe = facts.probes
        library.omp_set_num_threads(1)  # one query is too little to share
        _, numbers = index.search(query[None], most)
        starts = dict.fromkeys(table["first"][numbers[0][numbers[0] >= 0]].tolist())
    except (RuntimeError, OSError, ValueError, IndexError) as error:
        raise ArchiveError(f"'{path}' is damaged: {first_line(error)}") from error
    return facts, (_stretch(folder, table, start) for start in starts)


def _stretch(folder: Path, table: NDArray[Any], start: int) -> Stretch:
    """The frames of the medium that begin at `start` of the table. Raises `ArchiveError` where there are none."""
    rows = table[start : start + int(table["count"][start])] if 0 <= start < len(table) else table[:0]
    if not len(rows):
        raise ArchiveError(f"'{folder / NEAR / FRAMES}' is damaged: no frame begins at {start}")
    part, medium = int(rows["part"][0]), int(rows["medium"][0])
    return Stretch(part, medium, rows["row"].copy(), rows["time"].copy(), rows["last_time"].copy())


def _table(archive: Archive, part: int) -> NDArray[Any]:
    """The frames of a part, medium by medium, dropped ones included; `first` counts from the part's own start."""
    columns = archive.frames(part)
    order = np.argsort(columns.medium, kind="stable")
    table = np.zeros(len(order), TABLE)
    table["part"], table["row"], table["medium"] = part, order, columns.medium[order]
    table["time"], table["last_time"] = columns.time[order], columns.last_time[order]
    _, first, back, count = np.unique(table["medium"], return_index=True, return_inverse=True, return_counts=True)
    table["first"], table["count"] = first[back], count[back]
    return table


def _sample(archive: Archive, rows: int, most: int) -> NDArray[np.float32]:
    """Vectors spread evenly over the archive."""
    step = max(1, rows // most)
    found = [np.concatenate(list(archive.vectors(part)))[::step] for part in archive.parts]
    return np.concatenate(found).astype(np.float32)


def _add_part(archive: Archive, index: Any, table: NDArray[Any], part: int, start: int) -> int:
    """Adds a part whose frames begin at `start` of the table; returns how many there are."""
    vectors = np.concatenate(list(archive.vectors(part)))
    here = table[start : start + len(vectors)]
    here["first"] += start
    for chunk in range(0, len(vectors), ADDED_AT_ONCE):
        rows = here["row"][chunk : chunk + ADDED_AT_ONCE]
        index.add_with_ids(vectors[rows].astype(np.float32), np.arange(len(rows), dtype=np.int64) + start + chunk)
    return len(vectors)


def _tuned(archive: Archive, index: Any, queries: NDArray[np.float32]) -> tuple[int, float]:
    """The fewest cells to look into that give the wanted recall, and that recall."""
    least = _least_of_nearest(archive, queries)
    probes, recall = min(LEAST_PROBES, int(index.nlist)), 0.0
    while True:
        index.nprobe = probes
        scores, _ = index.search(queries, least.shape[1])
        recall = float(np.mean(scores >= least[:, -1:] - TIE))
        if recall >= WANTED_RECALL or probes >= index.nlist:
            return probes, recall
        probes = min(2 * probes, int(index.nlist))


def _least_of_nearest(archive: Archive, queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of the truly nearest frames, best first; frames that score the same are as good as one another."""
    scores = np.zeros((len(queries), 0), np.float32)
    for part in archive.parts:
        for batch in archive.vectors(part):
            every = np.concatenate([scores, queries @ batch.astype(np.float32).T], axis=1)
            scores = -np.sort(-every, axis=1)[:, :NEIGHBOURS]
    return scores


def _write(library: Any, folder: Path, index: Any, table: NDArray[Any], facts: NearFacts) -> None:
    place = folder / NEAR
    try:
        make_own_folder(place)
        sweep(place, alone=True)
        with ExitStack() as stack:
            vectors, frames = Temporary(place / INDEX), Temporary(place / FRAMES)
            stack.callback(vectors.discard)
            stack.callback(frames.discard)
            library.write_index(index, str(vectors.path))
            np.save(frames.stream, table)
            (place / FACTS).unlink(missing_ok=True)  # without it there is no index, while its files are being changed
            vectors.put()
            frames.put()
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write '{place}': {first_line(error)}") from error
    write_own_file(place / FACTS, json.dumps(asdict(facts)).encode() + b"\n")
