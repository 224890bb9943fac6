"""Rendered scenes through the real lmms-eval: the same answers as `llava-mini ask` gives about the same files."""

import json
from math import exp
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, ask, likely, lmms_eval, said
from make_scenes import CHOICES

NAMES = ("llava_mini_scenes", "llava_mini_scenes_choices", "llava_mini_scenes_target")


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """All three tasks, with the row of the data set in each sample."""
    done = lmms_eval(place, NAMES)
    assert done.code == 0, done.output
    for name, samples in done.samples.items():
        data = place / "evaluation-output" / "scenes" / ("choices.jsonl" if "choices" in name else "questions.jsonl")
        for sample, line in zip(samples, data.read_text().splitlines(), strict=True):
            sample["doc"] = json.loads(line)
    return done


@pytest.fixture(scope="module")
def table(place: Path) -> Path:
    return place / "evaluation-output" / "scenes" / "ask.jsonl"


@pytest.fixture(scope="module")
def columns(table: Path) -> list[str]:
    """Options that name the columns of questions."""
    kinds = {name: None for line in table.read_text().splitlines() for name in json.loads(line) if name != "path"}
    return [word for kind in kinds for word in ("--prompt-column", kind)]


@pytest.fixture(scope="module")
def written(table: Path, columns: list[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of `ask` by file and kind of question."""
    rows = ask(str(table), *columns, "--max-new-tokens", "64")
    return {(row["id"], row["prompt_name"]): row for row in rows}


def key(sample: dict[str, Any]) -> tuple[str, str]:
    return sample["doc"]["file"], sample["doc"]["kind"]


def test_there_are_200_questions_about_60_images_and_20_videos(run: Run) -> None:
    docs = [sample["doc"] for sample in run.samples["llava_mini_scenes"]]
    files = {doc["file"] for doc in docs}
    assert (len(docs), len(files), sum(name.endswith(".mp4") for name in files)) == (200, 80, 20)


def test_answers_and_score_are_those_of_ask(run: Run, written: dict[tuple[str, str], dict[str, Any]]) -> None:
    samples = run.samples["llava_mini_scenes"]
    assert {key(sample): said(sample) for sample in samples} == {one: row["text"] for one, row in written.items()}
    right = sum(written[key(sample)]["text"] == sample["target"] for sample in samples) / len(samples)
    assert run.results["llava_mini_scenes"]["exact_match,none"] == pytest.approx(right)
    assert right > 0.8  # the demo model knows its world


def test_tokens_are_counted(run: Run, written: dict[tuple[str, str], dict[str, Any]]) -> None:
    for sample in run.samples["llava_mini_scenes"]:
        row = written[key(sample)]
        (counts,) = sample["token_counts"]
        assert counts["input_tokens"] == row["prompt_tokens"] + row["vision_tokens"]
        assert counts["output_tokens"] == row["completion_tokens"]


def test_choices_have_the_probabilities_of_ask(run: Run, table: Path, columns: list[str]) -> None:
    kinds = [kind for kind in columns[1::2] if kind in CHOICES]
    given = [word for kind in kinds for word in ("--choices", f"{kind}={json.dumps(CHOICES[kind])}")]
    asked = [word for kind in kinds for word in ("--prompt-column", kind)]
    rows = {(row["id"], row["prompt_name"]): row for row in ask(str(table), *asked, *given)}
    samples = run.samples["llava_mini_scenes_choices"]
    assert len(samples) == len(rows) > 100
    for sample in samples:
        row = rows[key(sample)]
        assert list(row["choice_probs"]) == sample["doc"]["choices"]
        weights = [exp(-loss) for loss, _ in likely(sample)]
        shares = [weight / sum(weights) for weight in weights]
        assert shares == pytest.approx(list(row["choice_probs"].values()), abs=1e-4)
    right = sum(rows[key(sample)]["choice"] == sample["target"] for sample in samples) / len(samples)
    assert run.results["llava_mini_scenes_choices"]["acc,none"] == pytest.approx(right)


def test_a_target_that_comes_as_a_callable_has_the_loss_of_the_same_choice(run: Run) -> None:
    choices = {key(sample): sample for sample in run.samples["llava_mini_scenes_choices"]}
    shared = [sample for sample in run.samples["llava_mini_scenes_target"] if key(sample) in choices]
    assert len(shared) == len(choices)
    for sample in shared:
        other = choices[key(sample)]
        loss, _ = likely(other)[other["doc"]["choices"].index(sample["target"])]
        assert likely(sample)[0][0] == pytest.approx(loss, abs=1e-4)


def test_a_target_is_greedy_where_it_is_what_was_written(run: Run) -> None:
    written = {key(sample): said(sample) for sample in run.samples["llava_mini_scenes"]}
    for sample in run.samples["llava_mini_scenes_target"]:
        assert likely(sample)[0][1] == (written[key(sample)] == sample["target"])


def test_a_response_cache_and_another_order_change_nothing(place: Path, run: Run) -> None:
    cache, more = str(place / "cache"), ("--batch_size", "7", "--limit", "30")
    for _ in range(2):
        again = lmms_eval(place, NAMES[1::-1], "", "--use_cache", cache, *more)
        assert again.code == 0, again.output
        words, choices = (again.samples[name] for name in NAMES[:2])
        assert [said(one) for one in words] == [said(one) for one in run.samples[NAMES[0]][:30]]
        for one, other in zip(choices, run.samples[NAMES[1]][:30], strict=True):
            assert [loss for loss, _ in likely(one)] == pytest.approx([loss for loss, _ in likely(other)], abs=1e-4)
