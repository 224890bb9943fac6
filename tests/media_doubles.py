"""Doubles for tests of media: a video as the scan would find it, and decoders that decode nothing."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from llava_mini_cli.media.child import Command
from llava_mini_cli.media.decoders import Decoder, DecoderError, Plan
from llava_mini_cli.media.probe import Header, VideoStream
from llava_mini_cli.media.scan import VideoScan
from llava_mini_cli.media.timeline import Timeline

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
STREAM = VideoStream(1, "h264", 64, 48)


def found(seconds: float = 8, promised: float | None = None, **changes: Any) -> VideoScan:
    """Ten frames a second in an MP4 that nothing is wrong with; `changes`: of its stream, header or scan."""
    pts = np.arange(round(seconds * 10))
    header = Header(MP4, promised, (STREAM,), 1, 1, ())
    own = {name: changes.pop(name) for name in ("container", "complaints", "stream_count") if name in changes}
    scanned = VideoScan(replace(header, **own), STREAM, Timeline(pts, Fraction(1, 10), 1), pts[::5], ())
    oddities = changes.pop("oddities", ())
    return replace(scanned, oddities=oddities, stream=replace(STREAM, **changes))


class Decoders:
    """Two decoders that note what they are asked; each gives so many frames, and fails if that was not all.

    Their children run `script`.
    """

    def __init__(self, script: str = "", **given: int) -> None:
        self.script = script
        self.given = given
        self.asked: list[tuple[str, Plan]] = []
        self.mapping = {name: self._decoder(name) for name in ("decord", "ffmpeg")}

    def _decoder(self, name: str) -> Any:
        def parts(plan: Plan) -> list[Plan]:
            self.asked.append((name, plan))
            return [plan]

        def read(_: object, plan: Plan) -> Iterator[tuple[int, np.ndarray]]:
            for pts in plan.pts[: self.given.get(name, 0)]:
                yield pts, np.zeros((plan.frame_size, plan.frame_size, 3), np.uint8)
            if self.given.get(name, 0) < len(plan.pts):
                raise DecoderError(f"no frame came from {name}")

        return Decoder(parts, lambda _: Command(["/bin/sh", "-c", self.script]), read)
