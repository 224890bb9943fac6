"""Rows as runs write them, with media and pictures of the demo world, for the tests of the page and its screenshots."""

import io
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llava_mini_cli.demo.__main__ import FPS, frames
from llava_mini_cli.demo.image_questions import caption
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import generator, random_scene
from llava_mini_cli.demo.videos import random_video

PICTURES, VIDEOS, SPANS = 400, 10, 20  # 400 pictures with two questions, and ten videos with twenty spans each
FAILURES = 50  # of the rows about pictures
COLUMNS = (
    "id", "file_name", "media", "segment", "start", "end", "prompt_name", "prompt", "text", "status", "error",
    "error_type", "error_stage", "warning", "finish_reason", "frame_count", "duration_s", "width", "height",
    "p_yes", "choice", "choice_probs", "json", "model", "thumbnail",
)  # fmt: skip
EDGE = 256  # pixels of a kept picture
SCENES = 40  # of which pictures are drawn


def jpeg(pixels: "np.ndarray[Any, np.dtype[np.uint8]]", size: tuple[int, int] = (EDGE, EDGE)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_video(path: Path, seed: int) -> None:
    """A video of the demo world, some seconds long."""
    video = random_video(generator("heldout", seed), "heldout", "move")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", "336x336", "-r", str(FPS), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    raw = b"".join(frames(video, seed))
    subprocess.run([*command, "-preset", "ultrafast", str(path)], input=raw, check=True)


def row(**given: Any) -> dict[str, Any]:
    """A row as `ask` writes it; what is not given is null."""
    assert not set(given) - set(COLUMNS), set(given) - set(COLUMNS)
    return dict.fromkeys(COLUMNS) | {"status": "ok", "model": "demo"} | given


def _drawn(number: int) -> tuple[str, bytes, float]:
    """What a scene shows, its picture, and how dark it is."""
    scene = random_scene(generator("heldout", number), "heldout")
    look = random_look(np.random.default_rng(number), scene.background)
    pixels = render(scene, look, EDGE, np.random.default_rng(number))
    return caption(scene), jpeg(pixels, (EDGE, EDGE * 3 // 4)), float(1 - pixels.mean() / 255)


def picture_rows(folder: Path, count: int = PICTURES, failures: int = FAILURES) -> list[dict[str, Any]]:
    """Two rows a picture: its light (choices), and what is shown. Every so many fails. The files are not there."""
    rows: list[dict[str, Any]] = []
    every = max(1, 2 * count // failures) if failures else 0
    drawn = [_drawn(number) for number in range(min(count, SCENES))]
    for number in range(count):
        said, kept, dark = drawn[number % SCENES]
        name = f"set {number % 8}/picture {number:04}.jpg"
        shared = {"id": f"{folder}/{name}", "file_name": name, "media": "image", "width": 4032, "height": 3024}
        probabilities = [{"choice": "day", "probability": 1 - dark}, {"choice": "night", "probability": dark}]
        rows.append(row(
            **shared, prompt_name="light", prompt="Which light is it?", text="night" if dark > 0.5 else "day",
            choice="night" if dark > 0.5 else "day", choice_probs=probabilities, thumbnail=kept,
        ))  # fmt: skip
        rows.append(row(**shared, prompt_name="shown", prompt="What is shown?", text=said, thumbnail=kept))
    kinds = [
        ("corrupt", "decode", "broken data stream when reading image file"),
        ("not_found", "input", "no such file"),
    ]
    for number in range(failures):
        kind, stage, error = kinds[number % 2]
        at = rows[number * every]
        rows[number * every] = row(
            id=at["id"], file_name=at["file_name"], prompt_name=at["prompt_name"], prompt=at["prompt"], status="error",
            error=error, error_type=kind, error_stage=stage,
        )  # fmt: skip
    return rows


def video_rows(folder: Path, videos: int = VIDEOS, spans: int = SPANS) -> list[dict[str, Any]]:
    """Rows about the spans of videos that are there, each with how likely yes is."""
    rows: list[dict[str, Any]] = []
    for number in range(videos):
        path = folder / f"camera {number}.mp4"
        seed = number % 2
        if seed == number:
            write_video(path, seed)
        else:
            path.write_bytes((folder / f"camera {seed}.mp4").read_bytes())
        duration = float(random_video(generator("heldout", seed), "heldout", "move").seconds)
        still = next(frames(random_video(generator("heldout", seed), "heldout", "move"), seed))
        kept = jpeg(np.frombuffer(still, np.uint8).reshape(336, 336, 3))
        for span in range(spans):
            p = round(0.5 + 0.48 * float(np.sin(number + span / 3)), 3)
            rows.append(row(
                id=str(path), file_name=path.name, media="video", segment=span + 1, start=duration * span / spans,
                end=duration * (span + 1) / spans, prompt_name="moves", prompt="Does anything move?",
                text="yes" if p > 0.5 else "no", p_yes=p, duration_s=duration, width=336, height=336, thumbnail=kept,
            ))  # fmt: skip
    return rows


CHOICES = pa.list_(pa.struct([("choice", pa.string()), ("probability", pa.float64())]))
KINDS: dict[str, pa.DataType] = {
    **dict.fromkeys(("segment", "frame_count", "width", "height"), pa.int64()),
    **dict.fromkeys(("start", "end", "duration_s", "p_yes"), pa.float64()),
    "choice_probs": CHOICES,
    "thumbnail": pa.binary(),
}
SCHEMA = pa.schema([(name, KINDS.get(name, pa.string())) for name in COLUMNS])


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), path, row_group_size=256)
    return path
