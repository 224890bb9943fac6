"""SIGKILL at random moments of `index`, `index --features`, `--prune` and `--compact`, as a user runs them.

    python benchmarks/archive_kills.py [--kills 60] [--seed 0]

After each, `search` and `ask --index` have to say what they said before the step or what they say after it, and the
next run has to take away every file that is no part's. The commands are forks of this program, which has imported
everything.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import llava_mini_cli.engine.load
import llava_mini_cli.pipelines.find  # noqa: F401 - what a command imports when it begins
from llava_mini_cli.__main__ import main as llava_mini
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import Scene, Thing

STEPS = ("index", "features", "prune", "compact")
MEDIA = [
    f"{colour}-{shape}" for colour in ("red", "blue", "green", "yellow") for shape in ("circle", "square", "cross")
]


def begin(arguments: Sequence[str | Path], out: Path) -> int:
    """A command in a fork, its standard output in a file; the number of the process."""
    child = os.fork()
    if child:
        return child
    with contextlib.suppress(BaseException):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.argv = ["llava-mini", *map(str, arguments)]
        try:
            llava_mini()
        except SystemExit as error:
            sys.stdout.flush()
            os._exit(error.code if isinstance(error.code, int) else 1)
        os._exit(0)
    os._exit(99)


def run(arguments: Sequence[str | Path], out: Path) -> int:
    """The exit code of a command."""
    return os.waitstatus_to_exitcode(os.waitpid(begin(arguments, out), 0)[1])


def said(archive: Path, out: Path) -> str:
    """What a search and a question say of an archive, with their exit codes; answers come in any order."""
    codes = [run(["search", archive, "a red circle", "-k", "99", "-q"], out)]
    found = out.read_text()
    codes.append(run(["ask", "--index", archive, "What shape is shown?", "--max-new-tokens", "3", "-q"], out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return json.dumps([codes, found, sorted((row["id"], row["status"], row["text"]) for row in rows)])


def strays(archive: Path) -> list[str]:
    """Files that are of no part that counts."""
    parts = json.loads((archive / "parts.json").read_text())["parts"]
    files = {f"{table}/part-{int(number):06d}" for number, facts in parts.items() for table in facts}
    there = {f"{path.parent.name}/{path.stem}" for path in archive.glob("*/*")}
    return sorted(there ^ files) + sorted(path.name for path in archive.glob(".llava-mini*"))


def prepare(step: str, base: Path) -> tuple[Path, list[str | Path], list[str | Path]]:
    """An archive before a step, the step, and a run that changes nothing by itself."""
    media, archive = base / step / "media", base / step / "archive"
    media.mkdir(parents=True)
    for number, name in enumerate(MEDIA):
        colour, shape = name.split("-")
        scene = Scene((Thing(shape, colour, "large", 0.5, 0.5),), "black")
        rng = np.random.default_rng(number)
        Image.fromarray(render(scene, random_look(rng, "black"), 192, rng)).save(media / f"{name}.png")
    every = sorted(media.iterdir())
    options = ["-o", archive, "-m", "demo", "-q", *(["--features"] if step in ("features", "compact") else [])]
    batches = [every[:6]] if step in ("index", "features") else [every[:4], every[4:8], every[8:]]
    for batch in batches:
        assert run(["index", *batch, *options], base / "out") == 0
    if step in ("prune", "compact"):
        for path in every[::3]:
            path.unlink()
    if step == "compact":
        assert run(["index", *options, "--prune"], base / "out") == 0
        return archive, ["index", "-o", archive, "--compact", "-q"], ["index", every[1], *options]
    step_options = ["--prune"] if step == "prune" else every[6:]
    return archive, ["index", *step_options, *options], ["index", every[1], *options]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, counts = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        out = base / "out"
        made = {}
        for step in STEPS:
            archive, command, later = prepare(step, base)
            kept = shutil.copytree(archive, archive.with_name("kept"))
            before = said(archive, out)
            began = time.monotonic()
            assert run(command, out) == 0
            seconds = time.monotonic() - began
            made[step] = archive, kept, command, later, before, said(archive, out), seconds
        for number in range(arguments.kills):
            step = STEPS[number % len(STEPS)]
            archive, kept, command, later, before, after, seconds = made[step]
            shutil.rmtree(archive)
            shutil.copytree(kept, archive)
            child = begin(command, out)
            time.sleep(generator.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            now = said(archive, out)
            state = "before" if now == before else "after" if now == after else "BETWEEN"
            left = len(strays(archive))
            code = run(later, out)
            counts.update([f"{step}: {state}", *(["files left"] if left else [])])
            counts.update(["FILES STAY"] if strays(archive) or code else [])
            print(number, step, ended, state, f"{left} files left, then", strays(archive), flush=True)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
