"""How well `search` finds moments in rendered videos with the demo model, and which score tells what is not there.

    python benchmarks/demo_search.py [--videos 200] [--queries 100] [--archive FOLDER]

Renders held-out videos, writes them as H.264, indexes them with the command, and searches for what their scenes show,
in words. A query is right when the best moment lies within 2 seconds of a frame that shows all of what was said. Then
the same for what is not shown anywhere: a thing that no scene has (`absent`), and a thing in a place where
it never is (`elsewhere`), and for things that do move, in a direction in which they never do (`wrong_way`, against
`right_way`). CLIP sees single frames, so the last two score alike; `direction_checked` is what `search --check` makes
of them: the likeliest yes among as many moments as a thing is seen in. Prints one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from llava_mini_cli.commands.flags.search_flags import MARGIN
from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.image_questions import article
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import CANVAS, COLOURS, PLACES, SHAPES, Scene, generator, pick
from llava_mini_cli.demo.videos import DIRECTIONS, Video, random_video
from llava_mini_cli.engine.query import QueryEncoder
from llava_mini_cli.engine.similarity import scan_batches, scan_file
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import Archive, open_archive
from llava_mini_cli.pipelines.check import check
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.search_archive import Scanner, SearchOptions, search
from llava_mini_cli.train.demo_preset.search_text import SearchText, TextPart

FPS = 8
FIRST = 10_000  # of the held-out scenes that nothing else uses
NEAR = 2.0  # seconds
PERCENTILES = (5, 25, 50, 75, 95)
LONGEST = 40  # seconds of a video
CHECKED = 40  # moments that the model looks at: every thing is seen in a dozen of the videos
SHOWN = 0.6  # score below which CLIP says that a thing is not there


def make_videos(folder: Path, count: int) -> list[Video]:
    """Renders the videos as `v000.mp4`, ... where they are not there yet; returns what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    videos: list[Video] = []
    for number in range(count):
        rng = generator("heldout", FIRST + number)
        video = random_video(rng, "heldout", longest=LONGEST)
        look, edge = random_look(rng, video.background), int(rng.choice(CANVAS["heldout"]))
        videos.append(video)
        path = folder / f"v{number:03d}.mp4"
        if not path.exists():
            moving = video.story == "move"
            times = [
                second + ((k + 0.5) / FPS if moving else 0.5) for second in range(video.seconds) for k in range(FPS)
            ]
            frames = [render(video.scene(time), look, edge, np.random.default_rng(number)).tobytes() for time in times]
            write_video(path, edge, b"".join(frames))
    return videos


def write_video(path: Path, edge: int, frames: bytes) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{edge}x{edge}", "-r", str(FPS), "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, input=frames, check=True)


@dataclass(frozen=True)
class World:
    """Every second of every video."""

    scenes: list[Scene]
    video: list[int]
    time: list[float]

    @classmethod
    def of(cls, videos: list[Video]) -> "World":
        seconds = [(number, second + 0.5) for number, video in enumerate(videos) for second in range(video.seconds)]
        scenes = [videos[number].scene(time) for number, time in seconds]
        return cls(scenes, [number for number, _ in seconds], [time for _, time in seconds])

    def has(self, query: SearchText) -> bool:
        return any(query.is_true(scene) for scene in self.scenes)

    def is_right(self, query: SearchText, moment: Moment) -> bool:
        """Whether a frame within `NEAR` of a moment's best frame shows what was asked for."""
        number, time = int(Path(moment.path).stem[1:]), moment.time or 0.0
        return any(
            video == number and abs(when - time) <= NEAR and query.is_true(scene)
            for scene, video, when in zip(self.scenes, self.video, self.time, strict=True)
        )


def drawn(rng: np.random.Generator, world: World) -> SearchText:
    """Some of what a random second shows; now and then with sizes and places."""
    while True:
        scene = world.scenes[int(rng.integers(len(world.scenes)))]
        if scene.things:
            count = int(rng.integers(1, len(scene.things) + 1))
            things = [scene.things[int(i)] for i in sorted(rng.choice(len(scene.things), count, replace=False))]
            parts = (
                TextPart(
                    t.colour, t.shape, t.size if rng.random() < 0.3 else None, t.place if rng.random() < 0.3 else None
                )
                for t in things
            )
            return SearchText(tuple(parts))


def changed(rng: np.random.Generator, query: SearchText, change: Callable[[TextPart], TextPart]) -> SearchText:
    index = int(rng.integers(len(query.parts)))
    return SearchText(tuple(change(part) if number == index else part for number, part in enumerate(query.parts)))


def draw_many(count: int, draw: Callable[[], SearchText], wanted: Callable[[SearchText], bool]) -> list[SearchText]:
    found: dict[str, SearchText] = {}
    while len(found) < count:
        query = draw()
        if wanted(query):
            found.setdefault(query.words(), query)
    return list(found.values())


