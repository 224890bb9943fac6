"""How well `when` finds events: 50 rendered videos whose truth is known, the demo model and the default options.

    python benchmarks/when.py                         F1 of events at 1 s tolerance; results/when.json
    python benchmarks/when.py --window 4s --stride 1s   the same with other options of the command

In each video one thing appears, vanishes, is seen briefly, or is seen twice, beside up to one other thing; in every
fifth the thing that is asked about is another one that never comes. Events begin and end at any moment, not on whole
seconds.
An event is found if a span begins and ends within 1 s of where it does; each span finds one event, each event one span.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from llava_mini_cli.demo.image_questions import article_fixed
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, generator, pick, random_scene

RESULTS = Path(__file__).parent / "results" / "when.json"
FPS = 10
EDGE = 192  # pixels; a size that the model was not trained on
TOLERANCE = 1.0  # seconds
STORIES = ("appears", "vanishes", "brief", "twice", "never")

Spans = list[tuple[float, float]]


@dataclass(frozen=True)
class Film:
    """One video: what is asked about, when it is seen, and what else is there."""

    name: str
    story: str
    thing: Thing
    spans: tuple[tuple[float, float], ...]  # seconds
    others: tuple[Thing, ...]
    background: str
    seconds: float
    question: str

    def frames(self, seed: int) -> Iterator[bytes]:
        """Raw RGB frames."""
        look = random_look(np.random.default_rng(seed), self.background)
        drawn: dict[bool, bytes] = {}
        for number in range(round(self.seconds * FPS)):
            seen = any(start <= number / FPS < end for start, end in self.spans)
            if seen not in drawn:
                things = (*self.others, self.thing) if seen else self.others
                drawn[seen] = render(Scene(things, self.background), look, EDGE, np.random.default_rng(seed)).tobytes()
            yield drawn[seen]


def random_film(index: int) -> Film:
    """Film `index`: the stories take turns."""
    rng = generator("heldout", 9_000_000 + index)
    story = STORIES[index % len(STORIES)]
    first, *others = random_scene(rng, "heldout", int(rng.integers(1, 3))).things
    if story in ("appears", "vanishes"):
        seconds = round(float(rng.uniform(8, 30)), 1)
        edge = round(float(rng.uniform(2.5, seconds - 2.5)), 1)
        spans = ((edge, seconds),) if story == "appears" else ((0.0, edge),)
    elif story == "brief":
        seconds = round(float(rng.uniform(12, 60)), 1)
        start = round(float(rng.uniform(1, seconds - 4.5)), 1)
        spans = ((start, round(start + float(rng.uniform(1.2, 3)), 1)),)
    elif story == "twice":
        seconds = round(float(rng.uniform(15, 40)), 1)
        half = seconds / 2
        starts = [round(float(rng.uniform(1, half - 5)), 1), round(float(rng.uniform(half, seconds - 5)), 1)]
        spans = tuple((start, round(start + float(rng.uniform(1.5, 4)), 1)) for start in starts)
    else:
        seconds, spans = round(float(rng.uniform(8, 30)), 1), ()
    wanted = first
    if story == "never":
        present = {(one.colour, one.shape) for one in (first, *others)}
        while (wanted.colour, wanted.shape) in present:
            wanted = Thing(pick(rng, SHAPES), pick(rng, COLOURS), wanted.size, wanted.x, wanted.y)
        others = [first, *others]
    question = article_fixed(f"Is there a {wanted.colour} {wanted.shape}?")
    return Film(f"{index:02}.mp4", story, wanted, spans, tuple(others), pick(rng, BACKGROUNDS), seconds, question)


def write(film: Film, folder: Path, seed: int) -> None:
    """The film as H.264."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{EDGE}x{EDGE}", "-r", str(FPS), "-i", "-", "-c:v", "libx264", "-preset", "veryfast"]
    command += ["-pix_fmt", "yuv420p", str(folder / film.name)]
    subprocess.run(command, input=b"".join(film.frames(seed)), check=True)


def matched(truth: Sequence[tuple[float, float]], found: Sequence[tuple[float, float]], tolerance: float) -> int:
    """Events that are found: in order of time, each with the first span that fits and is not taken."""
    left, count = list(found), 0
    for start, end in truth:
        for span in left:
            if abs(span[0] - start) <= tolerance and abs(span[1] - end) <= tolerance:
                left.remove(span)
                count += 1
                break
    return count


def spans_of(films: Sequence[Film], folder: Path, options: Sequence[str]) -> dict[str, Spans]:
    """What the command finds in each film, by its name."""
    lines = [json.dumps({"video": film.name, "question": film.question}) for film in films]
    (folder / "films.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "llava_mini_cli", "when", "films.jsonl", "--prompt-column", "question"]
    command += ["--model", "demo", "-f", "jsonl", "-q", *options]
    said = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Spans] = {film.name: [] for film in films}
    for row in map(json.loads, said.splitlines()):
        assert row["status"] == "ok", row["error"]
        if row["segment"] is not None:
            found[row["file_name"]].append((row["start"], row["end"]))
    return found


def score(films: Sequence[Film], found: dict[str, Spans], tolerance: float = TOLERANCE) -> dict[str, Any]:
    """F1, precision and recall of all events together, and how far the edges of those found are off."""
    right = sum(matched(film.spans, found[film.name], tolerance) for film in films)
    events, spans = sum(len(film.spans) for film in films), sum(map(len, found.values()))
    missed = [film.name for film in films if matched(film.spans, found[film.name], tolerance) < len(film.spans)]
    return {
        "f1": round(2 * right / (events + spans), 4),
        "events": events,
        "spans": spans,
        "found": right,
        "missed_in": missed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first film: other films than the usual ones"
    )
    parser.add_argument("--save", action="store_true", help="write results/when.json")
    arguments, options = parser.parse_known_args()
    films = [random_film(arguments.first + number) for number in range(arguments.count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, film in enumerate(films):
            write(film, folder, number)
        found = spans_of(films, folder, options)
    result = score(films, found)
    by_story = {
        story: score(
            [film for film in films if film.story == story], {f.name: found[f.name] for f in films if f.story == story}
        )
        for story in STORIES[:-1]
    }
    shown = {"options": options, "films": len(films), **result, "by_story": {k: v["f1"] for k, v in by_story.items()}}
    print(json.dumps(shown, indent=1))
    if arguments.save:
        RESULTS.write_text(json.dumps(shown, indent=1) + "\n")


if __name__ == "__main__":
    main()
