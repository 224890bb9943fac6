"""Search of an archive of 1,000,000 frames of width 768: exact, and through the approximate index.

    python benchmarks/search.py [--frames 1000000] [--threads 2] [--archive FOLDER] [--no-ann]

The archive is made up: videos of 600 frames whose embeddings wander about a scene, in a space of few dimensions with
noise, as real ones do. Its vision tokens are 8 numbers wide in place of 4,096, since no search reads them. Queries are
frames with noise. The first exact search is not counted: it brings the file into the system's cache.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_mini_cli.engine.similarity import scan_batches, scan_file
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.part import FrameRows
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.archive.writer import open_for_writing
from llava_mini_cli.pipelines.search_archive import Scanner, SearchOptions, search

WIDTH = 768
LATENT = 24
PER_VIDEO = 600
Timed = tuple[float, float, list[Any]]
SCANNER = Scanner(scan_file, scan_batches)


class World:
    """Makes embeddings that look like those of videos."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.mix = self.rng.standard_normal((LATENT, WIDTH)).astype(np.float32) * 0.3

    def video(self, count: int) -> np.ndarray:
        """float32 `[count, WIDTH]` of length 1."""
        walk = 0.15 * np.cumsum(self.rng.standard_normal((count, LATENT)), axis=0)
        latent = (self.rng.standard_normal((1, LATENT)) + walk).astype(np.float32)
        noise = 0.15 * self.rng.standard_normal((count, WIDTH), dtype=np.float32)
        made = np.tanh(latent @ self.mix) + noise
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def make(folder: Path, frames: int) -> None:
    """Writes the archive, a part every 16,384 frames."""
    world = World()
    shapes = Shapes((1, 8), WIDTH, (1, 576, 1024))
    with open_for_writing(folder) as archive:
        archive.start(ArchiveHeader("made up", None, "0" * 16, shapes, None, {"fps": 1.0}))
        for number in range(-(-frames // PER_VIDEO)):
            count = min(PER_VIDEO, frames - number * PER_VIDEO)
            medium, times = archive.begin(), np.arange(count) + 0.5
            rows = FrameRows(
                np.arange(count, dtype=np.int32),
                times,
                times,
                np.ones(count, np.int32),
                np.zeros((count, 1, 8), np.float16),
                world.video(count).astype(np.float16),
                None,
            )
            archive.add_frames(medium, rows)
            name = f"v{number:05d}.mp4"
            row = {"path": f"/made/up/{name}", "file_name": name, "media": "video", "status": "ok", "width": 1}
            archive.finish(medium, {**row, "height": 1, "frames": count, "frames_sampled": count, "fps_sampled": 1.0})


def queries(folder: Path, count: int) -> list[np.ndarray]:
    """Frames of the archive with noise, of length 1."""
    rng = np.random.default_rng(1)
    found: list[np.ndarray] = []
    with open_archive(folder) as archive:
        for part in rng.choice(archive.parts, count):
            batch = next(archive.vectors(int(part)))
            query = batch[int(rng.integers(len(batch)))].astype(np.float32)
            query = query + 0.02 * rng.standard_normal(WIDTH).astype(np.float32)
            found.append(query / np.linalg.norm(query))
    return found


def timed(folder: Path, query: np.ndarray, *, approximate: bool) -> Timed:
    """Seconds to open the archive, seconds to the ten best moments in it, and these."""
    began = time.perf_counter()
    with open_archive(folder) as archive:
        opened = time.perf_counter()
        found = search(archive, query, SearchOptions(10, approximate=approximate), SCANNER)
        return opened - began, time.perf_counter() - opened, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--archive", type=Path, help="made there, or used if it is there (default: a temporary one)")
    parser.add_argument("--no-ann", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.archive or Path(temporary) / "archive"
        if not (folder / "archive.json").exists():
            make(folder, arguments.frames)
        asked = queries(folder, arguments.queries)
        first = sum(timed(folder, asked[0], approximate=False)[:2])
        used = time.process_time()
        exact = [timed(folder, query, approximate=False) for query in asked]
        used = (time.process_time() - used) / len(asked)
        report: dict[str, Any] = {
            "frames": arguments.frames,
            "threads": arguments.threads,
            "first_s": round(first, 3),
            "open_s": round(statistics.median(opening for opening, _, _ in exact), 3),
            "exact_s": round(statistics.median(seconds for _, seconds, _ in exact), 3),
            "slowest_with_opening_s": round(max(opening + seconds for opening, seconds, _ in exact), 3),
            "cpu_s": round(used, 3),  # of all threads, opening included; what the machine's other work does not change
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(json.dumps(report), flush=True)
        if not arguments.no_ann:
            print(json.dumps(approximate_figures(folder, asked, exact)))


def approximate_figures(
    folder: Path, asked: list[np.ndarray], exact: list[tuple[float, float, list[Any]]]
) -> dict[str, Any]:
    from llava_mini_cli.formats.archive.near import NearFacts, build, faiss

    faiss().omp_set_num_threads(torch.get_num_threads())
    began = time.perf_counter()
    if not (folder / "near" / "near.json").exists():
        with open_archive(folder) as archive:
            build(archive)
    built = time.perf_counter() - began
    timed(folder, asked[0], approximate=True)
    near = [timed(folder, query, approximate=True) for query in asked]
    median = statistics.median(seconds for _, seconds, _ in near)
    places = [
        ({(m.path, m.time) for m in a}, {(m.path, m.time) for m in b})
        for (_, _, a), (_, _, b) in zip(exact, near, strict=True)
    ]
    return {
        "build_s": round(built, 1),
        **{key: value for key, value in vars(NearFacts.read(folder)).items() if key not in ("parts", "mean")},
        "approximate_s": round(median, 4),
        "times_faster": round(statistics.median(seconds for _, seconds, _ in exact) / median, 1),
        "same_ten_moments": round(float(np.mean([len(a & b) / len(a) for a, b in places])), 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


if __name__ == "__main__":
    sys.exit(main())
