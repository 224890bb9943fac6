"""What `--thumbnails` costs: runs with and without, measured in turn in one process, and the memory of a long video.

    python benchmarks/thumbnails.py [--threads 2] [--rounds 3] [--hours 3]

Weights are random, in the 8B model's proportions at CLIP width 256 and language-model width 512, about a thousandth of
its work for each frame. Frames are there already, so that no decoder hides the cost. One JSON line a figure: medians
of seconds, of the processor's seconds over all threads, and their ratios. The last is about the pictures alone: a video
of some hours, a frame a second, with a stretch for each ten seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from engine import report
from random_models import CountedPrompts, build_engine, build_ours, seed

from llava_mini_cli.bench.shapes import SMALL_CLIP, SMALL_LLM
from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine.request import Window
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.open import Opening
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.thumbnails import ThumbnailMaker, WindowThumbnails

EDGE, FRAMES, PICTURES = 336, 64, 48


class MadeClip(Clip):
    """Frames that are there already, with edges and noise, as a photograph has."""

    def __init__(self, path: str, frames: int) -> None:
        kind = "video" if frames > 1 else "image"
        self.info = ClipInfo(path, kind, 1280, 720, float(frames), frames, 1.0)
        self.warnings: list[str] = []
        self._frames = frames

    def __iter__(self) -> Iterator[FrameChunk]:
        generator = np.random.default_rng(0)
        coarse = generator.integers(0, 200, (21, 21, 3)).repeat(16, 0).repeat(16, 1)
        for start in range(0, self._frames, 32):
            count = min(32, self._frames - start)
            noise = generator.integers(0, 40, (count, EDGE, EDGE, 1))
            pixels = (coarse + noise).astype(np.uint8)
            yield FrameChunk(pixels if self._frames > 1 else pixels[:, None], np.arange(start, start + count) + 0.5)


def open_made(path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening) -> MadeClip:
    return MadeClip(path, FRAMES if path.endswith("mp4") else 1)


def jobs(count: int, suffix: str) -> list[Job]:
    named = [f"{number}.{suffix}" for number in range(count)]
    return [Job(name, name, (Question(Prompt("0"), name),)) for name in named]


def measure(name: str, run: Callable[[RunOptions], Any], options: RunOptions, rounds: int) -> None:
    """One work without and with pictures, in turn."""
    paths = {"without": options, "with": replace(options, thumbnails="column")}
    wall: dict[str, list[float]] = {key: [] for key in paths}
    processor: dict[str, list[float]] = {key: [] for key in paths}
    for number in range(rounds + 1):
        for key, chosen in paths.items():
            began, used = time.perf_counter(), time.process_time()
            run(chosen)
            if number:
                wall[key].append(time.perf_counter() - began)
                processor[key].append(time.process_time() - used)
    seconds = {key: statistics.median(values) for key, values in wall.items()}
    used = {key: statistics.median(values) for key, values in processor.items()}
    report(
        work=name,
        seconds_without=seconds["without"],
        seconds_with=seconds["with"],
        ratio=seconds["with"] / seconds["without"],
        processor_ratio=used["with"] / used["without"],
    )


def measure_runs(rounds: int) -> None:
    """Pictures, and rows about several frames and about each, as `when` asks."""
    seed()
    engine = build_engine(build_ours(SMALL_LLM, SMALL_CLIP), CountedPrompts(before=35, after=20))
    base = RunOptions(ModelOptions("random"), SamplingOptions(), GenerationOptions(max_new_tokens=1))
    parts = RunParts(open_made, lambda _: None)

    def ask(media: list[Job]) -> Callable[[RunOptions], Any]:
        return lambda options: [*answer(media, engine, options, parts)]

    measure(f"{PICTURES} pictures, one token each", ask(jobs(PICTURES, "jpg")), base, rounds)
    for seconds in (8.0, 1.0):
        spans = replace(base, spans=SpanOptions(every=seconds))
        measure(f"{FRAMES} frames, a row for each {seconds:g}", ask(jobs(1, "mp4")), spans, rounds)


def memory_of_a_long_video(hours: float) -> None:
    """The pictures of a stretch for each ten seconds and of each hour, answered when ten more are there."""
    count = round(hours * 3600)
    stretches = [(10.0 * number, 10.0 * number + 10) for number in range(count // 10)]
    whole = [(3600.0 * number, 3600.0 * number + 3600) for number in range(int(hours))]
    windows = [Window(*one) for one in sorted([*stretches, *whole])]
    clip = MadeClip("a.mp4", 32)
    pixels = next(iter(clip)).pixels
    jpegs, most, looked = 0, 0, 0.0
    with ThumbnailMaker() as maker:
        info = replace(clip.info, duration_s=float(count), frame_count=count)
        watcher = WindowThumbnails(maker, info, windows, 1, (0.0, float(count)))
        for start in range(0, count, 32):
            times = np.arange(start, min(start + 32, count)) + 0.5
            started = time.perf_counter()
            watcher.saw(FrameChunk(pixels[: len(times)], times))
            looked += time.perf_counter() - started
            middles = [*watcher._open.values(), *watcher._over.values()]
            held = {id(kept): kept for middle in middles for kept in middle._kept}
            most = max(most, sum(len(kept.jpeg() or b"") for kept in held.values()))
            for index in [one for one in watcher._over if windows[one].end <= times[-1] - 100]:
                jpegs += len(((kept := watcher.of(index)) and kept.jpeg()) or b"")
                watcher.answered(index)
    report(
        hours=hours,
        stretches=len(windows),
        most_kb_held=most / 1000,
        kb_in_all=jpegs / 1000,
        main_thread_ms_a_frame=1000 * looked / count,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hours", type=float, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure_runs(arguments.rounds)
    memory_of_a_long_video(arguments.hours)


if __name__ == "__main__":
    main()
