"""An approximate index of an archive's embeddings, through faiss: an inverted file that is read from disk as needed.

It only says which media to look at; their scores are exact. Built on request and never used unasked. Its recall is
measured when it is built, on frames of the archive itself, and kept beside it.
"""

import importlib
import json
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import ArchiveError, OutputError, UsageError
from llava_mini_cli.formats.archive.locks import writing
from llava_mini_cli.formats.archive.reader import Archive

FOLDER = "near"
INDEX, FACTS = "vectors.faiss", "near.json"
TRAINED_ON = 40  # vectors a cell
ROUNDS = 10  # of k-means
SAMPLE = 100  # frames that recall is measured on
NEIGHBOURS = 10
WANTED_RECALL = 0.98
TIE = 1e-4  # of a score: faiss sums in another order
ROW_BITS = 32  # of an entry's number: part in the upper bits, row in the lower


@dataclass(frozen=True)
class NearFacts:
    """What is known of an approximate index."""

    parts: list[int]  # that it covers
    rows: int
    cells: int
    probes: int  # cells that are looked into
    recall: float  # of the nearest 10, on frames of the archive

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `UsageError` where there is none, `ArchiveError` where it is damaged."""
        path = folder / FOLDER / FACTS
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise UsageError(f"'{folder}' has no approximate index; llava-mini index --ann makes one") from None
        except (OSError, ValueError, TypeError) as error:
            raise ArchiveError(f"'{path}' is damaged: {error}") from error


def faiss() -> Any:
    """The library. Raises `UsageError` where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UsageError("an approximate index needs the [ann] extra: pip install 'llava-mini-cli[ann]'") from error


def build(archive: Archive) -> NearFacts:
    """Makes the index of everything that the archive holds now, in place of an older one.

    Takes 2 bytes a number in memory. Raises `UsageError`, `OutputError`, `ArchiveError`.
    """
    library = faiss()
    with writing(archive.folder):
        sizes = {part: len(archive.frames(part).medium) for part in archive.parts}
        rows = sum(sizes.values())
        width = archive.header.shapes.clip
        if not rows or width is None:
            raise UsageError(f"'{archive.folder}' holds no embeddings to index")
        cells = max(1, min(int(2 * sqrt(rows)), rows // TRAINED_ON))
        index = library.index_factory(width, f"IVF{cells},SQfp16", library.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.min_points_per_centroid = ROUNDS, 1
        sample = _sample(archive, sizes, cells * TRAINED_ON)
        index.train(sample)
        for part in archive.parts:
            _add_part(archive, index, part)
        queries = sample[np.linspace(0, len(sample) - 1, min(SAMPLE, len(sample))).astype(int)]
        probes, recall = _tuned(archive, index, queries)
        facts = NearFacts(archive.parts, rows, cells, probes, round(recall, 4))
        _write(library, archive.folder, index, facts)
    return facts


def nearest(folder: Path, query: NDArray[np.float32], most: int) -> tuple[NearFacts, list[tuple[int, int]]]:
    """Part and row of about the nearest `most` frames, and what is known of the index."""
    library, facts = faiss(), NearFacts.read(folder)
    path = folder / FOLDER / INDEX
    try:
        index = library.read_index(str(path), library.IO_FLAG_MMAP | library.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        raise ArchiveError(f"'{path}' is damaged: {str(error).splitlines()[0]}") from error
    index.nprobe = facts.probes
    _, numbers = index.search(query[None], most)
    found: list[int] = [number for number in numbers[0].tolist() if number >= 0]
    return facts, [(number >> ROW_BITS, number & ((1 << ROW_BITS) - 1)) for number in found]


def _sample(archive: Archive, sizes: dict[int, int], most: int) -> NDArray[np.float32]:
    """Vectors spread evenly over the archive."""
    rows = sum(sizes.values())
    step = max(1, rows // most)
    return np.concatenate([_part_vectors(archive, part)[::step].astype(np.float32) for part in sizes])


def _part_vectors(archive: Archive, part: int) -> NDArray[np.float16]:
    return np.concatenate(list(archive.vectors(part)))


def _add_part(archive: Archive, index: Any, part: int) -> None:
    start = 0
    for batch in archive.vectors(part):
        numbers = (np.int64(part) << ROW_BITS) + np.arange(start, start + len(batch), dtype=np.int64)
        index.add_with_ids(batch.astype(np.float32), numbers)
        start += len(batch)


def _tuned(archive: Archive, index: Any, queries: NDArray[np.float32]) -> tuple[int, float]:
    """The fewest cells to look into that give the wanted recall, and that recall."""
    least = _least_of_nearest(archive, queries)
    probes, recall = 1, 0.0
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


def _write(library: Any, folder: Path, index: Any, facts: NearFacts) -> None:
    place = folder / FOLDER
    try:
        place.mkdir(exist_ok=True)
        library.write_index(index, str(place / f".{INDEX}.tmp"))
        (place / f".{FACTS}.tmp").write_text(json.dumps(asdict(facts)) + "\n")
        (place / f".{INDEX}.tmp").replace(place / INDEX)
        (place / f".{FACTS}.tmp").replace(place / FACTS)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write '{place}': {str(error).splitlines()[0]}") from error
