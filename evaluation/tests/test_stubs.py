"""The tasks of lmms-eval itself, on data sets of the real ones' columns, without network."""

from pathlib import Path

import pytest
from conftest import Run, likely, lmms_eval, said
from stub_data import MV_FOLDERS, write_all

WRITTEN = {  # tasks that want an answer in words, with a metric of each
    "pope": "pope_accuracy,none",
    "mme": "mme_perception_score,none",
    "gqa": "exact_match,none",
    "textvqa_val": "exact_match,none",
    "scienceqa_img": "exact_match,none",
    "seedbench": "seed_all,none",
    "mlvu_dev": "mlvu_percetion_score,none",
    "egoschema_subset": "score,none",
}
CHOSEN = {"seedbench_ppl": "acc,none", "egoschema_subset_mcppl": "score,none"}  # that want a choice


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    scenes = place / "evaluation-output" / "scenes"
    write_all(place / "hf", sorted(scenes.glob("image-*"))[:3], sorted(scenes.glob("video-*"))[:3])
    done = lmms_eval(place, [*WRITTEN, *CHOSEN, "mvbench"], ",several_images=middle")
    assert done.code == 0, done.output
    return done


@pytest.mark.parametrize("task", WRITTEN)
def test_a_task_in_words(run: Run, task: str) -> None:
    samples = run.samples[task]
    assert len(samples) == (4 if task == "mme" else 3)
    assert all(said(one) for one in samples)
    assert all(one["token_counts"][0]["input_tokens"] > 0 for one in samples)
    assert isinstance(run.results[task][WRITTEN[task]], float | int)


@pytest.mark.parametrize("task", CHOSEN)
def test_a_task_with_choices(run: Run, task: str) -> None:
    samples = run.samples[task]
    assert len(samples) == 3
    for one in samples:
        losses = [loss for loss, _ in likely(one)]
        assert len(losses) == (4 if task == "seedbench_ppl" else 5)
        assert all(loss > 0 for loss in losses)
        assert len(set(losses)) == len(losses)
    assert 0 <= run.results[task][CHOSEN[task]] <= 1


def test_all_parts_of_mvbench(run: Run) -> None:
    for part in MV_FOLDERS:
        assert len(run.samples[f"mvbench_{part}"]) == 3
        assert 0 <= run.results[f"mvbench_{part}"]["mvbench_accuracy,none"] <= 100
