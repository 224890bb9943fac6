"""What a second question about a video costs: from an archive with features, and from the file.

    python benchmarks/archive.py [--frames 60] [--threads 2] [--rounds 3]

The engine benchmark's model (random weights, the 8B model's proportions at CLIP width 256 and LLM width 512), one H.264
video of `frames` seconds, one question of 20 tokens, 16 new tokens. `file`: decoding, CLIP and everything behind it.
`archive`: the same answer from features that were stored in float16. Both in turn, medians. Without features an archive
has to decode again, and costs what the file costs; that is checked, not assumed. One JSON line.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from engine import VIDEO_NEW_TOKENS, VIDEO_PROMPT, alternate, answers
from random_models import build_engine, build_ours, seed

from llava_mini_cli.bench.shapes import SMALL_CLIP, SMALL_LLM
from llava_mini_cli.config import GenerationOptions, SamplingOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import EncodedFrames, FrameSource, Request
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.part import FrameRows
from llava_mini_cli.formats.archive.reader import Archive, open_archive
from llava_mini_cli.formats.archive.writer import ArchiveWriter, open_for_writing
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.archive_media import StoredClip

OPTIONS = GenerationOptions(max_new_tokens=VIDEO_NEW_TOKENS)
FPS = 25


class Sink:
    """Puts one medium into an archive, as `index` does."""

    features = "float16"

    def __init__(self, writer: ArchiveWriter) -> None:
        self.writer = writer
        self.number = writer.begin()
        self.count = 0

    def add(self, frames: EncodedFrames) -> None:
        count = len(frames.times)
        numbers = np.arange(self.count, self.count + count, dtype=np.int32)
        ones = np.ones(count, np.int32)
        rows = FrameRows(numbers, frames.times, frames.times, ones, frames.tokens, None, frames.features)
        self.writer.add_frames(self.number, rows)
        self.count += count

    def end(self) -> None:
        row = {"path": "/v.mp4", "file_name": "v.mp4", "media": "video", "status": "ok", "width": 640, "height": 360}
        self.writer.finish(self.number, {**row, "frames": self.count, "frames_sampled": self.count, "fps_sampled": 1.0})

    def fail(self, stage: str, error_type: str, message: str) -> None:
        raise RuntimeError(message)


def make_video(path: Path, seconds: int) -> None:
    source = f"testsrc2=duration={seconds}:size=640x360:rate={FPS}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "lavfi", "-i", source]
    subprocess.run([*command, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)], check=True)


def ask(engine: Engine, frames: FrameSource, question: str) -> list[int]:
    (answer,) = answers(engine, [Request("v", "video", frames, (question,), OPTIONS)])
    return list(answer.token_ids)


def index(engine: Engine, video: Path, folder: Path) -> None:
    shapes = engine.frame_shapes
    header = ArchiveHeader("random", None, "0", Shapes(shapes.token, None, shapes.features), "float16", {"fps": 1.0})
    with open_for_writing(folder) as writer, open_clip(video, SamplingOptions()) as clip:
        writer.start(header)
        sink = Sink(writer)
        list(engine.run([Request("v", "video", clip, (), OPTIONS, (), sink)]))


def measure(frames: int, rounds: int, folder: Path) -> dict[str, Any]:
    seed()
    engine = build_engine(build_ours(SMALL_LLM, SMALL_CLIP), VIDEO_PROMPT)
    video, place = folder / "v.mp4", folder / "archive"
    make_video(video, frames)
    began = time.perf_counter()
    index(engine, video, place)
    indexing = time.perf_counter() - began
    tokens: dict[str, list[int]] = {}

    def from_file() -> None:
        with open_clip(video, SamplingOptions()) as clip:
            tokens["file"] = ask(engine, clip, "1")

    def from_archive(archive: Archive) -> None:
        tokens["archive"] = ask(engine, StoredClip(archive, archive.medium(0), SamplingOptions(), []), "1")

    with open_archive(place) as archive:
        seconds = alternate(rounds, file=from_file, archive=lambda: from_archive(archive))
    stored = sum(path.stat().st_size for path in (place / "features").iterdir())
    return {
        "figure": "a second question about a video",
        "frames": frames,
        "rounds": rounds,
        "index_s": round(indexing, 2),
        "file_s": round(seconds["file"], 2),
        "archive_s": round(seconds["archive"], 2),
        "archive_over_file": round(seconds["archive"] / seconds["file"], 3),
        "feature_bytes_a_frame": stored // frames,
        "same_tokens": tokens["file"] == tokens["archive"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments.frames, arguments.rounds, Path(folder))))


if __name__ == "__main__":
    main()
