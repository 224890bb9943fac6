"""Answers of a model with random weights, held to schemas: valid, or an error that says so."""

from pathlib import Path

import pytest
from fields import RANDOM_SCHEMAS, faults_of, made_rows, noise_pictures
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.pipelines.load_engine import load_engine
from llava_mini_cli.pipelines.run_parts import AnswerEngine
from llava_mini_cli.pipelines.settings import RunOptions


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    write_tiny_checkpoint(folder / "model")
    return folder


@pytest.fixture(scope="module")
def engine(place: Path) -> AnswerEngine:
    return load_engine(ModelOptions(str(place / "model"), device="cpu", dtype="float32"))


@pytest.mark.parametrize("name", RANDOM_SCHEMAS)
def test_random_answers_are_valid_or_errors(place: Path, engine: AnswerEngine, name: str) -> None:
    model = ModelOptions(str(place / "model"), device="cpu", dtype="float32")
    options = RunOptions(model, SamplingOptions(), GenerationOptions(max_new_tokens=96))
    files = noise_pictures(place, 3)
    rows = made_rows(engine, name, files, options)
    assert len(rows) == 3
    assert faults_of(RANDOM_SCHEMAS[name], rows) == []
    if name in ("labels", "numbers"):
        assert {row.status for row in rows} == {"ok"}


def test_a_flat_schema_as_one_text_is_valid_too(place: Path, engine: AnswerEngine) -> None:
    model = ModelOptions(str(place / "model"), device="cpu", dtype="float32")
    options = RunOptions(model, SamplingOptions(), GenerationOptions(max_new_tokens=96))
    rows = made_rows(engine, "labels", noise_pictures(place, 3), options, "json")
    assert faults_of(RANDOM_SCHEMAS["labels"], rows) == []
    assert {row.status for row in rows} == {"ok"}
