"""The scripts beside the plug-in: the report of the paper's benchmarks, and how the parity tasks ask and score."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EVALUATION = Path(__file__).parents[1] / "evaluation"


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(f"evaluation_{Path(name).stem}", EVALUATION / name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


report = script("report.py")
parity = script("tasks/parity/utils.py")
PAPER = json.loads((EVALUATION / "paper.json").read_text())


def results(path: Path, date: str, tasks: dict[str, dict[str, object]], limit: int | None = None) -> Path:
    path.write_text(json.dumps({"date": date, "results": tasks, "config": {"limit": limit}, "n-samples": {}}))
    return path


def line_of(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
    return line


def test_the_table_has_all_benchmarks_of_the_paper() -> None:
    text = report.table(PAPER, {})
    names = [one["name"] for one in PAPER["benchmarks"]]
    assert len(names) == 11 + 6 + 5  # the fifth video benchmark, the generative one, has five figures
    assert all(line.endswith("|  |") for line in text.splitlines() if line.startswith(tuple(f"| {n}" for n in names)))
    assert "| 60.9 | 61.8 | 61.3 |" in line_of(text, "GQA")
    assert "| 51.2 | - | - |" in line_of(text, "EgoSchema")


def test_the_newest_result_of_a_task_counts_and_what_is_not_the_papers_way_is_said(tmp_path: Path) -> None:
    parts = next(one for one in PAPER["benchmarks"] if one["name"] == "MVBench")["tasks"][0]["parts"]
    results(tmp_path / "b_results.json", "20260102_000000", {"gqa": {"exact_match,none": 0.613}}, 8)
    old = {"gqa": {"exact_match,none": 0.1}, "mme": {"mme_perception_score,none": 1522.74}}
    results(tmp_path / "a_results.json", "20260101_000000", old)
    many: dict[str, dict[str, object]] = {part: {"mvbench_accuracy,none": float(n)} for n, part in enumerate(parts)}
    alone = results(tmp_path / "one.json", "20260101_000000", many | {"pope": {"pope_f1_score,none": []}})
    text = report.table(PAPER, report.read_results([tmp_path, alone]))
    assert line_of(text, "GQA").endswith("| 61.3 (first 8 alone) |")
    assert line_of(text, "MME").endswith("| 1522.7 (perception) |")
    assert line_of(text, "MVBench").endswith("| 9.5 (mvbench) |")
    assert line_of(text, "POPE").endswith("|  |")
    many.popitem()
    results(alone, "20260101_000000", many)
    assert line_of(report.table(PAPER, report.read_results([alone])), "MVBench").endswith("|  |")


@pytest.mark.parametrize("content", [None, "", "[]", '{"results": []}', '{"date": 1, "results": 3}', "{", b"\xff"])
def test_what_is_no_result_is_one_line(
    content: str | bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x_results.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(sys, "argv", ["report.py", str(path)])
    with pytest.raises(SystemExit, match=r"^report\.py: .*x_results\.json: holds no results of lmms-eval$"):
        report.main()
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="holds no"):
        report.main()


def test_the_table_of_the_docs_is_the_reports() -> None:
    text = (EVALUATION.parent / "docs" / "evaluation.md").read_text()
    assert report.table(PAPER, {}) in text


DOC: dict[str, Any] = {"question": "Who?", "options": ["a cat", "a dog"], "answer": "a dog", "kind": "x"}


@pytest.mark.parametrize(
    ("said", "right"),
    [("B", True), ("(B) a dog", True), ("B) a dog", True), ("b", False), ("A", False), ("a dog", False)],
)
def test_options_are_scored_by_the_letter(said: str, right: bool) -> None:
    assert parity.options_process_results(DOC, [said]) == {"accuracy": {"kind": "x", "right": right}}
    assert parity.options_doc_to_text(DOC) == "Question: Who?\nOptions:\n(A) a cat\n(B) a dog\nAnswer with one letter."


@pytest.mark.parametrize(("said", "right"), [("C", True), ("it is C, or D", True), ("", False), ("Dear C", False)])
def test_egoschema_is_scored_by_the_first_letter(said: str, right: bool) -> None:
    found = parity.egoschema_process_results({"answer": "2", "kind": "e"}, [said])
    assert found == {"accuracy": {"kind": "e", "right": right}}


def test_kinds_weigh_the_same() -> None:
    found = [{"kind": "a", "right": True}, {"kind": "a", "right": False}, {"kind": "b", "right": True}]
    assert parity.mean_of_kinds(found) == pytest.approx(75.0)


@pytest.mark.parametrize(("said", "match"), [("The man drives a CAR.", 1.0), ("a carpet", 0.0), ("", 0.0)])
def test_words_match_as_words(said: str, match: float) -> None:
    assert parity.word_process_results({"answer": "car"}, [said]) == {"word_match": match}
