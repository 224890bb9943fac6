"""Accuracy of the demo model by every road that a medium can take to it.

    python benchmarks/demo_paths.py [--count 500] [--model DIRECTORY]

The same held-out questions each time, greedy, exact match: through the Python API in batches and one by one, as PNG and
JPEG files, as videos of one frame, as H.264 videos, and through the command. Writes benchmarks/results/demo_paths.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.image_questions import IMAGE_KINDS
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.train.demo_preset.score import Item, answers, items

VIDEO_KINDS = ("direction", "order", "event_count", "appears", "vanishes", "moving", "video_yesno")
RESULTS = Path(__file__).parent / "results" / "demo_paths.json"
FPS = 8  # frames a second of the videos that are written as files
BATCH = 16

Road = Callable[[Sequence[Item], Path], list[str]]


def write_image(item: Item, path: Path) -> None:
    Image.fromarray(item.frames[0]).save(path)


def write_h264(item: Item, path: Path) -> None:
    """An item's frames as an H.264 video, one second each."""
    edge = item.frames.shape[1]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{edge}x{edge}", "-r", str(FPS), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=np.repeat(item.frames, FPS, axis=0).tobytes(), check=True)


def frames_of_file(path: Path) -> np.ndarray:
    """Frames as the commands decode them, at 1 fps."""
    with open_clip(path, SamplingOptions()) as clip:
        return np.concatenate([chunk.pixels for chunk in clip])


class Roads:
    """What becomes of items on each road: items and an empty folder -> answers.

    Args:
        directory: of the model.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = LlavaMiniForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        self.processor = LlavaMiniProcessor.from_pretrained(directory)

    def asked(self, taken: Sequence[Item], batch: int = BATCH) -> list[str]:
        """Through the Python API."""
        parts = [list(taken[first : first + batch]) for first in range(0, len(taken), batch)]
        return [answer for part in parts for answer in answers(self.model, self.processor, part)]

    def batched(self, taken: Sequence[Item], folder: Path) -> list[str]:
        return self.asked(taken)

    def single(self, taken: Sequence[Item], folder: Path) -> list[str]:
        return self.asked(taken, 1)

    def as_videos(self, taken: Sequence[Item], folder: Path) -> list[str]:
        """Images as videos of one frame."""
        return self.asked([Item(item.kind, item.frames, item.question, is_video=True) for item in taken])

    def through(self, suffix: str) -> Road:
        """Items written as files and decoded again."""
        write = write_h264 if suffix == ".mp4" else write_image

        def road(taken: Sequence[Item], folder: Path) -> list[str]:
            decoded: list[Item] = []
            for item in taken:
                path = folder / f"item{suffix}"
                write(item, path)
                decoded.append(Item(item.kind, frames_of_file(path), item.question, item.is_video))
            return self.asked(decoded)

        return road

    def command(self, suffix: str) -> Road:
        """`llava-mini ask` about a table of all of them."""
        write = write_h264 if suffix == ".mp4" else write_image

        def road(taken: Sequence[Item], folder: Path) -> list[str]:
            lines: list[str] = []
            for number, item in enumerate(taken):
                name = f"{number:05d}{suffix}"
                write(item, folder / name)
                lines.append(json.dumps({"path": name, "number": str(number), "question": item.question.text}))
            (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
            command = [sys.executable, "-m", "llava_mini_cli", "ask", "questions.jsonl", "--prompt-column", "question"]
            command += ["--id-column", "number", "-m", str(self.directory), "--max-new-tokens", "80", "-q"]
            subprocess.run([*command, "-o", "rows.jsonl"], cwd=folder, check=True)
            rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
            said = {int(row["id"]): row["text"] for row in rows}
            return [said[number] for number in range(len(taken))]

        return road


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=model_dir())
    parser.add_argument("--count", type=int, default=500, help="questions about images, and about videos")
    arguments = parser.parse_args()
    roads = Roads(arguments.model)
    every: dict[str, tuple[Sequence[str], dict[str, Road]]] = {
        "images": (
            IMAGE_KINDS,
            {
                "Python API, in batches": roads.batched,
                "Python API, one by one": roads.single,
                "PNG files": roads.through(".png"),
                "JPEG files": roads.through(".jpg"),
                "videos of one frame": roads.as_videos,
                "the command, PNG files": roads.command(".png"),
                "the command, JPEG files": roads.command(".jpg"),
            },
        ),
        "videos": (
            VIDEO_KINDS,
            {
                "Python API, in batches": roads.batched,
                "Python API, one by one": roads.single,
                "H.264 files": roads.through(".mp4"),
                "the command, H.264 files": roads.command(".mp4"),
            },
        ),
    }
    found: list[dict[str, str | int]] = []
    for medium, (kinds, ways) in every.items():
        asked = [item for kind in kinds for item in items(kind, arguments.count // len(kinds))]
        for name, road in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                said = road(asked, Path(folder))
            right = sum(answer == item.question.answer for answer, item in zip(said, asked, strict=True))
            found.append({"media": medium, "road": name, "right": right, "asked": len(asked)})
            print(f"{medium}: {name}: {right} of {len(asked)} ({100 * right / len(asked):.1f} %)", flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