def queries(world: World, count: int) -> dict[str, list[SearchText]]:
    """Present, absent (another thing) and elsewhere (the thing, but not in that place)."""
    rng = np.random.default_rng(0)

    def absent() -> SearchText:
        return changed(
            rng, drawn(rng, world), lambda p: TextPart(pick(rng, COLOURS), pick(rng, SHAPES), p.size, p.place)
        )

    def elsewhere() -> SearchText:
        place = pick(rng, PLACES)
        return changed(rng, drawn(rng, world), lambda p: TextPart(p.colour, p.shape, p.size, place))

    return {
        "present": draw_many(count, lambda: drawn(rng, world), world.has),
        "absent": draw_many(count, absent, lambda query: not world.has(query)),
        "elsewhere": draw_many(count, elsewhere, lambda query: not world.has(query)),
    }


def ways(videos: list[Video]) -> tuple[list[str], list[str]]:
    """What moves, with the direction in which it does in some video, and with one in which it does in none."""
    moves = {(v.main[0].thing.colour, v.main[0].thing.shape, v.direction) for v in videos if v.direction}
    right, wrong = [], []
    for colour, shape, direction in sorted(moves):
        others = [way for way in DIRECTIONS if (colour, shape, way) not in moves]
        if others:
            right.append(f"{article(f'{colour} {shape}')} moves {direction}")
            wrong.append(f"{article(f'{colour} {shape}')} moves {others[0]}")
    return right, wrong


def likeliest_yes(archive: Archive, encoder: QueryEncoder, text: str, question: str, model: str) -> float:
    """What `search TEXT -k 40 --min-score 0.6 --check QUESTION` puts first."""
    options = SearchOptions(CHECKED, SHOWN)
    found = search(archive, encoder.text(text), options, Scanner(scan_file, scan_batches))
    with Interrupts() as interrupts:
        checked, failed = check(archive, found, question, model, interrupts, MARGIN)
    assert not failed
    return (checked[0].p_yes if checked else None) or 0.0


def ways_checked(archive: Archive, encoder: QueryEncoder, videos: list[Video], model: str) -> dict[str, Any]:
    """How well the model's own yes tells which way something moves."""
    said: list[list[float]] = []
    for texts in ways(videos):
        said.append([])
        for text in texts:
            name, _, direction = text.partition(" moves ")
            thing = name.partition(" ")[2]
            said[-1].append(likeliest_yes(archive, encoder, name, f"Does the {thing} move {direction}?", model))
    return {"queries": len(said[0])} | separation(*said)


def best(archive: Archive, encoder: QueryEncoder, text: str) -> Moment:
    return search(archive, encoder.text(text), SearchOptions(1), Scanner(scan_file, scan_batches))[0]


def separation(present: list[float], others: list[float]) -> dict[str, Any]:
    """The score that tells the two apart best, what it gets right, and how often one of the first beats the second."""
    cuts = sorted({*present, *others})
    right = [(sum(s >= cut for s in present) + sum(s < cut for s in others), cut) for cut in cuts]
    score, cut = max(right)
    area = float(np.mean([[a > b for b in others] for a in present]))
    return {"threshold": round(cut, 3), "right": round(score / (len(present) + len(others)), 3), "auc": round(area, 3)}


def measure(folder: Path, archive_folder: Path, videos: int, count: int, model: str) -> dict[str, Any]:
    rendered = make_videos(folder, videos)
    world = World.of(rendered)
    command = [
        sys.executable,
        "-m",
        "llava_mini_cli",
        "index",
        str(folder),
        "-o",
        str(archive_folder),
        "-m",
        model,
        "-q",
        "--features",
    ]
    subprocess.run(command, check=True)
    encoder = QueryEncoder(model)
    asked = queries(world, count)
    with open_archive(archive_folder) as archive:
        found = {kind: [best(archive, encoder, query.words()) for query in asked[kind]] for kind in asked}
        for kind, texts in zip(("right_way", "wrong_way"), ways(rendered), strict=True):
            found[kind] = [best(archive, encoder, text) for text in texts]
        checked = ways_checked(archive, encoder, rendered, model)
    scores = {kind: [moment.score for moment in moments] for kind, moments in found.items()}
    right = [world.is_right(query, moment) for query, moment in zip(asked["present"], found["present"], strict=True)]
    return {
        "videos": videos,
        "frames": len(world.scenes),
        "queries": count,
        "first_right": round(float(np.mean(right)), 3),
        "missed": [query.words() for query, good in zip(asked["present"], right, strict=True) if not good],
        "scores": {kind: np.percentile(values, PERCENTILES).round(3).tolist() for kind, values in scores.items()},
        "absent": separation(scores["present"], scores["absent"]),
        "elsewhere": separation(scores["present"], scores["elsewhere"]),
        "direction": separation(scores["right_way"], scores["wrong_way"]),
        "direction_checked": checked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_dir()))
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--media", type=Path, help="where the videos go (default: a temporary folder)")
    parser.add_argument("--archive", type=Path, help="where the archive goes (default: beside the videos)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        media = arguments.media or Path(temporary) / "videos"
        archive = arguments.archive or Path(temporary) / "archive"
        print(json.dumps(measure(media, archive, arguments.videos, arguments.queries, arguments.model), indent=1))


if __name__ == "__main__":
    main()
