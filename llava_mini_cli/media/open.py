"""Opens a file as a clip: looks at its content, settles which frames are wanted and which decoder gives them.

Knows nothing of models. Whether a file is a picture or a video is told by its bytes, not by its name.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from llava_mini_cli.config import DecoderName, SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import camera_raw
from llava_mini_cli.media.bounds import most_bytes, usual_bytes
from llava_mini_cli.media.clip import Clip, ClipInfo
from llava_mini_cli.media.decoders import DECODERS, Decoder, Name, Plan, check_decord, decord_installed, is_read_through
from llava_mini_cli.media.ffmpeg_program import ffmpeg_binary
from llava_mini_cli.media.picture import AnimationClip, Picture, PictureClip, Still, open_picture_file
from llava_mini_cli.media.probe import display_size, length, stored_size
from llava_mini_cli.media.scan import VideoScan, clean, header_of, scan
from llava_mini_cli.media.timeline import Selection, Timeline, select_frames
from llava_mini_cli.media.tone import doubt_of_colours, doubt_of_picture, is_hdr, tone_mapping
from llava_mini_cli.media.video import Decoding, VideoClip

_IMAGES = (
    "apng avif avifs bmp gif heic heics heif heifs hif ico j2c j2k jfif jp2 jpe jpeg jpf jpg jpx jxl mpo pbm pgm png "
    "pnm ppm tif tiff webp"
)
_VIDEOS = (
    "264 265 3g2 3gp 3gpp asf avi divx dv f4v flv h264 h265 hevc insv ivf lrv m1v m2t m2ts m2v m4v mkv mov mp4 "
    "mpe mpeg mpg mts mxf nut ogv qt rm rmvb ts vob webm wmv y4m"
)
_PICTURE_SUFFIXES = frozenset(f".{name}" for name in _IMAGES.split())
_SUFFIXES = frozenset(f".{name}" for name in f"{_IMAGES} {_VIDEOS} {camera_raw.SUFFIXES}".split())

DECORD_SECONDS = 300.0  # beyond this length `auto` begins with ffmpeg: see docs/decoding.md
_INDEXED_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})
_DECORD_CODECS = frozenset({"h264", "hevc", "vp9"})

_PROCESS_BYTES = 40 << 20  # of the process that an animation keeps, without a frame
_CHUNKS_HELD = 4  # chunks of a video: one being filled, two waiting, one in use


class Opening(Protocol):
    """The side that waits for a medium to be opened, and decides when there is room for its frames."""

    still: Still = None  # how a still picture is wanted: in pieces, with a longest edge, or (None) as it is

    def guarded(self) -> None:
        """Says that from here on a child process with a deadline of its own does the work."""

    def reserve(self, size: int) -> None:
        """Waits until there is room for so many bytes, which are held until the clip is closed."""

    def keep(self, size: int) -> None:
        """Gives back what was reserved but for so many bytes."""


class Unwatched(Opening):
    """An opening that nobody waits for, with room for anything."""

    def __init__(self, still: Still = None) -> None:
        self.still = still


UNWATCHED = Unwatched()


def is_media_path(path: str | Path) -> bool:
    """True if a name ends as those of pictures and videos do. For folders; a file that is named is always tried."""
    return os.path.splitext(path)[1].lower() in _SUFFIXES  # noqa: PTH122 - a tenth of Path's time


def is_picture_path(path: str | Path) -> bool:
    """True if a name ends as those of pictures do; content may say otherwise."""
    return os.path.splitext(path)[1].lower() in _PICTURE_SUFFIXES  # noqa: PTH122


def check_decoders(wanted: DecoderName, media: Iterable[str]) -> None:
    """Makes sure that a decoder which was asked for works, and that there is an ffmpeg where media are videos by name.

    Raises:
        UsageError: decord was asked for, and is not installed or broken. LlavaMiniError: there is no ffmpeg.
    """
    if wanted == "decord":
        check_decord()
    if wanted != "auto" or any(is_media_path(name) and not is_picture_path(name) for name in media):
        ffmpeg_binary()  # which reads the header of every video


def probe(path: str | Path, timeout: float = 10.0) -> ClipInfo:
    """The facts that a file's header tells, without decoding or counting a frame. Raises `MediaError`."""
    path = Path(path)
    picture = open_picture_file(path, timeout)
    if picture is not None:
        with closing(picture):
            return _picture_info(picture)
    header = header_of(path, timeout)
    stream = header.stream()
    return ClipInfo(str(path), "video", *display_size(stream), length(header, stream), None, None, stream.codec)


