"""A query and an archive -> the best moments, by scanning every frame's CLIP embedding.

Exact: each score is the cosine of the query with the stored embedding, in float32. One part is in memory at a time,
without its vectors. Prints nothing, and loads no model: the query comes as a vector.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import translate
from heapq import nlargest
from itertools import islice
from math import inf
from pathlib import Path
from re import compile as compile_pattern

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import ArchiveError, UsageError
from llava_mini_cli.formats.archive.layout import VECTORS, part_name
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.near import Stretch, nearest
from llava_mini_cli.formats.archive.reader import Archive, FrameColumns, StoredMedium
from llava_mini_cli.formats.row import one_line
from llava_mini_cli.pipelines.scored_spans import ScoredSpan, spans

Vector = NDArray[np.float32]
NEAR_FRAMES = 600  # that the approximate index is asked for, for each moment wanted: a moment has several frames


@dataclass(frozen=True)
class SearchOptions:
    """Which moments are wanted, and how many."""

    most: int
    min_score: float | None = None
    path: str | None = None  # a glob over paths
    after: float | None = None  # seconds from the beginning of the video
    before: float | None = None
    approximate: bool = False  # look only at media that the approximate index names

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UsageError(f"-k must be at least 1, not {self.most}")
        if self.before is not None and self.before <= (self.after or 0.0):
            raise UsageError(f"--before ({self.before:g} s) must come after --after ({self.after or 0.0:g} s)")
        if self.approximate and (self.path, self.after, self.before) != (None, None, None):
            raise UsageError("--approximate looks everywhere: it goes with neither --path nor --after nor --before")


@dataclass(frozen=True)
class Hit:
    """A moment by where its frames are."""

    part: int
    medium: int  # the number of its medium
    score: float
    time: float
    start: float  # time of its first frame
    end: float  # time of the last sampled frame in it, which may have been left out as a near copy
    frames: int


@dataclass(frozen=True)
class Scanner:
    """How vectors are compared with a query: those of a file, or batches of them where the file is missing."""

    file: Callable[[Path, int, Vector, Callable[[int, memoryview], None] | None], Vector]
    batches: Callable[[Iterable[NDArray[np.float16]], Vector], Vector]


def combined(queries: list[Vector]) -> Vector:
    """One vector for several queries: its score is the mean of theirs."""
    return np.stack(queries).mean(axis=0).astype(np.float32)


def check_searchable(archive: Archive) -> None:
    """Raises `UsageError` where an archive has nothing to search in, whatever the query."""
    if archive.header.shapes.clip is None:
        raise UsageError(
            f"'{archive.folder}' holds no CLIP embeddings: its model's CLIP checkpoint is the vision half alone, "
            "without a projection; index with a model whose mm_vision_tower is a whole CLIP"
        )


def search(archive: Archive, query: Vector, options: SearchOptions, scanner: Scanner) -> list[Moment]:
    """The best moments, best first. What cannot be read is added to the archive's `damage` and left out."""
    check_searchable(archive)
    chosen = by_path(archive, options.path)
    hits: list[Hit] = []
    if options.approximate:
        chosen, hits = _near(archive, query, options, scanner)
    usual = _usual(chosen, query) if len(chosen.media) else 0.0
    for part in chosen.parts:
        try:
            found = _search_part(chosen, part, query, usual, options, scanner)
        except ArchiveError as error:
            archive.leave_out(part, error)
            continue
        hits = nlargest(options.most, [*hits, *found], key=lambda hit: hit.score)
    return moments(archive, hits)


def _near(archive: Archive, query: Vector, options: SearchOptions, scanner: Scanner) -> tuple[Archive, list[Hit]]:
    """The best moments of media that the approximate index names; and what it does not cover, for an exact search."""
    facts, stretches = nearest(archive.folder, query, NEAR_FRAMES * options.most)
    archive.recall = facts.recall
    usual = float(np.array(facts.mean, np.float32) @ query)
    parts, numbers = archive.media["part"].to_numpy(), archive.media["medium"].to_numpy()
    hits: list[Hit] = []
    live = (stretch for stretch in stretches if ((parts == stretch.part) & (numbers == stretch.medium)).any())
    for stretch in islice(live, options.most):  # the best moments cannot be in more media than there are moments
        try:
            hits += _search_stretch(archive, stretch, query, usual, options, scanner)
        except ArchiveError as error:
            archive.leave_out(stretch.part, error)
    best = nlargest(options.most, hits, key=lambda hit: hit.score)
    return archive.restrict(~np.isin(parts, facts.parts)), best


def _search_stretch(
    archive: Archive, stretch: Stretch, query: Vector, usual: float, options: SearchOptions, scanner: Scanner
) -> list[Hit]:
    """The best moments of one medium, exactly."""
    scores = scanner.batches([archive.vector_rows(stretch.part, stretch.rows)], query)
    columns = FrameColumns(np.full(len(scores), stretch.medium), stretch.time, stretch.last_time)
    return _hits(stretch.part, columns, np.arange(len(scores)), scores, usual, options)


