"""An archive as a source of media: what `ask --index` reads in place of files.

With stored features a medium's frames are never decoded again, and its file need not be there. Without them the file
is opened as `ask` does. Prints nothing.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import ModelOptions, SamplingOptions
from llava_mini_cli.engine.request import FeatureChunk
from llava_mini_cli.errors import ArchiveError, MediaError, UsageError
from llava_mini_cli.formats.archive.layout import storable
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import FEATURE_FRAMES, Archive, StoredFailure, StoredMedium, local_name
from llava_mini_cli.formats.content import file_content
from llava_mini_cli.formats.fetch.download import download_of
from llava_mini_cli.formats.fetch.urls import is_remote
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.outputs.row_keys import file_identity
from llava_mini_cli.formats.row import printable
from llava_mini_cli.geometry import segment_middles
from llava_mini_cli.media.clip import Clip, ClipInfo, MediaKind
from llava_mini_cli.media.open import Opening
from llava_mini_cli.pipelines.open_job import OpenClip, fault_of
from llava_mini_cli.pipelines.run_parts import AnswerEngine


class StoredClip:
    """A medium's stored features; as a `Clip`, but its chunks hold features, which the engine takes as well."""

    def __init__(
        self, archive: Archive, medium: StoredMedium, sampling: SamplingOptions, warnings: Sequence[str]
    ) -> None:
        self.cuts = None  # CLIP's embeddings tell of them
        self.warnings = [*([medium.warning] if medium.warning else []), *warnings]
        self._archive = archive
        self._medium = medium
        self._start, self._end = sampling.start or 0.0, inf if sampling.end is None else sampling.end
        if sampling.needed is not None:
            self._start, self._end = max(self._start, sampling.needed[0]), min(self._end, sampling.needed[1])
        is_whole = (sampling.start, sampling.end, sampling.needed) == (None, None, None)
        self.info = info = replace(_info(medium), frame_count=medium.frames if is_whole else None)
        self._embedded = sampling.scene_threshold is not None and info.kind == "video"
        self._kept: NDArray[np.int64] | None = None  # positions of frames, of those stored; None: all
        if sampling.fit and is_whole and sampling.max_frames is not None and medium.frames > sampling.max_frames:
            self._kept = segment_middles(medium.frames, sampling.max_frames)
            rate = (info.fps_sampled or 0.0) * len(self._kept) / medium.frames
            self.info = replace(info, frame_count=len(self._kept), fps_sampled=rate)

    def __iter__(self) -> Iterator[FeatureChunk]:
        position = 0
        try:
            embeddings = self._archive.embeddings(self._medium) if self._embedded else None
            for features, times in self._archive.features(self._medium):
                inside = (times >= self._start) & (times < self._end)
                if self._kept is not None:
                    inside &= np.isin(np.arange(position, position + len(times)), self._kept)
                clip = None if embeddings is None else embeddings[position : position + len(times)][inside]
                position += len(times)
                if inside.any():
                    yield FeatureChunk(cast(Any, features[inside]), times[inside], clip)
        except ArchiveError as error:
            raise MediaError("corrupt", f"the archive is damaged: {error}") from error

    def ready(self) -> bool:
        """Reading takes no longer than asking whether it would."""
        return True

    def close(self) -> None:
        """There is no decoder to end."""


