"""One medium, with or without a question: what the model looks at, as arrays and as pictures. Prints nothing.

open -> the engine's answer with its evidence, some frames kept as they pass -> attention maps -> pictures
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import exp, inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import PIECES, EvidenceOptions, GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.engine.request import Answer, Evidence, LeftOut, Request
from llava_mini_cli.errors import LlavaMiniError, MediaError, PromptError, UsageError
from llava_mini_cli.formats.inspected import Inspected, Section, Shown
from llava_mini_cli.formats.job import Job
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.heat_map import NATS, as_png, colours, heat_map, resized, shown_size, strip
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.evidence import pieces_of, with_evidence
from llava_mini_cli.pipelines.load_engine import load_engine
from llava_mini_cli.pipelines.open_job import fault_of

if TYPE_CHECKING:  # imported where they are used: torch comes with them
    from llava_mini_cli.engine.attention_maps import AttentionMaps
    from llava_mini_cli.engine.engine import Engine

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Frame = tuple[float, NDArray[np.uint8]]  # its time in seconds, and its pixels
MOST_FRAMES = 64
EVIDENCE = EvidenceOptions(PIECES)
CARRIED = (
    "The answer is scored again with each part left out: the bar, or colour, is how much its log-likelihood drops, and "
    f"the highest or brightest is the largest drop, if that is {NATS} or more. A bar below the line speaks against the "
    "answer."
)
QUERIES = "Attention over the patches, mean of the heads. The brightest patch of each picture has the brightest colour."
WORDS = (
    "Pre-fusion's attention from the word to the patches, mean of layers and heads. One scale for all frames of a word."
)


@dataclass(frozen=True)
class InspectOptions:
    """How a medium is looked at."""

    model: ModelOptions
    sampling: SamplingOptions
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    frames: int = 8  # of a video that are shown

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", self.model.with_own("inspect"))  # which auto then is
        if not 1 <= self.frames <= MOST_FRAMES:
            raise UsageError(f"--frames must be from 1 to {MOST_FRAMES}, not {self.frames}")


class KeptFrames:
    """A clip's frames on their way to the engine, of which some are kept.

    Some are spread evenly over those so far; of spans, the one nearest to the middle of each.
    """

    def __init__(self, clip: Clip, most: int, bounds: Sequence[float] = ()) -> None:
        """Args: bounds: seconds, between which spans lie."""
        self.of_spans: dict[float, Frame] = {}  # by their starts
        self._bounds = bounds
        self._clip, self._most = clip, most
        self._every, self._count = 1, 0
        self._kept: list[Frame] = []

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in self._clip:
            for pixels, time in zip(chunk.pixels, chunk.times, strict=True):
                if self._count % self._every == 0:
                    self._kept.append((float(time), pixels.copy()))
                self._count += 1
                self._see(float(time), pixels)
                if len(self._kept) == 2 * self._most:
                    self._kept, self._every = self._kept[::2], 2 * self._every
            yield chunk

    @property
    def frames(self) -> list[Frame]:
        """Those that are kept, at most as many as were asked for."""
        count = min(self._most, len(self._kept))
        return [self._kept[number * len(self._kept) // count] for number in range(count)]

    def _see(self, time: float, pixels: NDArray[np.uint8]) -> None:
        """Keeps a frame that is nearer to the middle of its span than the one that is kept."""
        if not self._bounds:
            return
        number = min(max(bisect_right(self._bounds, time) - 1, 0), len(self._bounds) - 2)
        start, end = self._bounds[number : number + 2]
        held = self.of_spans.get(start)
        if held is None or abs(time - (start + end) / 2) < abs(held[0] - (start + end) / 2):
            self.of_spans[start] = time, pixels.copy()

    def ready(self) -> bool:
        """As the clip says."""
        return self._clip.ready()

    def close(self) -> None:
        """Closes the clip."""
        self._clip.close()


def inspect_medium(path: str, question: str | None, options: InspectOptions) -> Inspected:
    """Looks at one medium.

    Raises:
        UsageError: the file is no medium, or the question cannot be asked; the text says why.
        LlavaMiniError: the model cannot be loaded, or memory ran out.
    """
    fault = fault_of(Job(path, path, ()))
    if fault is not None:
        raise UsageError(f"'{path}': {fault.message}")
    _opened(path, options.sampling, 1).close()  # a first look, before a model is loaded
    return if_memory_lasts(path, _inspect, path, question, options)


def if_memory_lasts(
    path: str, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """The function's result. Raises `LlavaMiniError` where memory ran out, and what the function raises."""
    from llava_mini_cli.engine.memory import unless_out_of_memory

    found = unless_out_of_memory(function, *args, **kwargs)
    if found is None:
        raise LlavaMiniError(
            f"'{path}': memory ran out; a smaller model, fewer --frames or a shorter question need less"
        )
    return found


