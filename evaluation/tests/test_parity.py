"""The reference's own prompts, on files of the benchmarks' own layouts, through the real lmms-eval."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run, lmms_eval

QUESTION = "What is moving?"


def prepare(place: Path, name: str, *arguments: str | Path) -> list[dict[str, Any]]:
    output = place / "evaluation-output" / "data" / f"{name}.jsonl"
    command = [sys.executable, str(ROOT / "evaluation" / "prepare.py"), *map(str, arguments), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.endswith(", 1 without their video\n")
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    videos = place / "videos"
    videos.mkdir()
    scenes = place / "evaluation-output" / "scenes"
    (videos / "a.mp4").symlink_to(scenes / "video-001.mp4")
    (videos / "v_b.mp4").symlink_to(scenes / "video-002.mp4")
    frames = videos / "frames"
    frames.mkdir()
    for number, image in enumerate(sorted(scenes.glob("image-*.jpg"))[:3]):
        (frames / f"{number:05d}.jpg").symlink_to(image)
    asked = [{"video_name": name, "question": QUESTION, "question_id": n} for n, name in enumerate(("a", "b", "gone"))]
    (videos / "q.json").write_text(json.dumps(asked))
    (videos / "a.json").write_text(json.dumps([{"answer": "cross", "type": 1}] * 3))
    for name in ("msvd_qa", "msrvtt_qa", "activitynet_qa"):
        assert len(prepare(place, name, "video_qa", videos / "q.json", videos / "a.json", videos)) == 2
    options = {"question": QUESTION, "candidates": ["a cross", "a circle", "nothing"], "answer": "a cross"}
    (videos / "mc.json").write_text(
        json.dumps([{**options, "video": name} for name in ("a.mp4", "frames", "gone.mp4")])
    )
    (videos / "plan.json").write_text(json.dumps({"moving": ["mc.json", "."]}))
    for name in ("mvbench", "mlvu"):
        assert len(prepare(place, name, "options", videos / "plan.json")) == 2
    choices = {f"option {n}": f"thing {n}" for n in range(5)}
    ego = [{"q_uid": name, "question": QUESTION, "answer": 2, **choices} for name in ("a", "gone")]
    (videos / "ego.json").write_text(json.dumps(ego))
    assert len(prepare(place, "egoschema", "egoschema", videos / "ego.json", videos)) == 1
    names = [
        f"llava_mini_{name}" for name in ("msvd_qa", "msrvtt_qa", "activitynet_qa", "mvbench", "mlvu", "egoschema")
    ]
    done = lmms_eval(place, names, ",several_images=video", "--gen_kwargs", "max_new_tokens=16")
    assert done.code == 0, done.output
    return done


def test_the_prompt_of_mvbench_and_mlvu(run: Run) -> None:
    for name in ("llava_mini_mvbench", "llava_mini_mlvu"):
        texts = {one["input"] for one in run.samples[name]}
        assert texts == {
            "Question: What is moving?\nOptions:\n(A) a cross\n(B) a circle\n(C) nothing\nAnswer with one letter."
        }


def test_the_prompt_of_egoschema(run: Run) -> None:
    (one,) = run.samples["llava_mini_egoschema"]
    assert one["input"].startswith("You are a helpful expert in first person view video analysis.")
    assert one["input"].endswith("\nD: thing 3\nE: thing 4\n\nAnswer with one letter.")


@pytest.mark.parametrize("name", ["msvd_qa", "msrvtt_qa", "activitynet_qa"])
def test_the_prompts_of_open_questions(run: Run, name: str) -> None:
    for one in run.samples[f"llava_mini_{name}"]:
        assert one["input"].endswith(f"\n\nAnswer the question with one complete sentence:\n{QUESTION}")
        assert ("'Who is driving a car?'" in one["input"]) == (name != "activitynet_qa")
    assert 0 <= run.results[f"llava_mini_{name}"]["word_match,none"] <= 1
