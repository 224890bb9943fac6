"""The paper's benchmarks as a table: what each needs, the paper's figures, and those of your own runs beside them.

    python evaluation/report.py                     the table with an empty column to fill
    python evaluation/report.py RESULTS... > table.md

RESULTS are result files of lmms-eval (`DATE_results.json`) or folders that hold some. Of several results for a task the
newest one counts. Figures of a task that is not the paper's own way of counting are marked.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAPER = Path(__file__).parent / "paper.json"
EMPTY = ""


class BadResults(Exception):
    """A file that holds no results of lmms-eval."""


@dataclass(frozen=True)
class Result:
    """A figure of one task."""

    value: float
    count: int | None  # questions that were asked; None: not known
    limit: object  # of questions; None: all were asked


def result_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files of results among files and folders. Raises `BadResults` for a folder without any."""
    for path in paths:
        found = sorted(path.rglob("*_results.json")) if path.is_dir() else [path]
        if not found:
            raise BadResults(f"{path}: holds no *_results.json of lmms-eval")
        yield from found


def read_results(paths: Iterable[Path]) -> dict[str, Mapping[str, Any]]:
    """What the newest file says of each task. Raises `BadResults`."""
    newest: dict[str, Mapping[str, Any]] = {}
    files: list[tuple[str, Mapping[str, Any]]] = []
    for path in result_files(paths):
        try:
            content = json.loads(path.read_text())
            date, results = str(content["date"]), content["results"]
            if not isinstance(results, dict):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError):
            raise BadResults(f"{path}: holds no results of lmms-eval") from None
        files.append((date, content))
    for _, content in sorted(files, key=lambda pair: pair[0]):
        limit = (content.get("config") or {}).get("limit")
        for task, metrics in content["results"].items():
            if isinstance(metrics, dict):
                newest[task] = {
                    "metrics": metrics,
                    "limit": limit,
                    "samples": (content.get("n-samples") or {}).get(task),
                }
    return newest


def figure(found: Mapping[str, Mapping[str, Any]], task: Mapping[str, Any]) -> Result | None:
    """The figure of a task, or the mean (or sum) of its parts; None where one of them is missing."""
    values: list[float] = []
    counts: list[int | None] = []
    limit = None
    for part in task.get("parts") or [task["task"]]:
        entry = found.get(part)
        for metric in task["metrics"]:
            value = None if entry is None else entry["metrics"].get(f"{metric},none")
            if entry is None or isinstance(value, bool) or not isinstance(value, int | float):
                return None
            values.append(float(value))
            counts.append((entry["samples"] or {}).get("effective"))
            limit = limit if entry["limit"] in (None, -1) else entry["limit"]
    total = sum(values) * task.get("factor", 1) / (1 if task.get("is_sum") else len(values))
    known = [count for count in counts if count is not None]
    return Result(total, sum(known) if len(known) == len(counts) else None, limit)


def cell(found: Mapping[str, Mapping[str, Any]], benchmark: Mapping[str, Any]) -> str:
    """The figures of the tasks of a benchmark that were run."""
    cells: list[str] = []
    for task in benchmark["tasks"]:
        result = figure(found, task)
        if result is None:
            continue
        notes = [task["task"]] if len(benchmark["tasks"]) > 1 else []
        notes += [task["note"]] if "note" in task else []
        notes += (
            []
            if result.limit is None
            else [f"first {result.limit:g} alone" if isinstance(result.limit, int | float) else str(result.limit)]
        )
        cells.append(f"{result.value:.1f}" + (f" ({', '.join(notes)})" if notes else ""))
    return "; ".join(cells)


def table(paper: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole table as Markdown."""
    models = paper["models"]
    head = ["benchmark", "task of lmms-eval", "needs", *models, "here"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for one in paper["benchmarks"]:
        figures = [str(one["figures"].get(model, "-")) for model in models]
        tasks = ", ".join(f"`{task['task']}`" for task in one["tasks"])
        lines.append(f"| {' | '.join([one['name'], tasks, one['needs'], *figures, cell(found, one) or EMPTY])} |")
    return "\n".join([*lines, "", paper["source"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    arguments = parser.parse_args()
    try:
        print(table(json.loads(PAPER.read_text()), read_results(arguments.results)))
    except BadResults as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