def by_path(archive: Archive, pattern: str | None) -> Archive:
    """The media whose path, or name within the folder that was indexed, matches a glob."""
    if pattern is None:
        return archive
    matches = compile_pattern(translate(pattern)).match
    return archive.matching(lambda path, name: bool(matches(path) or matches(name)))


def _usual(archive: Archive, query: Vector) -> float:
    try:
        return float(archive.mean_vector() @ query)
    except ArchiveError:
        return 0.0  # a damaged part is named when it is searched


def _search_part(
    archive: Archive, part: int, query: Vector, usual: float, options: SearchOptions, scanner: Scanner
) -> list[Hit]:
    columns = archive.frames(part)
    scores = part_scores(archive, part, len(columns.medium), query, scanner)
    rows = _wanted_rows(archive, part, columns, options)
    return _hits(part, columns, rows, scores[rows], usual, options)


def _hits(
    part: int, columns: FrameColumns, rows: NDArray[np.int64], scores: Vector, usual: float, options: SearchOptions
) -> list[Hit]:
    """The best moments of some rows of a part, whose scores are given; each medium's rows stand together."""
    least = -inf if options.min_score is None else options.min_score
    found = spans(columns.medium[rows], scores, usual, options.most, least)
    return [_hit(part, columns, rows, span) for span in found]


def part_scores(archive: Archive, part: int, rows: int, query: Vector, scanner: Scanner) -> NDArray[np.float32]:
    """Scores of all frames of a part, in the order of its rows. Raises `ArchiveError`."""
    file, sums = archive.vector_file(part, rows), archive.vector_sums(part)
    scores = None
    if file is not None:
        try:
            scores = scanner.file(file, rows, query, None if sums is None else sums.check)
        except (OSError, EOFError, ValueError) as error:
            archive.leave_out(part, ArchiveError(f"{part_name(part, VECTORS)}: {one_line(str(error))}"))
    if scores is None:
        scores = scanner.batches(archive.vectors(part), query)
    if len(scores) != rows or not np.isfinite(scores).all():
        raise ArchiveError(f"{part_name(part, 'frames')}: its embeddings are not the numbers that were written")
    return scores


def _wanted_rows(archive: Archive, part: int, columns: FrameColumns, options: SearchOptions) -> NDArray[np.int64]:
    """Rows of live media within the time asked for; each medium's together, in order of time."""
    media = archive.media.filter(np.equal(archive.media["part"].to_numpy(), part))["medium"].to_numpy()
    wanted = np.isin(columns.medium, media)
    if options.after is not None:
        wanted &= columns.last_time >= options.after
    if options.before is not None:
        wanted &= columns.time <= options.before
    rows = np.flatnonzero(wanted)
    return rows[np.argsort(columns.medium[rows], kind="stable")]


def _hit(part: int, columns: FrameColumns, rows: NDArray[np.int64], span: ScoredSpan) -> Hit:
    first, best, last = (int(rows[row]) for row in (span.first, span.best, span.last))
    return Hit(
        part,
        int(columns.medium[best]),
        span.score,
        float(columns.time[best]),
        float(columns.time[first]),
        float(columns.last_time[last]),
        span.last - span.first + 1,
    )


def moments(archive: Archive, hits: list[Hit]) -> list[Moment]:
    """Hits with what is known of their media, and the stored caption at that time."""
    numbers, parts = archive.media["medium"].to_numpy(), archive.media["part"].to_numpy()
    found: list[Moment] = []
    for rank, hit in enumerate(hits, start=1):
        row = np.flatnonzero((numbers == hit.medium) & (parts == hit.part))[0]
        found.append(_moment(archive, rank, hit, archive.medium(int(row))))
    return found


def _moment(archive: Archive, rank: int, hit: Hit, medium: StoredMedium) -> Moment:
    start, end, time = hit.start, hit.end, hit.time
    if medium.fps_sampled:  # a frame stands for the stretch around it
        start = max(0.0, start - 0.5 / medium.fps_sampled)
        end = min(medium.duration_s or inf, end + 0.5 / medium.fps_sampled)
    still = medium.media == "image"
    return Moment(
        rank=rank,
        score=hit.score,
        path=medium.path,
        file_name=medium.file_name,
        media=medium.media,
        time=None if still else time,
        start=None if still else start,
        end=None if still else end,
        frames=hit.frames,
        duration_s=medium.duration_s,
        caption=_caption_at(archive, medium, time),
    )


def _caption_at(archive: Archive, medium: StoredMedium, time: float) -> str | None:
    try:
        captions = archive.captions(medium)
    except ArchiveError as error:
        archive.leave_out(medium.part, error)
        return None
    for caption in captions:
        if caption["start"] is None or caption["start"] <= time < caption["end"]:
            return caption["text"]
    return None