@dataclass
class StoredMedia:
    """The media of an archive that a run asks about."""

    archive: Archive
    open_file: OpenClip  # opens media of which the archive has no features
    roots: tuple[str, ...] = ()  # folders, one of which a file that is opened must lie below; none: it may lie anywhere
    dtype: str | None = None  # the number format that the engine computes in, once it is loaded

    def __post_init__(self) -> None:
        self._by_path = {medium.path: medium for medium in self.archive.each_medium()}
        self.failures = list(self.archive.each_failure())  # media that could not be indexed

    @property
    def answers_from_features(self) -> bool:
        """True if files are not needed: features are there, and of every sampled frame."""
        header = self.archive.header
        return header.features is not None and header.settings.get("dedupe") is None

    def loading(self, load_engine: Callable[[ModelOptions], AnswerEngine]) -> Callable[[ModelOptions], AnswerEngine]:
        """`load_engine`, but the number format that the engine computes in is noted."""

        def load(options: ModelOptions) -> AnswerEngine:
            engine = load_engine(options)
            self.dtype = str(getattr(engine, "dtype", ""))
            return engine

        return load

    def jobs(self, prompts: tuple[Prompt, ...]) -> Iterator[Job]:
        """All questions about every medium, in the order in which they were indexed; then those that failed."""
        for medium in (*self._by_path.values(), *self.failures):
            yield self._job(medium, tuple(Question(prompt, medium.path) for prompt in prompts))

    def moment_jobs(self, prompt: Prompt, moments: Sequence[Moment]) -> Iterator[Job]:
        """One question about each of the moments that were found for it."""
        for moment in moments:
            medium = self._by_path[moment.path]
            fragment = "" if moment.start is None else f"#t={moment.start:.3f},{moment.end:.3f}"
            note = f"asked about moment {moment.rank} of the {len(moments)} best alone (score {moment.score:.3f})"
            span = TimeSpan(moment.rank, moment.start, moment.end, note)
            yield self._job(medium, (Question(prompt, medium.path + fragment),))._replace(span=span)

    def _job(self, medium: StoredMedium | StoredFailure, questions: tuple[Question, ...]) -> Job:
        item = medium.path, medium.size, medium.mtime_ns
        name = local_name(medium.path)
        roots = () if self.answers_from_features else self.roots
        job = Job(name, medium.file_name, questions, item=item, content=medium.digest, roots=roots)
        if isinstance(medium, StoredFailure):
            return job._replace(fault=Fault(medium.error_stage, medium.error_type, medium.error))
        if is_remote(medium.path) and not self.answers_from_features:
            return job._replace(source=download_of(medium.path, self.roots))
        return job

    def find_fault(self, job: Job) -> Fault | None:
        """Why a medium cannot be asked about, if so: its file is gone or changed, and its features were not stored."""
        if self.answers_from_features:
            return job.fault
        fault = fault_of(job)
        if fault is not None and job.fault is None and _lies_inside(job.path):
            words = "it lies inside another file, and its features were not stored; index again with --features"
            return Fault("decode", "unreadable", words)
        if fault is not None or is_remote(job.path):
            return fault
        medium = self._by_path[printable(job.path)]
        _, size, mtime = storable(file_identity(job.path))
        if (size, mtime) != (medium.size, medium.mtime_ns) and not _holds(job.path, medium):
            return Fault("decode", "changed", "the file is not what was indexed; run llava-mini index again")
        return None

    def open_clip(
        self, path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
    ) -> Clip:
        """A medium's features, or its file where there are none."""
        if not self.answers_from_features:
            return self.open_file(path, options, frame_size=frame_size, chunk_frames=chunk_frames, opening=opening)
        medium = self._by_path[printable(path)]
        settings = self.archive.header.settings
        if (options.start, options.end) == (settings.get("start"), settings.get("end")):
            options = replace(options, start=None, end=None)  # all that is stored, also what is on display at the start
        parts, patches, width = self.archive.header.shapes.features
        opening.reserve(min(medium.frames, FEATURE_FRAMES) * parts * patches * width * 4)
        return cast(Clip, StoredClip(self.archive, medium, options, self._notes()))

    def _notes(self) -> list[str]:
        """Reasons why an answer from features may differ from one from the file."""
        header = self.archive.header
        notes: list[str] = []
        if header.features == "int8":
            notes.append("answered from features in int8")
        made_in = header.settings.get("dtype")
        if self.dtype is not None and made_in != self.dtype:
            notes.append(f"answered in {self.dtype} from features computed in {made_in}")
        return notes


SAMPLED = ("fps", "max_frames", "start", "end")  # the options that an archive's media have in common


def sampling_of(archive: Archive, options: SamplingOptions, given: Collection[str] = ()) -> SamplingOptions:
    """How the archive's media were sampled.

    Args:
        given: the options of `SAMPLED` that the user named; the others are taken from the archive.

    Raises:
        UsageError: a named one says otherwise. ArchiveError: the archive does not tell.
    """
    stored: dict[str, Any] = {name: archive.header.settings.get(name) for name in SAMPLED}
    if stored["fps"] is None:
        raise ArchiveError(f"'{archive.folder}' is damaged: its header does not tell how its media were sampled")
    for name in given:
        wanted = getattr(options, name)
        if wanted != stored[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} {wanted:g}: the archive was sampled with {stored[name]}; leave the option "
                "out, or index again"
            )
    return replace(options, **stored)


def _holds(path: str, medium: StoredMedium) -> bool:
    """True if a file holds what was indexed, though its date is another."""
    return medium.size is not None and medium.digest is not None and file_content(path, medium.size) == medium.digest


def _lies_inside(path: str) -> bool:
    """True if a medium is a member of a shard or a cell of a table on this disk."""
    return any(parent.is_file() for parent in Path(path).parents)


def _info(medium: StoredMedium) -> ClipInfo:
    return ClipInfo(
        medium.path,
        cast(MediaKind, medium.media),
        medium.width,
        medium.height,
        medium.duration_s,
        medium.frames,
        medium.fps_sampled,
    )
