"""Makes the lists of the parity tasks from the benchmarks' own files, which the reference's scripts read, too.

    python evaluation/prepare.py video_qa QUESTIONS.json ANSWERS.json VIDEOS -o evaluation-output/data/msvd_qa.jsonl
    python evaluation/prepare.py options PLAN.json -o evaluation-output/data/mvbench.jsonl
    python evaluation/prepare.py egoschema QUESTIONS.json VIDEOS -o evaluation-output/data/egoschema.jsonl

video_qa: MSVD-QA, MSRVTT-QA and ActivityNet-QA (whose videos are called v_NAME) as Video-ChatGPT's scripts want them.
options: MVBench and MLVU. PLAN.json says where each kind is: {"kind": ["questions.json", "folder of videos"], ...},
relative to its own folder. egoschema: questions with q_uid, "option 0" to "option 4" and the index of the answer.

A question without its video is left out, as in the reference, and counted on standard error.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv")
Row = dict[str, Any]


def video_of(folder: Path, name: str) -> Path | None:
    """The video of a name without its suffix."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").exists()), None)


def video_qa(questions: Path, answers: Path, videos: Path) -> Iterator[tuple[Row, Path | None]]:
    told = json.loads(answers.read_text())
    for number, one in enumerate(json.loads(questions.read_text())):
        name = str(one["video_name"])
        row = {
            "id": str(one["question_id"]),
            "question_id": str(one["question_id"]),
            "video_name": name,
            "question": one["question"],
            "answer": str(told[number]["answer"]),
            "kind": str(told[number].get("type", "")),
        }
        yield row, video_of(videos, name) or video_of(videos, f"v_{name}")


def options(plan: Path) -> Iterator[tuple[Row, Path | None]]:
    for kind, (questions, videos) in json.loads(plan.read_text()).items():
        for number, one in enumerate(json.loads((plan.parent / questions).read_text())):
            path = plan.parent / videos / one["video"]
            row = {
                "id": f"{kind} {number}",
                "question": one["question"],
                "options": one["candidates"],
                "answer": one["answer"],
                "kind": kind,
            }
            yield row, path if path.exists() else None


def egoschema(questions: Path, videos: Path) -> Iterator[tuple[Row, Path | None]]:
    for one in json.loads(questions.read_text()):
        row = {
            "id": one["q_uid"],
            "question": one["question"],
            "options": [one[f"option {number}"] for number in range(5)],
            "answer": str(one["answer"]),
            "kind": "egoschema",
        }
        yield row, video_of(videos, one["q_uid"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for function, names in (
        (video_qa, ("questions", "answers", "videos")),
        (options, ("plan",)),
        (egoschema, ("questions", "videos")),
    ):
        kind = kinds.add_parser(function.__name__)
        for name in names:
            kind.add_argument(name, type=Path)
        kind.add_argument("-o", "--output", type=Path, required=True)
        kind.set_defaults(read=function, names=names)
    arguments = parser.parse_args()
    rows = list(arguments.read(*(getattr(arguments, name) for name in arguments.names)))
    there = [{**row, "file": str(path.absolute())} for row, path in rows if path is not None]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("".join(f"{json.dumps(row)}\n" for row in there))
    print(f"{arguments.output}: {len(there)} questions, {len(rows) - len(there)} without their video", file=sys.stderr)


if __name__ == "__main__":
    main()
