"""Exact-match accuracy of the demo model on held-out scenes, by kind, with 95 % intervals (`make demo-accuracy`).

    python benchmarks/demo_accuracy.py                         the table of the model card
    python benchmarks/demo_accuracy.py --count 50 --kinds colour,direction
    python benchmarks/demo_accuracy.py --card                  with 10 minutes and 1 hour, into the model's README.md
    python benchmarks/demo_accuracy.py --paths                 the same questions through files and single calls

One question a scene, greedy answers, exact match after stripping. Held-out wording, layouts and canvas sizes are
never trained on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.questions import IMAGE_KINDS
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.train.score import ALL_KINDS, BRIEF_SECONDS, Item, Score, answers, items, score

LONG_KINDS = tuple(kind for kind, seconds in BRIEF_SECONDS.items() if seconds > 200)
FEW = 20  # questions of such a kind: each takes a minute or so
FPS = 8  # frames a second of the videos that are written as files


def frames_of_file(path: Path) -> np.ndarray:
    """Frames as the commands decode them, at 1 fps."""
    with open_clip(path, SamplingOptions()) as clip:
        return np.concatenate([chunk.pixels for chunk in clip])


def through_image(suffix: str) -> Callable[[Item, Path], Item]:
    """Writes an item's picture to a file of that sort and reads it back."""

    def road(item: Item, folder: Path) -> Item:
        path = folder / f"item{suffix}"
        Image.fromarray(item.frames[0]).save(path)
        return Item(item.kind, frames_of_file(path), item.question, is_video=False)

    return road


def as_one_frame_video(item: Item, folder: Path) -> Item:
    """An image asked about as a video of one frame."""
    return Item(item.kind, item.frames, item.question, is_video=True)


def through_h264(item: Item, folder: Path) -> Item:
    """Writes an item's frames as an H.264 video, one second each, and decodes it at 1 fps."""
    path = folder / "item.mp4"
    edge = item.frames.shape[1]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{edge}x{edge}", "-r", str(FPS), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=np.repeat(item.frames, FPS, axis=0).tobytes(), check=True)
    return Item(item.kind, frames_of_file(path), item.question, is_video=True)


def straight(item: Item, folder: Path) -> Item:
    return item


def kind_scores(
    model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, kinds: list[str], count: int, split: str
) -> list[Score]:
    """The score of every kind, printed as it comes."""
    found: list[Score] = []
    for kind in kinds:
        began = time.monotonic()
        batch, number = (1, min(count, FEW)) if kind in LONG_KINDS else (16, count)
        found.append(score(model, processor, kind, number, split, batch))  # type: ignore[arg-type]
        print(f"{found[-1].line()}   {time.monotonic() - began:.0f} s", flush=True)
    return found


def path_scores(model: LlavaMiniForConditionalGeneration, processor: LlavaMiniProcessor, count: int) -> None:
    """The same questions through every road that a medium can take to the model."""
    roads = {
        "image": {
            "batched": (straight, 16),
            "single": (straight, 1),
            "PNG file": (through_image(".png"), 16),
            "JPEG file": (through_image(".jpg"), 16),
            "one-frame video": (as_one_frame_video, 16),
        },
        "video": {"batched": (straight, 16), "single": (straight, 1), "H.264 file": (through_h264, 16)},
    }
    video_kinds = ("direction", "order", "event_count", "appears", "vanishes", "moving", "video_yesno")
    for medium, ways in roads.items():
        kinds = IMAGE_KINDS if medium == "image" else video_kinds
        share = max(1, count // len(kinds))
        asked = [item for kind in kinds for item in items(kind, share)]
        for name, (road, batch) in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                taken = [road(item, Path(folder)) for item in asked]
            said = [a for i in range(0, len(taken), batch) for a in answers(model, processor, taken[i : i + batch])]
            right = sum(a == item.question.answer for a, item in zip(said, asked, strict=True))
            print(f"{medium}: {Score(name, right, len(asked)).line()}", flush=True)


def total(name: str, scores: list[Score]) -> Score:
    return Score(name, sum(s.right for s in scores), sum(s.asked for s in scores))


TARGETS = {  # percent, what the project set itself
    "caption": 85.0,
    "video_caption": 0.0,
    "yesno": 95.0,
    "video_yesno": 95.0,
    "all images": 95.0,
    "all videos": 90.0,
    **dict.fromkeys(LONG_KINDS, 0.0),
    **dict.fromkeys(
        ("direction", "order", "event_count", "appears", "vanishes", "brief", "moving", "brief_2min"), 80.0
    ),
}
IMAGE_TARGET = 90.0  # of every other kind of image question


def write_card(directory: Path, scores: list[Score], parameters: int) -> None:
    """The model card with these figures, and which of the project's targets they miss."""
    rows = [
        f"| {s.kind} | {100 * s.share:.1f} % | {100 * s.interval[0]:.1f} to {100 * s.interval[1]:.1f} % | {s.asked} |"
        for s in scores
    ]
    missed = [f"{s.kind} ({t:.0f} %)" for s in scores if 100 * s.share < (t := TARGETS.get(s.kind, IMAGE_TARGET))]
    verdict = "Every target that the project set for it is met."
    if missed:
        verdict = f"Targets that this version misses: {', '.join(missed)}."
    facts = json.loads((directory / "training.json").read_text())
    template = (Path(__file__).parent / "demo_card.md").read_text()
    fields = {
        "table": "\n".join(rows),
        "verdict": verdict,
        "training": facts["origin"],
        "parameters": f"{parameters / 1e6:.1f}",
    }
    (directory / "README.md").write_text(template.format(**fields))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_dir()))
    parser.add_argument("--count", type=int, default=200, help="questions of each kind")
    parser.add_argument("--split", default="heldout", choices=("heldout", "validation", "train"))
    parser.add_argument("--kinds", default="", help="which, with commas; all")
    parser.add_argument("--card", action="store_true", help="write the figures into the model's README.md")
    parser.add_argument("--paths", action="store_true", help="compare single calls, PNG, JPEG and H.264")
    arguments = parser.parse_args()
    if not (Path(arguments.model) / "config.json").is_file():
        sys.exit(f"no model in {arguments.model}")
    model = LlavaMiniForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = LlavaMiniProcessor.from_pretrained(arguments.model)
    if arguments.paths:
        path_scores(model, processor, arguments.count)
        return
    every = [*ALL_KINDS, *(LONG_KINDS if arguments.card else ())]
    kinds = arguments.kinds.split(",") if arguments.kinds else every
    scores = kind_scores(model, processor, kinds, arguments.count, arguments.split)
    images = [s for s in scores if s.kind in IMAGE_KINDS and s.kind != "caption"]
    videos = [
        s for s in scores if s.kind not in IMAGE_KINDS and s.kind not in ("video_caption", "brief_2min", *LONG_KINDS)
    ]
    for name, group in (("all images", images), ("all videos", videos)):
        if len(group) > 1:
            scores.append(total(name, group))
            print(scores[-1].line())
    if arguments.card:
        write_card(Path(arguments.model), scores, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
