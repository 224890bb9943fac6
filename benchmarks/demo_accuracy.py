"""Exact-match accuracy of the demo model on held-out scenes, by kind, with 95 % intervals (`make demo-accuracy`).

    python benchmarks/demo_accuracy.py                         the table of the model card
    python benchmarks/demo_accuracy.py --count 50 --kinds colour,direction
    python benchmarks/demo_accuracy.py --quantize int8         what fewer bits lose on a CPU (or --dtype bfloat16)
    python benchmarks/demo_accuracy.py --card                  with 10 minutes and 1 hour, into the model's README.md,
                                                               beside what demo_paths.py found last

One question a scene, greedy answers, exact match after stripping. Held-out wording, layouts and canvas sizes are
never trained on. `--jobs` kinds are asked at once, on one thread each.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import torch

from llava_mini_cli.config import Quantization
from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.image_questions import IMAGE_KINDS
from llava_mini_cli.engine.quantize import Packing
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.train.demo_preset.score import ALL_KINDS, Score, score

PATHS = Path(__file__).parent / "results" / "demo_paths.json"  # of demo_paths.py
FEW = {"brief_10min": 20, "brief_1h": 10}  # questions: one of the latter takes half a minute


@cache
def load(
    directory: str, dtype: str = "float32", quantize: Quantization | None = None
) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    packing = Packing(quantize, getattr(torch, dtype)) if quantize else None
    model = LlavaMiniForConditionalGeneration.from_pretrained(directory, dtype=dtype, maker=packing)
    return model, LlavaMiniProcessor.from_pretrained(directory)


def kind_score(directory: str, count: int, split: str, dtype: str, quantize: Quantization | None, kind: str) -> Score:
    """The score of one kind, printed when it is there."""
    torch.set_num_threads(1)
    began = time.monotonic()
    model, processor = load(directory, dtype, quantize)
    batch, number = (1, min(count, FEW[kind])) if kind in FEW else (16, count)
    found = score(model, processor, kind, number, split, batch)  # type: ignore[arg-type]
    print(f"{found.line()}   {time.monotonic() - began:.0f} s", flush=True)
    return found


def total(name: str, scores: list[Score]) -> Score:
    return Score(name, sum(s.right for s in scores), sum(s.asked for s in scores))


TARGETS = {  # percent, what the project set itself
    "caption": 85.0,
    "video_caption": 0.0,
    "yesno": 95.0,
    "video_yesno": 95.0,
    "all images": 95.0,
    "all videos": 90.0,
    **dict.fromkeys(FEW, 0.0),
    **dict.fromkeys(
        ("direction", "order", "event_count", "appears", "vanishes", "brief", "moving", "brief_2min"), 80.0
    ),
}
IMAGE_TARGET = 90.0  # of every other kind of image question


def write_card(directory: Path, scores: list[Score]) -> None:
    """The model card with these figures, and which of the project's targets they miss."""
    rows = [
        f"| {s.kind} | {100 * s.share:.1f} % | {100 * s.interval[0]:.1f} to {100 * s.interval[1]:.1f} % | {s.asked} |"
        for s in scores
    ]
    missed = [f"{s.kind} ({t:.0f} %)" for s in scores if 100 * s.share < (t := TARGETS.get(s.kind, IMAGE_TARGET))]
    verdict = "Every target that the project set for it is met."
    if missed:
        verdict = f"Targets that this version misses: {', '.join(missed)}."
    parameters = sum(parameter.numel() for parameter in load(str(directory))[0].parameters())
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    facts = json.loads((directory / "training.json").read_text())
    paths = json.loads(PATHS.read_text())
    roads = [f"| {p['media']} | {p['road']} | {100 * p['right'] / p['asked']:.1f} % | {p['asked']} |" for p in paths]
    template = (Path(__file__).parent / "demo_card.md").read_text()
    fields = {
        "table": "\n".join(rows),
        "roads": "\n".join(roads),
        "verdict": verdict,
        "training": facts["origin"],
        "vocabulary": vocabulary,
        "parameters": f"{parameters / 1e6:.1f}",
    }
    (directory / "README.md").write_text(template.format(**fields))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(model_dir()))
    parser.add_argument("--count", type=int, default=200, help="questions of each kind")
    parser.add_argument("--split", default="heldout", choices=("heldout", "validation", "train"))
    parser.add_argument("--kinds", default="", help="which, with commas; all")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--card", action="store_true", help="write the figures into the model's README.md")
    arguments = parser.parse_args()
    if not (Path(arguments.model) / "config.json").is_file():
        sys.exit(f"no model in {arguments.model}")
    every = [*ALL_KINDS, *(FEW if arguments.card else ())]
    kinds = arguments.kinds.split(",") if arguments.kinds else every
    longest_first = sorted(kinds, key=lambda kind: kind not in FEW)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        ask = partial(
            kind_score, arguments.model, arguments.count, arguments.split, arguments.dtype, arguments.quantize
        )
        answered = dict(zip(longest_first, pool.map(ask, longest_first), strict=True))
    scores = [answered[kind] for kind in kinds]
    images = [s for s in scores if s.kind in IMAGE_KINDS and s.kind != "caption"]
    videos = [s for s in scores if s.kind not in IMAGE_KINDS and s.kind not in ("video_caption", "brief_2min", *FEW)]
    for name, group in (("all images", images), ("all videos", videos)):
        if len(group) > 1:
            scores.append(total(name, group))
            print(scores[-1].line())
    if arguments.card:
        write_card(Path(arguments.model), scores)


if __name__ == "__main__":
    main()
