"""What `--scenes` costs in the decode that runs anyway, and which cuts it finds.

    python benchmarks/scenes.py --rounds 5 --write benchmarks/results/scenes.json
    python benchmarks/scenes.py --rounds 0 --videos 40 --peer VENV/bin/python    # has PySceneDetect

Cost: CPU seconds of `open_clip` with ffmpeg over a minute of 720p (that of `decoding.py`), with and without scores, in
turn. Cuts: videos of moving textures whose cuts are known; some of them with flashes of one frame and with dissolves of
a second, neither of which is a cut. A cut counts as found within one frame; each known one once. `--peer` is a Python
in which PySceneDetect is installed: its ContentDetector, as it comes, looks at the same videos.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import imageio_ffmpeg
import numpy as np
from decoding import make_video
from numpy.typing import NDArray

WIDTH, HEIGHT, FPS, SECONDS = 320, 180, 25, 20
KINDS = ("cuts", "flashes", "dissolves")
DISSOLVE = FPS  # frames
PEER = """
import sys
from scenedetect import ContentDetector, detect
scenes = detect(sys.argv[1], ContentDetector(min_scene_len=1))
print(*(begin.get_seconds() for begin, _ in scenes[1:]))
"""


def texture(rng: np.random.Generator) -> NDArray[np.float32]:
    """A scene's picture, three times as wide and high as what is seen of it; many scenes look alike in brightness."""
    coarse = rng.uniform(0, 255, (rng.integers(4, 20), rng.integers(4, 20), 3))
    rows, columns = (
        np.linspace(0, size - 1.001, 3 * edge) for size, edge in zip(coarse.shape, (HEIGHT, WIDTH), strict=False)
    )
    low, left = rows.astype(int), columns.astype(int)
    down, right = (rows - low)[:, None, None], (columns - left)[None, :, None]
    top = coarse[low][:, left] * (1 - right) + coarse[low][:, left + 1] * right
    bottom = coarse[low + 1][:, left] * (1 - right) + coarse[low + 1][:, left + 1] * right
    return (top * (1 - down) + bottom * down).astype(np.float32)


def to_and_fro(place: float, end: int) -> int:
    """A place between 0 and `end`, at which the camera turns back."""
    return int(abs((place + end) % (2 * end) - end))


def scene(rng: np.random.Generator, frames: int) -> Iterator[NDArray[np.float32]]:
    """A camera that moves over a texture, with noise and slow changes of light."""
    picture, x, y = texture(rng), rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
    grain = rng.normal(0, 4, (8, HEIGHT, WIDTH, 3)).astype(np.float32)
    speed = rng.uniform(-4, 4, 2)  # pixels a frame
    for number in range(frames):
        left, top = to_and_fro(x + number * speed[0], 2 * WIDTH), to_and_fro(y + number * speed[1], 2 * HEIGHT)
        light = 1 + 0.1 * np.sin(number / 20)
        yield picture[top : top + HEIGHT, left : left + WIDTH] * np.float32(light) + grain[number % 8]


def frames_of(rng: np.random.Generator, kind: str) -> tuple[list[NDArray[np.float32]], list[float]]:
    """The frames of one video and its cuts, in seconds."""
    frames: list[NDArray[np.float32]] = []
    cuts: list[float] = []
    while len(frames) < SECONDS * FPS:
        new = list(scene(rng, int(rng.integers(2 * FPS, 6 * FPS))))
        if kind == "flashes":
            new[len(new) // 2] = np.full_like(new[0], 250)
        if kind == "dissolves" and frames and rng.random() < 0.5:
            for number in range(DISSOLVE):
                share = (number + 1) / (DISSOLVE + 1)
                frames[number - DISSOLVE] = np.add(frames[number - DISSOLVE] * (1 - share), new[number] * share)
            new = new[DISSOLVE:]
        elif frames:
            cuts.append(len(frames) / FPS)
        frames += new
    return frames, cuts


def write_video(path: Path, frames: Sequence[NDArray[np.float32]]) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "-"]
    encoding = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-pix_fmt", "yuv420p", str(path)]
    data = b"".join(frame.clip(0, 255).astype(np.uint8).tobytes() for frame in frames)
    subprocess.run([*command, *encoding], input=data, check=True)


