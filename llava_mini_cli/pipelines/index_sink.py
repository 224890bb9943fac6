"""One medium's frames on their way into the archive: a `FrameSink` of the engine.

Near-identical frames are left out here, when that was asked for. Knows nothing of other media.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.engine.request import Answer, EncodedFrames
from llava_mini_cli.formats.archive.layout import storable
from llava_mini_cli.formats.archive.part import FrameRows
from llava_mini_cli.formats.archive.writer import ArchiveWriter
from llava_mini_cli.formats.job import Fault, ItemIdentity, Job
from llava_mini_cli.formats.outputs.row_keys import file_identity
from llava_mini_cli.formats.row import one_line, printable
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.pipelines.index_options import IndexOptions


def identity(job: Job) -> ItemIdentity:
    """Path, size and time of change: they tell a medium of the archive from others and from its own earlier states."""
    path, size, mtime = storable(job.item or file_identity(job.path))
    return printable(path), size, mtime


def medium_row(job: Job, fault: Fault | None) -> dict[str, Any]:
    """The columns of a medium's row that are known though it was never opened."""
    path, size, mtime = identity(job)
    return {
        "path": path,
        "file_name": printable(job.file_name),
        "size": size,
        "mtime": mtime,
        "digest": job.content,
        "status": "error" if fault else "ok",
        "error": one_line(fault.message) if fault else None,
        "error_type": fault.kind if fault else None,
        "error_stage": fault.stage if fault else None,
    }


class ArchivedMedium:
    """One medium on its way into an archive."""

    def __init__(self, archive: ArchiveWriter) -> None:
        self._archive = archive
        self._number = archive.begin()

    def add_frames(self, rows: FrameRows) -> None:
        """Some more frames of it."""
        self._archive.add_frames(self._number, rows)

    def finish(self, row: Mapping[str, Any], captions: Sequence[Mapping[str, Any]]) -> None:
        """It is complete, or failed."""
        header = self._archive.header
        assert header is not None
        of_model = {
            "model": header.model,
            "model_revision": header.model_revision,
            "settings": json.dumps(dict(header.settings)),
        }
        self._archive.finish(self._number, {**row, **of_model}, captions)

    def forget(self) -> None:
        """It is not there after all, and may come again."""
        self._archive.forget(self._number)


class Indexed(NamedTuple):
    """What there is to say of a medium whose frames are all there, or that failed."""

    row: Mapping[str, Any]
    captions: Sequence[Mapping[str, Any]]
    warnings: Sequence[str]
    fault: Fault | None


class MediumSink:
    """Collects one medium. `ended` or `fault` is set when its last frame was encoded, or it failed."""

    def __init__(self, add_frames: Callable[[FrameRows], None], job: Job, clip: Clip, options: IndexOptions) -> None:
        """`add_frames`: takes the frames that are kept, a few at a time."""
        self.ended = False
        self.fault: Fault | None = None
        self.warnings: list[str] = []
        self._add_frames = add_frames
        self._job = job
        self._clip = clip
        self._options = options
        self._captions: list[dict[str, Any]] = []
        self._sampled = 0  # frames so far
        self._kept = 0
        self._last: FrameRows | None = None  # with --dedupe, the frame that is kept and not yet written

    @property
    def features(self) -> Literal["float16", "float32"] | None:
        """The form in which features are wanted from the engine; int8 is rounded from float32, once."""
        kind = self._options.features
        return "float32" if kind == "int8" else kind

    def add(self, frames: EncodedFrames) -> None:
        """Some more frames of the medium."""
        rows = self._rows(frames)
        self._sampled += len(rows.time)
        if self._options.dedupe is None:
            self._write(rows)
            return
        for index in range(len(rows.time)):
            self._compare(_one(rows, index), self._options.dedupe)

    def end(self) -> None:
        """There are no more frames."""
        if self._last is not None:
            self._write(self._last)
            self._last = None
        self.ended = True

    def fail(self, stage: str, error_type: str, message: str) -> None:
        """The medium cannot be read to its end."""
        self.fault = Fault(stage, error_type, message)

    def caption(self, answer: Answer) -> None:
        """The caption of one window."""
        every = self._options.caption_every
        duration = self._clip.info.duration_s
        assert every is not None
        start = answer.window_index * every
        self._captions.append(
            {
                "start": None if duration is None else start,
                "end": None if duration is None else min(start + every, duration),
                "prompt": self._options.caption_prompt,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "frame_count": answer.frame_count,
            }
        )

    @property
    def is_over(self) -> bool:
        """True once the last frame was encoded, or the medium failed."""
        return self.ended or self.fault is not None

    def warn(self, text: str) -> None:
        """Something odd about a medium that is indexed all the same."""
        self.warnings.append(one_line(text))

    def finish(self) -> Indexed:
        """What there is to say of the medium as a whole."""
        self.warnings = [*map(one_line, self._clip.warnings), *self.warnings]
        captions = sorted(self._captions, key=lambda caption: caption["start"] or 0.0)
        return Indexed(self._medium_row(), [] if self.fault else captions, self.warnings, self.fault)

    def _medium_row(self) -> dict[str, Any]:
        info, fault = self._clip.info, self.fault
        return {
            **medium_row(self._job, fault),
            "media": info.kind,
            "duration_s": info.duration_s,
            "width": info.width,
            "height": info.height,
            "frames": 0 if fault else self._kept,
            "frames_sampled": 0 if fault else self._sampled,
            "fps_sampled": info.fps_sampled,
            "warning": "; ".join(self.warnings) or None,
        }

    def _rows(self, frames: EncodedFrames) -> FrameRows:
        count = len(frames.times)
        return FrameRows(
            frame=np.arange(self._sampled, self._sampled + count, dtype=np.int32),
            time=frames.times,
            last_time=frames.times,
            stands_for=np.ones(count, np.int32),
            tokens=frames.tokens,
            clip=None if frames.embeddings is None else frames.embeddings.astype(np.float16),
            features=frames.features,
        )

    def _compare(self, row: FrameRows, threshold: float) -> None:
        """Lets the frame that was kept last stand for this one too, or takes this one."""
        last = self._last
        if last is not None and _distance(last.clip, row.clip) <= threshold:
            self._last = replace(last, last_time=row.time, stands_for=last.stands_for + 1)
            return
        if last is not None:
            self._write(last)
        self._last = row

    def _write(self, rows: FrameRows) -> None:
        self._kept += len(rows.time)
        self._add_frames(rows)


def _one(rows: FrameRows, index: int) -> FrameRows:
    """One of several frames, in memory of its own."""
    columns: list[Any] = list(vars(rows).values())
    part: list[Any] = [column if column is None else column[index : index + 1].copy() for column in columns]
    return FrameRows(*part)


def _distance(one: NDArray[np.float16] | None, other: NDArray[np.float16] | None) -> float:
    """1 - cosine of two embeddings `[1, shared]` of length 1."""
    assert one is not None
    assert other is not None
    return 1.0 - float(one[0].astype(np.float32) @ other[0].astype(np.float32))
