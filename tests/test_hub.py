"""A hub model in the cache: whole, or what a download that was broken off left."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from llava_mini_cli.errors import ModelNotFound
from llava_mini_cli.hub import find_model, find_tower

NAME = "someone/model"
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
PICKLES = json.dumps({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}})
SHARDS = {"model-00001-of-00002.safetensors": "x", "model-00002-of-00002.safetensors": "x"}


def cached(place: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str]) -> Path:
    """The snapshot of `NAME` in a cache of its own, as the hub's client lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    folder = place / "models--someone--model"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": "x"},
        {"pytorch_model.bin": "x"},
        {"model.safetensors.index.json": INDEX, **SHARDS},
        # Only the safetensors are fetched where there are both, and every index is.
        {"model.safetensors.index.json": INDEX, **SHARDS, "pytorch_model.bin.index.json": PICKLES},
    ],
)
def test_a_whole_snapshot_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str]) -> None:
    snapshot = cached(tmp_path, monkeypatch, {"config.json": "{}", **files})
    assert find_model(NAME) == snapshot


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({"model.safetensors": "x"}, "config.json"),
        ({"config.json": "{}"}, "model.safetensors"),
        ({"config.json": "{}", "model-00001-of-00002.safetensors": "x"}, "model.safetensors"),
        (
            {"config.json": "{}", "model.safetensors.index.json": INDEX, "model-00001-of-00002.safetensors": "x"},
            "model-00002-of-00002.safetensors",
        ),
        ({"config.json": "{}", "model.safetensors.index.json": "{", **SHARDS}, "model.safetensors.index.json"),
        # What else lies there does not stand for the weights.
        (
            {"config.json": "{}", "mm_projector.bin": "x", "pytorch_model.bin.index.json": PICKLES},
            "pytorch_model-00001-of-00001.bin",
        ),
        (
            {"config.json": "{}", "pytorch_model.bin": "x", "model.safetensors.index.json": INDEX},
            "model-00001-of-00002.safetensors",
        ),
    ],
)
def test_a_snapshot_in_part_says_what_is_missing_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], missing: str
) -> None:
    cached(tmp_path, monkeypatch, files)
    with pytest.raises(ModelNotFound, match="only partly in the cache") as error:
        find_model(NAME, local_files_only=True)
    assert f"({missing} is missing)" in str(error.value)
    assert f"hf download {NAME}" in str(error.value)


def test_a_tower_is_asked_for_its_configuration_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached(tmp_path, monkeypatch, {"config.json": "{}"})
    assert find_tower(NAME, tmp_path / "checkpoint") == snapshot


def test_a_snapshot_in_part_is_fetched_again_where_the_hub_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("llava_mini_cli.hub._wanted_files", lambda *_: ["*.safetensors"])  # pyright: ignore
    snapshot = cached(tmp_path, monkeypatch, {"config.json": "{}"})
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def download(repo: str, **how: object) -> str:
        if how.get("local_files_only"):
            return str(real(repo, **how))  # pyright: ignore
        (snapshot / "model.safetensors").write_text("x")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model(NAME) == snapshot
    assert (snapshot / "model.safetensors").is_file()