def open_clip(
    path: str | Path,
    options: SamplingOptions,
    *,
    frame_size: int = 336,
    chunk_frames: int = 32,
    opening: Opening = UNWATCHED,
    decoders: Mapping[Name, Decoder] = DECODERS,
) -> Clip:
    """Opens a picture or a video.

    Args:
        opening: is told how opening goes on, and asked for room before anything is decoded.

    Returns:
        A clip whose chunks hold up to `chunk_frames` frames: `[n, frame_size, frame_size, 3]` for a video or an
        animation; for a picture `[1, height, width, 3]`, or what `opening.still` asks for. A video's decoder is
        running when this returns.

    Raises:
        MediaError: The file cannot be read at all, or holds no frame to look at. What is found later is raised by
            the clip's iterator.
    """
    path = Path(path)
    picture = open_picture_file(path, options.decode_timeout, opening.guarded)
    if picture is None:
        opening.guarded()  # where it is no regular file, so that nothing was opened yet
        return _open_video(path, options, frame_size, chunk_frames, opening, decoders)
    try:
        clip = _open_picture(picture, options, frame_size, chunk_frames, opening)
    except BaseException:
        picture.close()
        raise
    if (doubt := doubt_of_picture(path)) is not None:
        clip.warnings.append(doubt)
    return clip


def _open_picture(
    picture: Picture, options: SamplingOptions, frame_size: int, chunk_frames: int, opening: Opening
) -> Clip:
    picture.check_memory()
    if picture.is_moving:
        return _open_animation(picture, options, frame_size, chunk_frames, opening)
    with picture.waiting():
        opening.reserve(picture.decode_bytes + (3 * picture.pixels if opening.still is None else 0))
    pixels, size, warning = picture.still(options.allow_truncated, opening.still)
    opening.keep(pixels.nbytes)
    picture.close()
    return PictureClip(ClipInfo(str(picture.path), "image", *size, None, 1, None, picture.codec), pixels, warning)


def _picture_info(picture: Picture) -> ClipInfo:
    picture.check_memory()
    kind, count = ("video", None) if picture.is_moving else ("image", 1)
    return ClipInfo(str(picture.path), kind, *picture.size(), None, count, None, picture.codec)


def _open_animation(
    picture: Picture, options: SamplingOptions, frame_size: int, chunk_frames: int, opening: Opening
) -> Clip:
    with picture.waiting():
        opening.reserve(picture.decode_bytes + _PROCESS_BYTES)
    timeline, size, trouble = picture.times()
    sampled = _select(timeline, options)
    selection = _needed(sampled, options)
    info = _video_info(picture.path, size, timeline, sampled, options, picture.codec)
    info = replace(info, frame_count=len(selection))
    clip = AnimationClip(info, picture, selection, frame_size, chunk_frames)
    if trouble is not None:
        clip.warnings.append(trouble)
    return clip


def _open_video(
    path: Path,
    options: SamplingOptions,
    frame_size: int,
    chunk_frames: int,
    opening: Opening,
    decoders: Mapping[Name, Decoder],
) -> Clip:
    found = scan(path, options.decode_timeout)
    timeline = found.timeline
    sampled = _select(timeline, options)
    selection = _needed(sampled, options)
    distinct, where = np.unique(selection.pts, return_index=True)
    width, height = stored_size(found.stream)
    filters = tone_mapping(found.stream)
    seekable = found.header.container in _INDEXED_CONTAINERS and not found.oddities
    plan = Plan(
        path=path,
        stream=found.stream.index,
        width=width,
        height=height,
        frame_size=frame_size,
        time_base=timeline.time_base,
        pts=tuple(distinct.tolist()),
        indices=tuple(selection.indices[where].tolist()),
        total=len(timeline),
        timeline=timeline.pts,
        keys=found.keys if seekable else found.keys[:0],
        filters=filters,
        memory=most_bytes(width * height, deep=found.stream.is_deep, toned=bool(filters)),
        until=_first_behind(timeline, options.end),
    )
    order = _order(found, options)
    has_scores = options.scene_threshold is not None and order == ("ffmpeg",) and is_read_through(plan)
    decoding = Decoding(
        plan=plan,
        selection=selection,
        order=order,
        decoders=decoders,
        timeout=options.decode_timeout,
        chunk_frames=chunk_frames,
        suspicion=_suspicion(found),
        doubt=_doubt(found, options),
        scene_threshold=options.scene_threshold if has_scores else None,
    )
    info = _video_info(path, display_size(found.stream), timeline, sampled, options, found.stream.codec)
    info = replace(info, frame_count=len(selection))
    held = min(len(selection), _CHUNKS_HELD * chunk_frames) * frame_size**2 * 3
    opening.reserve(held + usual_bytes(width * height, toned=bool(filters)))
    return VideoClip(info, decoding)


