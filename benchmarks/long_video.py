"""Memory and speed over long videos, and how well decoding and computing overlap.

    python benchmarks/long_video.py memory [--frames 600 10800 36000]
    python benchmarks/long_video.py overlap [--minutes 10]

`memory` answers a question about videos of so many frames, each in a process of its own, with the tiny checkpoint:
peak resident memory beyond that of the first video, less what must grow (frame tokens, keys and values), and frames a
second in the first and the last quarter. `overlap` decodes a real 720p H.264 video while a stand-in for the engine
waits instead of computing, about as long as decoding takes. One JSON line a figure.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.media.open import open_clip

# Small enough that 36,000 frames take minutes; what grows with the video is the same.
SMALL: dict[str, Any] = {"max_position_embeddings": 65536, "prefusion_layer_num": 2, "video_frame_size": 56}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 8,
}


def make_video(path: Path, source: str, *options: str) -> None:
    """A synthetic video with the ffmpeg binary."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source]
    subprocess.run(
        [*command, "-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", *options, path], check=True
    )


def answer_one(video: str, checkpoint: str) -> None:
    """The child of `memory`: one question about one video, the figures on stdout."""
    from llava_mini_cli.engine.load import load_engine
    from llava_mini_cli.engine.request import Answer, Request

    engine = load_engine(ModelOptions(checkpoint, device="cpu"))
    options = SamplingOptions()
    marks = [(0, time.perf_counter())]
    with open_clip(video, options, frame_size=engine.frame_size) as clip:
        engine.add(Request("v", "video", clip, ("What happens?",), GenerationOptions(max_new_tokens=4)))
        answers: list[object] = []
        while not engine.is_idle:
            answers += engine.step()
            if engine.frames_encoded > marks[-1][0]:
                marks.append((engine.frames_encoded, time.perf_counter()))
    (answer,) = answers
    assert isinstance(answer, Answer), answer
    config = engine.model.config
    heads = config.num_key_value_heads or config.num_attention_heads
    per_frame = 4 * (config.hidden_size + 2 * config.num_hidden_layers * heads * (config.head_dim or 0))
    print(
        json.dumps(
            {
                "frames": answer.frame_count,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "tokens_and_cache_mb": answer.frame_count * per_frame / 2**20,
                "first_quarter_fps": speed(marks, 0.0, 0.25),
                "last_quarter_fps": speed(marks, 0.75, 1.0),
            }
        )
    )


def speed(marks: list[tuple[int, float]], start: float, stop: float) -> float:
    """Frames a second between two fractions of the frames."""
    total = marks[-1][0]
    part = [mark for mark in marks if start * total <= mark[0] <= stop * total]
    return (part[-1][0] - part[0][0]) / (part[-1][1] - part[0][1])


def memory(frames: list[int]) -> None:
    """Each length in a process of its own."""
    from tiny_checkpoints import write_tiny_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny_checkpoint(Path(folder) / "tiny", vision_config=VISION, **SMALL)
        first = None
        for count in frames:
            video = Path(folder) / f"{count}.mp4"
            make_video(video, f"testsrc2=size=128x128:rate=1:duration={count}")
            child = [sys.executable, __file__, "child", str(video), str(checkpoint)]
            figures = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
            must = figures["tokens_and_cache_mb"]
            first = first or figures["peak_mb"] - must
            figures["growth_beyond_tokens_and_cache"] = (figures["peak_mb"] - must) / first - 1
            report("memory", figures)


def overlap(minutes: float) -> None:
    """Decoding alone, waiting alone, and both."""
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        make_video(video, f"testsrc2=size=1280x720:rate=25:duration={60 * minutes}", "-g", "50")
        decode, count = consume(video, 0.0)
        wait = decode / count
        both, _ = consume(video, wait)
        report("overlap", {"minutes": minutes, "decode_s": decode, "wait_s": wait * count, "both_s": both,
                           "both_over_larger": both / max(decode, wait * count)})  # fmt: skip


def consume(video: Path, wait: float) -> tuple[float, int]:
    """Seconds and frames of one pass over a clip, waiting `wait` seconds for each frame."""
    started, count = time.perf_counter(), 0
    with open_clip(video, SamplingOptions()) as clip:
        for chunk in clip:
            count += len(chunk.times)
            time.sleep(wait * len(chunk.times))
    return time.perf_counter() - started, count


def report(figure: str, fields: dict[str, float]) -> None:
    rounded = {key: round(value, 3) for key, value in fields.items()}
    print(json.dumps({"figure": figure, **rounded}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("memory").add_argument("--frames", type=int, nargs="+", default=[600, 10800, 36000])
    commands.add_parser("overlap").add_argument("--minutes", type=float, default=10)
    child = commands.add_parser("child")
    child.add_argument("video")
    child.add_argument("checkpoint")
    arguments = parser.parse_args()
    if arguments.command == "child":
        answer_one(arguments.video, arguments.checkpoint)
    elif arguments.command == "memory":
        memory(arguments.frames)
    else:
        overlap(arguments.minutes)


if __name__ == "__main__":
    main()
