"""Renders scenes that the demo model knows, with questions about them and their true answers.

    python evaluation/make_scenes.py FOLDER [--images 60] [--videos 20]

Two questions about each image, four about each video, no two of one kind about the same medium. FOLDER then holds the
media and

    questions.jsonl   a question a line: id, file, media, kind, question, answer, choices (null where there are no few)
    choices.jsonl     those lines that have choices
    ask.jsonl         a medium a line, with a column for each kind of question, as `llava-mini ask` takes it
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from llava_mini_cli.demo.__main__ import write_video
from llava_mini_cli.demo.image_questions import IMAGE_KINDS, DemoQuestion, image_question
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    generator,
    pick,
    random_scene,
)
from llava_mini_cli.demo.video_questions import VIDEO_KINDS, video_question
from llava_mini_cli.demo.videos import DIRECTIONS, random_video

SEED = 7000  # far from the scenes that benchmarks ask about
OF_IMAGE, OF_VIDEO = 2, 4  # questions
FPS = 4  # of videos
KINDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
NUMBERS = tuple(map(str, range(5)))
CHOICES: dict[str, tuple[str, ...]] = {  # the answers that there can be
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "place": PLACES,
    "count": NUMBERS,
    "relation": ("left", "right", "above", "below"),
    "background": BACKGROUNDS,
    "yesno": ("yes", "no"),
    "direction": tuple(DIRECTIONS),
    "order": KINDS,
    "event_count": NUMBERS,
    "moving": KINDS,
    "video_yesno": ("yes", "no"),
}


def made_image(folder: Path, number: int) -> tuple[Path, list[DemoQuestion]]:
    """A picture, every other one a JPEG, and questions about it."""
    rng = generator("heldout", SEED + number)
    scene = random_scene(rng, "heldout")
    pixels = render(scene, random_look(rng, scene.background), pick(rng, CANVAS["heldout"]), rng)
    path = folder / f"image-{number:03d}.{'png' if number % 2 else 'jpg'}"
    Image.fromarray(pixels).save(path, quality=92)
    found = (image_question(rng, scene, "heldout", str(kind)) for kind in rng.permutation(IMAGE_KINDS))
    return path, [one for one in found if one is not None][:OF_IMAGE]


def made_video(folder: Path, number: int) -> tuple[Path, list[DemoQuestion]]:
    """A video in which something moves, or things come one after another, and questions about it."""
    rng = generator("heldout", SEED + 1000 + number)
    found: list[DemoQuestion] = []
    while len(found) < OF_VIDEO:  # a parade of one thing has no order
        video = random_video(rng, "heldout", "move" if number % 2 else "parade")
        asked = (video_question(rng, video, "heldout", kind) for kind in VIDEO_KINDS)
        found = [one for one in asked if one is not None]
    path = folder / f"video-{number:03d}.mp4"
    write_video(str(path), video, SEED + number, FPS)
    return path, found[:OF_VIDEO]


def media(folder: Path, images: int, videos: int) -> Iterator[tuple[Path, list[DemoQuestion]]]:
    for number in range(images):
        yield made_image(folder, number)
    for number in range(videos):
        yield made_video(folder, number)


def make_scenes(folder: Path, images: int = 60, videos: int = 20) -> None:
    """Writes the media and the three lists."""
    folder.mkdir(parents=True, exist_ok=True)
    questions, table = list[dict[str, object]](), list[dict[str, str]]()
    for path, asked in media(folder.absolute(), images, videos):
        table.append({"path": str(path)} | {one.kind: one.text for one in asked})
        questions += [
            {
                "id": f"{path.name} {one.kind}",
                "file": str(path),
                "media": path.name.split("-")[0],
                "kind": one.kind,
                "question": one.text,
                "answer": one.answer,
                "choices": list(CHOICES[one.kind]) if one.kind in CHOICES else None,
            }
            for one in asked
        ]
    lists = {
        "questions": questions,
        "choices": [one for one in questions if one["choices"]],
        "ask": table,
    }
    for name, lines in lists.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--videos", type=int, default=20)
    arguments = parser.parse_args()
    make_scenes(arguments.folder, arguments.images, arguments.videos)


if __name__ == "__main__":
    main()