def _inspect(path: str, question: str | None, options: InspectOptions) -> Inspected:
    """The same, of a medium that is there."""
    engine = cast("Engine", load_engine(options.model))
    from llava_mini_cli.engine.attention_maps import attention_maps

    clip = _opened(path, options.sampling, engine.frame_size)
    with clip:
        has_spans = question is not None and clip.info.kind == "video"
        bounds = pieces_of(clip.info, EVIDENCE, options.sampling).bounds(0.0, inf) if has_spans else ()
        source = KeptFrames(clip, options.frames, bounds)
        answer = None if question is None else _answer(engine, source, clip.info, question, options)
        if question is None:
            _read(source, path)
    info, frames = clip.info, source.frames
    try:
        pixels = [pixels for _, pixels in frames]
        maps = attention_maps(engine, info.kind, pixels, (info.width, info.height), question)
    except PromptError as error:
        raise UsageError(str(error)) from error
    return _inspected(path, question, info, source, maps, answer, tuple(clip.warnings))


def _opened(path: str, sampling: SamplingOptions, frame_size: int) -> Clip:
    try:
        return open_clip(path, sampling, frame_size=frame_size)
    except MediaError as error:
        raise UsageError(f"'{path}': {error}") from error


def _read(source: KeptFrames, path: str) -> None:
    """Takes all frames, of which nothing is asked."""
    try:
        for _ in source:
            pass
    except MediaError as error:
        raise UsageError(f"'{path}': {error}") from error


def _answer(engine: "Engine", source: KeptFrames, info: ClipInfo, question: str, options: InspectOptions) -> Answer:
    """The answer and what carried it."""
    asked = Request(info.path, info.kind, source, (question,), options.generation, frame_count=info.frame_count)
    (outcome,) = engine.run([with_evidence(asked, info, EVIDENCE, options.sampling)])
    if not isinstance(outcome, Answer):
        raise UsageError(f"'{info.path}': {outcome.message}")
    return outcome


def _inspected(
    path: str,
    question: str | None,
    info: ClipInfo,
    source: KeptFrames,
    maps: "AttentionMaps",
    answer: Answer | None,
    warnings: tuple[str, ...],
) -> Inspected:
    evidence, frames = answer.evidence if answer else None, source.frames
    arrays: dict[str, NDArray[Any]] = {
        "times": np.array([time for time, _ in frames]),
        "words": np.array(maps.words, dtype=np.str_),
        "fusion": maps.fusion,
        "centres": maps.centres,
        **({} if maps.queries is None else {"queries": maps.queries}),
        **(_evidence_arrays(evidence) if evidence else {}),
    }
    return Inspected(
        path,
        "" if info.kind == "image" else f"{len(frames)} frames of {info.duration_s or 0:g} s",
        question,
        answer and answer.text,
        None if evidence is None else (exp(min(evidence.seen, 0.0)), exp(min(evidence.blind, 0.0))),
        tuple(_sections(info, source, maps, evidence)),
        arrays,
        warnings,
    )


def _evidence_arrays(evidence: Evidence) -> Mapping[str, NDArray[Any]]:
    """The weight of each part, and where it lies: `[n]`, and `[n, 2]` seconds or `[n, 4]` pixels."""
    weights = np.array([evidence.seen - part.score for part in evidence.parts])
    if any(part.box for part in evidence.parts):
        return {"evidence": weights, "boxes": np.array([part.box for part in evidence.parts])}
    return {"evidence": weights, "spans": np.array([(part.start, part.end) for part in evidence.parts])}


