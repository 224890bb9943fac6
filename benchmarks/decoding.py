"""What decoding costs: CPU time and memory of both decoders against a plain ffmpeg pipe that samples the same frames.

    python benchmarks/decoding.py --minutes 1 60 --rounds 3 --write benchmarks/results/decoding.json

Makes its own video (720p H.264 with motion, noise and scene changes), prints one JSON line a measurement and one of
medians a length. Methods take turns within a round, so that a busy machine slows all of them alike.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import imageio_ffmpeg

FPS = 30
SCENE_SECONDS = 7
ENCODING = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-g", "250", "-bf", "2", "-pix_fmt", "yuv420p"]
METHODS = ("pipe", "ffmpeg", "decord")


def make_video(folder: Path, minutes: int, height: int) -> Path:
    """One minute is encoded, longer ones repeat it without encoding again."""
    minute, whole = folder / "minute.mp4", folder / f"{minutes}.mp4"
    width = height * 16 // 9
    motion = f"rotate=0.15*sin(t):fillcolor=gray,hue=h=120*floor(t/{SCENE_SECONDS}):s=1+0.3*sin(t),noise=alls=6:allf=t"
    source = ["-f", "lavfi", "-i", f"testsrc2=s={width}x{height}:r={FPS}:d=60", "-vf", motion]
    if not minute.exists():
        run_ffmpeg([*source, *ENCODING, str(minute)])
    if not whole.exists():
        listing = folder / f"{minutes}.txt"
        listing.write_text(f"file {minute.name}\n" * minutes)
        run_ffmpeg(["-f", "concat", "-i", str(listing), "-c", "copy", str(whole)])
    return whole


def run_ffmpeg(arguments: list[str]) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *arguments], check=True)


def plain_pipe(video: Path) -> None:
    """Samples the middle frame of each second, then scales it."""
    chain = f"select='eq(mod(n,{FPS}),{FPS // 2})',scale=336:336"
    options = f"-fps_mode passthrough -f rawvideo -pix_fmt rgb24 -vf {chain} pipe:1".split()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(video), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        while process.stdout.read(1 << 20):
            pass


def through_open_clip(video: Path, decoder: Any) -> None:
    from llava_mini_cli.config import SamplingOptions
    from llava_mini_cli.media.open import open_clip

    with open_clip(video, SamplingOptions(decoder=decoder)) as clip:
        for _ in clip:
            pass
        if clip.warnings:
            raise SystemExit(f"{decoder}: {clip.warnings}")


def measure_here(video: Path, method: str) -> dict[str, float]:
    """Runs one method in this process; memory in MB, CPU seconds of this process and of its children."""
    import llava_mini_cli.media.open  # noqa: F401 - importing is no part of the measurement

    own, begin = time.process_time(), time.monotonic()
    plain_pipe(video) if method == "pipe" else through_open_clip(video, method)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_s": round(time.process_time() - own + children.ru_utime + children.ru_stime, 2),
        "reader_cpu_s": round(time.process_time() - own, 2),
        "wall_s": round(time.monotonic() - begin, 2),
        "child_peak_mb": round(children.ru_maxrss / 1024, 1),
        "reader_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def measure(video: Path, method: str) -> dict[str, float]:
    """As `measure_here`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", method, str(video)], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def summary(minutes: int, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, and of the rounds' own ratios to the plain pipe."""
    result: dict[str, Any] = {"minutes": minutes, "rounds": len(rounds)}
    for method in rounds[0]:
        result[method] = {key: median(taken[method][key] for taken in rounds) for key in rounds[0][method]}
        ratios = [taken[method]["cpu_s"] / taken["pipe"]["cpu_s"] for taken in rounds]
        result[method]["cpu_of_pipe"] = round(median(ratios), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, nargs="+", default=[1])
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, help="where videos are kept between runs")
    parser.add_argument("--write", type=Path, help="file to which the lines of medians are appended")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "VIDEO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(Path(options.one[1]), options.one[0])))
        return
    methods = ["pipe", *(method for method in options.methods if method != "pipe")]
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for minutes in options.minutes:
            medians = run_length(make_video(folder, minutes, options.height), minutes, methods, options.rounds)
            line = json.dumps({**where_and_when(), "height": options.height, **medians})
            print(line, flush=True)
            if options.write:
                with options.write.open("a") as file:
                    file.write(line + "\n")


def where_and_when() -> dict[str, str]:
    return {"date": date.today().isoformat(), "machine": f"{os.cpu_count()}-core {platform.machine()} CPU machine"}


def run_length(video: Path, minutes: int, methods: list[str], rounds: int) -> dict[str, Any]:
    taken: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        taken.append({method: measure(video, method) for method in methods})
        for method, figures in taken[-1].items():
            print(json.dumps({"minutes": minutes, "round": number, "method": method, **figures}), flush=True)
    return summary(minutes, taken)


if __name__ == "__main__":
    main()