def _select(timeline: Timeline, options: SamplingOptions) -> Selection:
    selection = select_frames(timeline, options)
    if selection is None:
        span = f"from {options.start or 0.0:g} s" + ("" if options.end is None else f" to {options.end:g} s")
        raise MediaError("empty", f"no frame {span}: the video lasts {float(timeline.duration):.1f} s")
    return selection


def _first_behind(timeline: Timeline, end: float | None) -> int | None:
    """Ticks of the first frame at `end` or behind it; None where there is none."""
    first = len(timeline) if end is None else int(np.searchsorted(timeline.seconds, end, side="left"))
    return None if first == len(timeline) else int(timeline.pts[first])


def _needed(selection: Selection, options: SamplingOptions) -> Selection:
    """The sampled frames that somebody will look at."""
    if options.needed is None:
        return selection
    start, end = options.needed
    kept = (selection.times >= start) & (selection.times < end)
    if not kept.any():
        raise MediaError("empty", f"no frame between {start:g} and {end:g} s")
    return Selection(selection.indices[kept], selection.pts[kept], selection.times[kept])


def _video_info(
    path: Path,
    size: tuple[int, int],
    timeline: Timeline,
    selection: Selection,
    options: SamplingOptions,
    codec: str,
) -> ClipInfo:
    duration = float(timeline.duration)
    span = min(duration, options.end or duration) - (options.start or 0.0)
    sampled = float(f"{len(selection) / span:.9g}") if span > 0 else None
    return ClipInfo(str(path), "video", *size, duration, len(selection), sampled, codec)


def _order(found: VideoScan, options: SamplingOptions) -> tuple[Name, ...]:
    """The decoders to try, in order: decord first where it is exact and the video is not long."""
    if options.decoder != "auto":
        return (options.decoder,)
    if options.scene_threshold is not None:
        return ("ffmpeg",)  # decord gives no frames but those that are asked for
    if not decord_installed() or _decord_doubt(found) or found.stream.rotation is not None or found.header.complaints:
        return ("ffmpeg",)  # decord turns frames as rotation metadata says, but knows no mirroring
    return ("decord", "ffmpeg") if found.timeline.duration <= DECORD_SECONDS else ("ffmpeg", "decord")


def _decord_doubt(found: VideoScan) -> str | None:
    """The reason why decord may give other frames than those asked for, None where there is none."""
    if found.header.container not in _INDEXED_CONTAINERS:
        return f"container {found.header.container}"
    if found.stream.codec not in _DECORD_CODECS:
        return f"codec {found.stream.codec}"
    if is_hdr(found.stream):
        return "high dynamic range, which it shows with pale colours"
    if found.stream.is_deep:
        return "more than 8 bits a channel"  # its older libraries convert 4:2:0 of 10 bits to RGB otherwise
    return found.oddities[0] if found.oddities else None


def _doubt(found: VideoScan, options: SamplingOptions) -> str | None:
    doubt = _decord_doubt(found) if options.decoder == "decord" else None
    wrong = doubt and f"decord may have given the wrong frames ({doubt}); --decoder auto avoids it"
    return "; ".join(filter(None, (wrong, doubt_of_colours(found.stream)))) or None


def _suspicion(found: VideoScan) -> str | None:
    """A warning that the packets hold less than the header promises, else None; a late stream lacks nothing."""
    promised, seen = found.header.duration_s, float(found.timeline.duration)
    end = max(found.end_s, seen + float(int(found.timeline.pts[0]) * found.timeline.time_base), seen)
    if found.failure is not None:
        return f"read {seen:.1f} s of it: {found.failure}"
    if promised is None or end > 0.98 * promised - 0.5:
        return None
    read, complaints = f"read {seen:.1f} of {seen + promised - end:.1f} s", found.header.complaints
    if complaints:
        return f"{read}: the file is cut or damaged ({clean(complaints[0])})"
    if found.header.stream_count == 1 and end < 0.9 * promised - 1.0:
        return read
    return None
