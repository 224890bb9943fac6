"""What a model of the published size takes on this machine: memory, and time by phase, in each number format.

    python benchmarks/full_size.py [--at FOLDER] [--keep] [--write RESULTS.json] [--formats bfloat16 int8 int4 float32]

Writes a checkpoint with random weights (`full_checkpoint.py`: 19 GB, a minute) and removes it afterwards, unless it was
there before or --keep is given. Then, for each format, the installed command answers one question about a picture, 16
questions about it, and one about a video, its own memory watched from outside; and the phases of its work are measured
one by one beside single products of the same shapes (`full_phases.py`). Where the command refuses a format, or would
fill the memory, that is the result. JSON and a table in Markdown come out. About 6 minutes a format on 2 quiet cores.
`--size small` does the same with a checkpoint of a few megabytes, to try the benchmark itself.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from full_checkpoint import CHECKPOINT, TOWER, write_checkpoint
from full_phases import CHUNK, LONG, QUESTIONS
from PIL import Image

FORMATS = ("bfloat16", "int8", "int4", "float32")
FRAMES = 9  # of the video, at one a second
TOKENS = 16  # of each answer
WATCH_S = 0.05
MOST_SHARE = 0.92  # of the machine's memory; a process that takes more is ended before the kernel does it
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")


def processor() -> str:
    """The processor's name, its cores, and those of its instructions that matter here."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    there = set(fields.get("flags", fields.get("Features", "")).split())
    flags = ", ".join(flag for flag in FLAGS if flag in there)
    return f"{fields.get('model name', 'unknown')}, {os.cpu_count()} cores ({flags})"


def memory_bytes() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def watched(command: list[str]) -> dict[str, Any]:
    """Runs a command: seconds, exit code, the most anonymous memory of its process, and its last line of complaint."""
    began, peak, ended = time.perf_counter(), 0, False
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while child.poll() is None:
            peak = max(peak, own_memory(child.pid))
            if peak > MOST_SHARE * memory_bytes():
                child.kill()
                ended = True
            time.sleep(WATCH_S)
        said.seek(0)
        lines = [line.strip() for line in said.read().splitlines() if line.strip()]
    found = {"seconds": round(time.perf_counter() - began, 2), "peak_gib": round(peak / 2**30, 2)}
    if child.returncode == 0:
        return found
    reason = "took all of the machine's memory" if ended else (lines or ["no word"])[-1]
    return {**found, "exit_code": child.returncode, "refused": reason}


def own_memory(pid: int) -> int:
    """Bytes of a process that are no pages of a file; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def make_media(folder: Path) -> tuple[Path, Path]:
    """A picture, and a video of some seconds."""
    noise = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture, video = folder / "picture.png", folder / "video.mp4"
    Image.fromarray(noise).resize((640, 480)).save(picture)
    source = ["-f", "lavfi", "-i", f"testsrc2=s=640x480:r=10:d={FRAMES}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *source, "-pix_fmt", "yuv420p"]
    subprocess.run([*command, str(video)], check=True)
    return picture, video


def measure(checkpoint: Path, kind: str, media: tuple[Path, Path], rounds: int, *, rates: bool) -> dict[str, Any]:
    """The command's runs and the phases in one format."""
    picture, video = media
    program = Path(sys.executable).with_name("llava-mini")
    flag = "--dtype" if kind.startswith(("float", "bfloat")) else "--quantize"
    options = ["-m", str(checkpoint), flag, kind, "--max-new-tokens", str(TOKENS), "-o", "-"]

    def ask(medium: Path, questions: int) -> dict[str, Any]:
        asked = [word for question in QUESTIONS[:questions] for word in ("-p", question)]
        return watched([str(program), "ask", str(medium), *asked, *options])

    found: dict[str, Any] = {"image, 1 question": ask(picture, 1)}
    if "refused" in found["image, 1 question"]:
        return {"runs": found}
    found["image, 16 questions"] = ask(picture, len(QUESTIONS))
    found[f"video of {FRAMES} frames, 1 question"] = ask(video, 1)
    script = Path(__file__).with_name("full_phases.py")
    command = [sys.executable, str(script), str(checkpoint), kind, "--rounds", str(rounds)]
    done = subprocess.run([*command, *(["--rates"] if rates else [])], stdout=subprocess.PIPE, check=True, text=True)
    return {"runs": found, **json.loads(done.stdout.splitlines()[-1])}


