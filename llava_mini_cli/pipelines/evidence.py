"""The pieces of a medium that an engine leaves out in turn, and what a row says of them.

A window is cut into spans of one length. Knows nothing of how their weight comes about.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import ceil, exp, inf, isfinite

from llava_mini_cli.config import MOST_PIECES, EvidenceOptions, SamplingOptions
from llava_mini_cli.engine.request import Answer, Cut, LeftOut, Request
from llava_mini_cli.formats.job import TimeSpan
from llava_mini_cli.formats.row import EVIDENCE_COLUMNS
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.spans import looked_at

PIECES = 16  # of a window, where nobody says how long they are
NO_EVIDENCE: Mapping[str, object] = dict.fromkeys(column.name for column in EVIDENCE_COLUMNS)


def with_evidence(
    request: Request, span: TimeSpan | None, info: ClipInfo, options: EvidenceOptions, sampling: SamplingOptions
) -> Request:
    """A request that asks for evidence, if the options do; `span`: the part of the medium that is looked at."""
    if options.most is None:
        return request
    if info.kind == "image":
        return replace(request, size=(info.width, info.height))
    return replace(request, cut=cut_of(span, info, options, sampling))


def cut_of(span: TimeSpan | None, info: ClipInfo, options: EvidenceOptions, sampling: SamplingOptions) -> Cut | None:
    """How the windows of a medium are cut into pieces; None where they are not."""
    if options.most is None or info.kind == "image":
        return None
    begin, stop = looked_at(span, info, sampling)
    return partial(cuts, begin, stop, info.fps_sampled, options.every)


def cuts(
    begin: float, stop: float, fps: float | None, every: float | None, start: float, end: float
) -> tuple[float, ...]:
    """The times, in seconds, between which the pieces of a window lie.

    There are `PIECES` of them, or one for each frame where there are fewer frames. There are none where there would be
    too many, or where nobody knows how long the video is.

    Args:
        begin, stop: where what is looked at of the video begins and ends, seconds.
        fps: frames sampled a second; None: nobody knows.
        every: length of a piece, seconds; None: of what `PIECES` make.
        start, end: of the window, seconds.
    """
    first, last = max(begin, start), min(stop, end)
    length = last - first
    if not 0 < length < inf:
        return ()
    if every is None:
        count = PIECES if fps is None else max(1, min(PIECES, round(length * fps)))
        return tuple(first + length * number / count for number in range(count + 1))
    count = max(1, ceil(round(length / every, 6)))
    if count > MOST_PIECES:
        return ()
    return (*(first + every * number for number in range(count)), last)


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
    return f"no evidence: the stretch has no length, or more than {MOST_PIECES} spans of --evidence-every"
