"""The pieces of a medium that an engine leaves out in turn, and what a row says of them.

A window is cut into spans of one length, or where scenes begin. Knows nothing of how their weight comes about.
"""

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, inf, isfinite

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import MOST_PIECES, EvidenceOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine.request import Answer, Cut, LeftOut, Request
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.row import EVIDENCE_COLUMNS
from llava_mini_cli.media.clip import Clip, ClipInfo
from llava_mini_cli.pipelines.scenes import BY_CLIP, Scenes
from llava_mini_cli.pipelines.spans import looked_at

NO_EVIDENCE: Mapping[str, object] = dict.fromkeys(column.name for column in EVIDENCE_COLUMNS)


@dataclass(frozen=True)
class Pieces(Cut):
    """Cuts windows within what is looked at of a video, which goes from `begin` to `stop`, seconds."""

    begin: float
    stop: float  # infinity: nobody knows

    @property
    def wants_embeddings(self) -> bool:
        """True if the frames' embeddings tell where pieces begin."""
        return False

    @property
    def is_growing(self) -> bool:
        """True if the last bound may move, and more may follow, while frames come."""
        return False

    def bounds(self, start: float, end: float) -> tuple[float, ...]:
        """The times between which the pieces of a window lie, seconds.

        There are none where there would be too many, or where nobody knows how long the video is.
        """
        first, last = max(self.begin, start), min(self.stop, end)
        if not 0 < last - first < inf:
            return ()
        starts = self._starts(first, last)
        return (*starts, last) if len(starts) <= MOST_PIECES else ()

    def saw(self, times: NDArray[np.float64], embeddings: NDArray[np.floating] | None) -> None:
        """Takes the next frames, of which nobody wants to know."""

    @abstractmethod
    def _starts(self, first: float, last: float) -> Sequence[float]:
        """Where the pieces of a window begin, the first at `first`; at most one more than are cut."""


@dataclass(frozen=True)
class EvenPieces(Pieces):
    """Cuts windows into pieces of one length: a number of them, or one for each frame where there are fewer frames."""

    fps: float | None  # frames sampled a second; None: nobody knows
    options: EvidenceOptions

    def _starts(self, first: float, last: float) -> Sequence[float]:
        length, every, most = last - first, self.options.every, self.options.count
        if every is None:
            count = most if self.fps is None else max(1, min(most, round(length * self.fps)))
            return [first + length * number / count for number in range(count)]
        count = max(1, ceil(round(length / every, 6)))
        return [first + every * number for number in range(min(count, MOST_PIECES + 1))]


@dataclass(frozen=True)
class ListedPieces(Pieces):
    """Cuts windows where the scenes of a list begin and end."""

    times: Sequence[float]  # seconds, ascending

    def _starts(self, first: float, last: float) -> Sequence[float]:
        return _within(self.times, first, last)


@dataclass(frozen=True)
class ScenePieces(Pieces):
    """Cuts windows where scenes begin, which is found while frames come."""

    scenes: Scenes

    @property
    def wants_embeddings(self) -> bool:
        """True if the frames' embeddings tell where pieces begin."""
        return self.scenes.wants_embeddings

    @property
    def is_growing(self) -> bool:
        """True: there may be another scene."""
        return True

    def saw(self, times: NDArray[np.float64], embeddings: NDArray[np.floating] | None) -> None:
        """Begins a scene at each frame that is far from the one before. Raises `MediaError`: no embeddings."""
        self.scenes.saw(times, embeddings)

    def _starts(self, first: float, last: float) -> Sequence[float]:
        self.scenes.reached(inf)
        return _within(self.scenes.starts, first, last)


def _within(times: Sequence[float], first: float, last: float) -> Sequence[float]:
    """The first time, then those between it and the last one, as many as matter."""
    begin = bisect_right(times, first)
    return [first, *times[begin : min(bisect_left(times, last, begin), begin + MOST_PIECES)]]


def cut_of(job: Job, clip: Clip, options: EvidenceOptions, spans: SpanOptions, sampling: SamplingOptions) -> Cut | None:
    """How the windows of a clip are cut into pieces, if evidence is asked for; a picture is not.

    The clip's warnings say so where scenes are told apart by CLIP, unless rows of scenes do.
    """
    if options.most is None or clip.info.kind == "image":
        return None
    begin, stop = looked_at(job.span, clip.info, sampling)
    if not options.scenes:
        return EvenPieces(begin, stop, clip.info.fps_sampled, options)
    if job.spans:
        bounds = {bound for span in job.spans for bound in (span.start, span.end) if bound is not None}
        return ListedPieces(begin, stop, sorted(bounds))
    if clip.cuts is None and not spans.scenes:
        clip.warnings.append(f"evidence of {BY_CLIP}")
    return ScenePieces(begin, stop, Scenes(clip.cuts, spans, begin, stop))


def with_evidence(request: Request, info: ClipInfo, options: EvidenceOptions, sampling: SamplingOptions) -> Request:
    """A request about a whole medium that asks for evidence, if the options do; not of scenes."""
    if options.most is None:
        return request
    if info.kind == "image":
        return replace(request, size=(info.width, info.height))
    return replace(request, cut=pieces_of(info, options, sampling))


def pieces_of(info: ClipInfo, options: EvidenceOptions, sampling: SamplingOptions) -> EvenPieces:
    """How a whole video is cut, where its scenes do not say so."""
    return EvenPieces(*looked_at(None, info, sampling), info.fps_sampled, options)


def evidence_of(answer: Answer, info: ClipInfo, options: EvidenceOptions) -> tuple[Mapping[str, object], str | None]:
    """The columns of a row that was answered, by name, and why they are null, if so."""
    found = answer.evidence
    if found is None:
        return NO_EVIDENCE, _lack(info)
    parts = sorted(found.parts, key=lambda part: part.score)[: options.most]
    values = [_shown(part, found.seen) for part in parts], _likelihood(found.seen), _likelihood(found.blind)
    return dict(zip(NO_EVIDENCE, values, strict=True)), None


def _shown(part: LeftOut, seen: float) -> dict[str, object]:
    start, end = (None if time is None else round(time, 6) for time in (part.start, part.end))
    return {"start": start, "end": end, "box": part.box and list(part.box), "weight": seen - part.score}


def _likelihood(score: float) -> float:
    return exp(min(score, 0.0))


def _lack(info: ClipInfo) -> str:
    if info.duration_s is None or not isfinite(info.duration_s):
        return "no evidence: nobody knows how long the video is"
    return f"no evidence: the stretch has no length, or more than {MOST_PIECES} spans (--evidence-spans)"
