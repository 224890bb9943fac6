"""What several questions about a medium cost beside one, through the plug-in: seconds, and frames that were encoded.

    .venv-eval/bin/python evaluation/cost.py [MODEL] [--scenes evaluation-output/scenes] [--questions 5]

Every medium of the scenes is asked one question, then as many as `--questions` says, all different; the least of three
times each, taken in turn.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance

from llava_mini_cli.evaluate.plugin import LlavaMini

QUESTIONS = (
    "How many shapes are there?",
    "Is there a red circle?",
    "What colour is the background?",
    "Is there a blue square?",
    "What is moving?",
    "Is there a green cross?",
    "Is there a yellow triangle?",
    "What appears first?",
)


def show(row: dict[str, Any]) -> list[str]:
    return [row["path"]]


def timed(model: LlavaMini, media: int, questions: int) -> tuple[float, int]:
    """Seconds, and frames that were encoded."""
    options = {"max_new_tokens": 16, "do_sample": False}
    before = model.engine.frames_encoded
    requests = [
        Instance(
            "generate_until",
            (text, dict(options), show, row, "task", "test"),
            0,
            {"task": "task", "doc_id": row, "repeats": 1},
        )
        for row in range(media)
        for text in QUESTIONS[:questions]
    ]
    began = time.perf_counter()
    model.generate_until(requests)
    return time.perf_counter() - began, model.engine.frames_encoded - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--scenes", type=Path, default=Path("evaluation-output/scenes"))
    parser.add_argument("--questions", type=int, default=5, choices=range(2, len(QUESTIONS) + 1))
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in (arguments.scenes / "ask.jsonl").read_text().splitlines()]
    model = LlavaMini(pretrained=arguments.model)
    model.task_dict = {"task": {"test": rows}}
    timed(model, len(rows), 1)
    one, many = list[tuple[float, int]](), list[tuple[float, int]]()
    for _ in range(3):
        one.append(timed(model, len(rows), 1))
        many.append(timed(model, len(rows), arguments.questions))
    for questions, found in ((1, one), (arguments.questions, many)):
        print(f"{questions} x {len(rows)} media: {min(found)[0]:.2f} s, {found[0][1]} frames encoded")
    print(f"ratio {min(many)[0] / min(one)[0]:.2f}")


if __name__ == "__main__":
    main()
