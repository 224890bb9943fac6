"""What cannot be done is one line, and no trace of where in the code it was found out."""

import json
from pathlib import Path

import pytest
from conftest import TASKS, lmms_eval
from PIL import Image

SCENES = TASKS / "scenes"


def last_line(place: Path, name: str, arguments: str = "", paths: tuple[Path, ...] = (TASKS,)) -> str:
    done = lmms_eval(place, [name], arguments, paths=paths)
    assert done.code == 1, done.output
    assert "Traceback" not in done.output
    lines = [line for line in done.output.splitlines() if line.startswith("llava_mini: ")]
    assert len(lines) == 1, done.output
    return lines[0]


def test_a_model_argument_that_does_not_exist(place: Path) -> None:
    assert last_line(place, "llava_mini_scenes", ",fsp=1").startswith(
        "llava_mini: model_args: there is no 'fsp'; there are"
    )


def own_task(folder: Path, rows: list[dict[str, object]]) -> Path:
    """A folder with a task `own` of some rows."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = (SCENES / "llava_mini_scenes.yaml").read_text()
    text = text.replace("evaluation-output/scenes/questions.jsonl", str(folder / "rows.jsonl"))
    (folder / "own.yaml").write_text(text.replace("task: llava_mini_scenes", "task: own"))
    (folder / "utils.py").write_text(
        (SCENES / "utils.py").read_text()
        + "\n\ndef two(doc: Row) -> list[Any]:\n    return 2 * scene_doc_to_visual(doc)\n"
    )
    return folder


def test_a_missing_medium(place: Path, tmp_path: Path) -> None:
    row = {"file": "/nowhere/gone.mp4", "media": "video", "question": "What moves?", "answer": "x", "kind": "moving"}
    line = last_line(place, "own", paths=(own_task(tmp_path / "own", [row]),))
    assert line == "llava_mini: /nowhere/gone.mp4: no such file (failures=empty goes on without it)"


@pytest.mark.parametrize("several", ["error", "video"])
def test_several_images(place: Path, tmp_path: Path, several: str) -> None:
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    row = {"file": str(tmp_path / "red.png"), "media": "image", "question": "What is shown?", "answer": "x"}
    folder = own_task(tmp_path / "own", [row])
    task = folder / "own.yaml"
    task.write_text(task.read_text().replace("utils.scene_doc_to_visual", "utils.two"))
    if several == "error":
        line = last_line(place, "own", paths=(folder,))
        assert line.startswith("llava_mini: own (test), row 0: shows 2 pictures; llava-mini looks at one")
    else:
        done = lmms_eval(place, ["own"], ",several_images=video", paths=(folder,))
        assert done.code == 0, done.output
        assert len(done.samples["own"]) == 1