def our_cuts(video: Path, threshold: float) -> list[float]:
    from llava_mini_cli.config import SamplingOptions
    from llava_mini_cli.media.open import open_clip

    with open_clip(video, SamplingOptions(scene_threshold=threshold)) as clip:
        for _ in clip:
            pass
    return clip.cuts or []


def peer_cuts(video: Path, python: Path) -> list[float]:
    done = subprocess.run([str(python), "-c", PEER, str(video)], capture_output=True, text=True, check=True)
    return [float(one) for one in done.stdout.split()]


def matched(known: Sequence[float], found: Sequence[float]) -> int:
    """The number of known cuts that were found."""
    left = list(found)
    for cut in known:
        near = min(left, key=lambda one: abs(one - cut), default=None)
        if near is not None and abs(near - cut) <= 1.01 / FPS:
            left.remove(near)
    return len(found) - len(left)


def compare(folder: Path, videos: int, threshold: float, peer: Path | None) -> dict[str, Any]:
    finders: dict[str, Callable[[Path], list[float]]] = {"ours": partial(our_cuts, threshold=threshold)}
    if peer is not None:
        finders["pyscenedetect"] = partial(peer_cuts, python=peer)
    counts = {name: {kind: [0, 0, 0] for kind in KINDS} for name in finders}  # known, found, right
    for number in range(videos):
        kind = KINDS[number % len(KINDS)]
        frames, known = frames_of(np.random.default_rng(number), kind)
        write_video(video := folder / f"{number}.mp4", frames)
        for name, find in finders.items():
            found = find(video)
            for place, count in enumerate((len(known), len(found), matched(known, found))):
                counts[name][kind][place] += count
        video.unlink()
    return {
        name: {
            kind: {"known": known, "found": found, "right": right}
            for kind, (known, found, right) in kinds.items()
        }
        for name, kinds in counts.items()
    }  # fmt: skip


def cpu_seconds(video: Path, threshold: float | None) -> float:
    """Of one decode, in a process of its own and in the decoder's."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(threshold or 0), str(video)], stdout=subprocess.PIPE, check=True
    )
    return float(done.stdout)


def decode_here(video: Path, threshold: float) -> float:
    from llava_mini_cli.config import SamplingOptions
    from llava_mini_cli.media.open import open_clip

    before = sum(os.times()[:4])
    with open_clip(video, SamplingOptions(decoder="ffmpeg", scene_threshold=threshold or None)) as clip:
        for _ in clip:
            pass
    return sum(os.times()[:4]) - before


def cost(folder: Path, rounds: int, threshold: float, height: int) -> dict[str, float]:
    video = make_video(folder, 1, height)
    taken = [(cpu_seconds(video, None), cpu_seconds(video, threshold)) for _ in range(rounds)]
    for plain, scored in taken:
        print(json.dumps({"plain_cpu_s": round(plain, 2), "scored_cpu_s": round(scored, 2)}), flush=True)
    plain, scored = (median(one) for one in zip(*taken, strict=True))
    ratio = median(scored / plain for plain, scored in taken)
    return {"plain_cpu_s": round(plain, 2), "scored_cpu_s": round(scored, 2), "ratio": round(ratio, 3)}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of the decode; 0: its cost is not measured")
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--videos", type=int, default=30, help="of known cuts; 0: none are made")
    parser.add_argument("--threshold", type=float, default=10.0)
    parser.add_argument(
        "--folder", type=Path, help="where the video of which the cost is measured is kept between runs"
    )
    parser.add_argument("--peer", type=Path, help="a Python with PySceneDetect")
    parser.add_argument("--write", type=Path, help="file to which the line of figures is appended")
    parser.add_argument("--one", nargs=2, metavar=("THRESHOLD", "VIDEO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(decode_here(Path(options.one[1]), float(options.one[0])))
        return
    line: dict[str, Any] = {"date": date.today().isoformat(), "processor": processor(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if options.rounds:
            line["cost"] = {"height": options.height} | cost(
                Path(folder), options.rounds, options.threshold, options.height
            )
        if options.videos:
            line["videos"] = options.videos
            line["cuts"] = compare(Path(scratch), options.videos, options.threshold, options.peer)
    print(json.dumps(line), flush=True)
    if options.write:
        with options.write.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