def table(result: dict[str, Any]) -> str:
    """The figures in Markdown, a column for each format that ran."""
    formats: dict[str, Any] = result["formats"]
    ran = {kind: found for kind, found in formats.items() if "phases" in found}
    rows: list[list[str]] = [["", *ran], ["---"] * (len(ran) + 1)]
    if ran:
        first = next(iter(ran.values()))
        for name in first["runs"]:
            rows.append(
                [f"whole command: {name}", *(f"{found['runs'][name]['seconds']:.1f} s" for found in ran.values())]
            )
        rows.append(["each further frame", *(f"{further_frame(found):.2f} s" for found in ran.values())])
        peaks = (max(run["peak_gib"] for run in found["runs"].values()) for found in ran.values())
        rows.append(["most memory of its own", *(f"{peak:.1f} GiB" for peak in peaks)])
        rows.append(["load", *(f"{found['load_seconds']:.1f} s" for found in ran.values())])
        for name in first["phases"]:
            here = (found["phases"][name] for found in ran.values())
            rows.append([name, *(f"{one['seconds']:.2f} s ({one['share']:.0%})" for one in here)])
    lines = [f"{result['processor']}, {result['memory_gib']:.0f} GiB, torch {result['torch']}, {result['date']}", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"{kind}: {refusal(found)}" for kind, found in formats.items() if kind not in ran)]
    return "\n".join([*lines, *rate_lines(result)])


def further_frame(found: dict[str, Any]) -> float:
    """Seconds that each frame of the video after the first adds."""
    runs = found["runs"]
    return (runs[f"video of {FRAMES} frames, 1 question"]["seconds"] - runs["image, 1 question"]["seconds"]) / (
        FRAMES - 1
    )


def refusal(found: dict[str, Any]) -> str:
    """Why a format did not run."""
    run = found["runs"]["image, 1 question"]
    return f"exit code {run['exit_code']} after {run['seconds']:.1f} s: {run['refused']}"


def rate_lines(result: dict[str, Any]) -> list[str]:
    """The machine's own products and its memory."""
    rates: dict[str, Any] | None = next((one["rates"] for one in result["formats"].values() if "rates" in one), None)
    if rates is None:
        return []
    out, into = rates["shape"]
    times: dict[str, dict[str, float]] = rates["milliseconds"]
    rows = list(next(iter(times.values())))
    lines = [f"| one product, {into} x {out}, ms at rows | {' | '.join(rows)} |", f"|{'---|' * (len(rows) + 1)}"]
    lines += [f"| {kind} | {' | '.join(f'{found[row]:.1f}' for row in rows)} |" for kind, found in times.items()]
    return ["", *lines, "", f"A plain read of memory: {rates['read_gb_per_s']} GB/s."]


def main() -> None:
    """Prints the table, and writes the JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=Path, help="a folder that holds the checkpoint, or is to hold it")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint where it is")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--stored", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    folder: Path = options.at or Path(tempfile.mkdtemp(prefix="full-size-", dir=Path.cwd()))
    mine = not (folder / CHECKPOINT).exists()
    try:
        if mine:
            write_checkpoint(folder, options.size, options.stored, options.seed)
        result: dict[str, Any] = {
            "processor": processor(),
            "memory_gib": round(memory_bytes() / 2**30, 1),
            "torch": version("torch"),
            "date": date.today().isoformat(),
            "frames_of_a_chunk": CHUNK,
            "frames_of_the_long_prefix": LONG,
            "formats": {},
        }
        with tempfile.TemporaryDirectory() as media:
            made = make_media(Path(media))
            for kind in options.formats:
                rates = not any("rates" in found for found in result["formats"].values())
                found = measure(folder / CHECKPOINT, kind, made, options.rounds, rates=rates)
                result["formats"][kind] = found
                print(json.dumps({kind: found}), file=sys.stderr, flush=True)
    finally:
        if mine and not options.keep:
            for name in (CHECKPOINT, TOWER):
                shutil.rmtree(folder / name, ignore_errors=True)
            if options.at is None:
                folder.rmdir()
    if options.write:
        options.write.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