def _sections(
    info: ClipInfo, source: KeptFrames, maps: "AttentionMaps", evidence: Evidence | None
) -> Iterator[Section]:
    """The pictures under their headings."""
    frames = source.frames
    size, is_video = (info.width, info.height), info.kind == "video"
    shown = [resized(pixels, shown_size(size)) for _, pixels in frames]
    names = [_named(info, number, time) for number, (time, _) in enumerate(frames)]
    plain = (Shown(f"{file}.png", as_png(one), words) for one, (file, words) in zip(shown, names, strict=True))
    yield Section("Frames" if is_video else "Picture", "", tuple(plain))
    if evidence is not None and evidence.parts:
        yield Section("What carried the answer", CARRIED, (_carried(info, source, shown[0], evidence),))
    count = maps.raster**2

    def over(number: int, file: str, words: str, weights: NDArray[np.float32], most: float) -> Shown:
        """Weights over one of the frames."""
        heat = heat_map(shown[number], weights, maps.centres[:count], size, most)
        return Shown(f"{names[number][0]}-{file}.png", as_png(heat), ", ".join(filter(None, (names[number][1], words))))

    if maps.queries is not None:
        several = maps.queries.shape[1] > 1
        made = (
            over(
                number, f"query-{query + 1:02d}", f"query {query + 1}" if several else "", weights, float(weights.max())
            )
            for number, queries in enumerate(maps.queries)
            for query, weights in enumerate(queries)
        )
        yield Section("What the compressor's queries attend to", QUERIES, tuple(made))
    if maps.words and maps.fusion.shape[1]:
        mean = maps.fusion.mean(1)[:, :, :count]  # [F, words, N]
        words = [
            tuple(
                over(
                    number,
                    f"word-{place + 1:02d}",
                    "" if is_video else f"“{word}”",
                    mean[number, place],
                    float(mean[:, place].max()),
                )
                for number in range(len(frames))
            )
            for place, word in enumerate(maps.words)
        ]
        heading = "What each word of the question attends to"
        yield Section(heading, WORDS, () if is_video else tuple(chain(*words)))
        if is_video:
            yield from (Section(f"“{word}”", "", made, True) for word, made in zip(maps.words, words, strict=True))


def _named(info: ClipInfo, number: int, time: float) -> tuple[str, str]:
    """The name of a frame in those of files, and in words."""
    return ("picture", "") if info.kind == "image" else (f"frame-{number + 1:02d}", f"{time:.1f} s")


def _carried(info: ClipInfo, source: KeptFrames, shown: NDArray[np.uint8], evidence: Evidence) -> Shown:
    """A strip of a frame of each span of a video, with its weight; the blocks of a picture in their colours."""
    weights = [evidence.seen - part.score for part in evidence.parts]
    if info.kind == "image":
        return Shown("evidence.png", as_png(_blocks(shown, (info.width, info.height), evidence.parts, weights)), "")
    spans = [(part.start or 0.0, part.end or 0.0) for part in evidence.parts]
    frames = [resized(source.of_spans[start][1], shown_size((info.width, info.height))) for start, _ in spans]
    captions = [f"{start:.1f}-{end:.1f} s\n{weight:+.2g}" for (start, end), weight in zip(spans, weights, strict=True)]
    return Shown("evidence.png", as_png(strip(frames, weights, captions)), "", is_wide=True)


def _blocks(
    picture: NDArray[np.uint8], size: tuple[int, int], parts: Sequence[LeftOut], weights: Sequence[float]
) -> NDArray[np.uint8]:
    """A picture under the colours of its blocks; those that spoke against the answer are dark."""
    made = picture.astype(float)
    most = max(*weights, NATS)
    across, down = picture.shape[1] / size[0], picture.shape[0] / size[1]
    for part, weight in zip(parts, weights, strict=True):
        left, top, right, bottom = part.box or (0, 0, 0, 0)
        place = slice(round(top * down), round(bottom * down)), slice(round(left * across), round(right * across))
        made[place] = 0.45 * made[place] + 0.55 * colours(np.array(max(weight, 0.0) / most))
    return made.astype(np.uint8)
