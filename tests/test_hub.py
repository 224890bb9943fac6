"""Where a model is: a directory, the demo, or the hub's cache, whole or as a broken download left it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from llava_mini_cli.errors import ModelNotFound
from llava_mini_cli.hub import (
    CHECKPOINT_FILES,
    TOWER_FILES,
    find_model,
    find_tower,
    is_hub_id,
    model_digest,
    weight_source,
)

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


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("owner/name", True), ("o-w.n_er/n.a-m_e", True), ("1/2", True), ("name", False), ("a/b/c", False),
        ("/a", False), ("./a", False), ("_a/b", False), ("a/", False), ("a/b c", False),
        ("a/" + "b" * 94, True), ("a/" + "b" * 95, False),
    ],
)  # fmt: skip
def test_what_has_the_form_of_a_hub_id(name: str, is_one: bool) -> None:
    assert is_hub_id(name) == is_one


def test_a_model_is_a_directory_or_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert find_model("mine") == Path("mine")
    assert find_model("~/mine") == tmp_path / "mine"
    assert find_model("demo").name == "model"
    (tmp_path / "file").touch()
    for name, words in {
        "file": "model file: a file, not a checkpoint directory",
        "gone": "model gone: no such directory, and not a hub id of the form owner/name",
    }.items():
        with pytest.raises(ModelNotFound) as error:
            find_model(name)
        assert str(error.value) == words


def test_a_model_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    how = f"not in the cache, and offline; get it with: hf download {NAME}"
    for revision, tail in ((None, ""), ("v1", " --revision v1")):
        with pytest.raises(ModelNotFound) as error:
            find_model(NAME, revision)
        assert str(error.value) == f"model {NAME}: {how}{tail}"


class Hub:
    """The hub as it answers: with the names of its files, or with an error."""

    def __init__(self, answer: list[str] | Exception) -> None:
        self.answer = answer
        self.asked: list[object] = []

    def model_info(self, repo: str, **how: object) -> object:
        self.asked.append((repo, how))
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.answer])


def downloaded(
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    hub: Hub,
    fails: Exception | None = None,
    find: Callable[[], Path] = lambda: find_model(NAME, "v1"),
) -> object:
    """Which files are asked for when a model is not in the cache."""
    patterns: list[object] = []

    def download(repo: str, **how: object) -> str:
        if how.get("local_files_only"):
            raise LocalEntryNotFoundError("not here")
        patterns.append(how["allow_patterns"])
        if fails:
            raise fails
        return str(place)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find() == place
    return patterns[0]


def test_pickles_are_fetched_where_there_is_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(["config.json", "model.safetensors", "pytorch_model.bin"])
    assert downloaded(monkeypatch, tmp_path, hub) == [*CHECKPOINT_FILES]
    assert hub.asked == [(NAME, {"revision": "v1", "timeout": 3.0})]
    assert downloaded(monkeypatch, tmp_path, Hub(["pytorch_model.bin"])) == [*CHECKPOINT_FILES, "*.bin"]


def test_a_hub_that_refuses_or_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]
    how = f"get it with: hf download {NAME} --revision v1"
    for hub, fails, words in (
        (Hub(unknown), None, "the hub has no such model, or it asks for a token (HF_TOKEN)"),
        (Hub(OSError("down")), None, f"not in the cache, and the hub cannot be reached; {how}"),
        (Hub([]), OSError("disk full\nmore"), f"download failed (disk full); {how}"),
        (Hub([]), OSError(), f"download failed (OSError); {how}"),
    ):
        with pytest.raises(ModelNotFound) as error:
            downloaded(monkeypatch, tmp_path, hub, fails)
        assert str(error.value) == f"model {NAME}: {words}"


def test_a_tower_is_looked_for_in_the_checkpoint_then_beside_it_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, models = tmp_path / "here", tmp_path / "models"
    checkpoint = models / "checkpoint"
    for folder in (here, checkpoint):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    with pytest.raises(ModelNotFound) as error:
        find_tower("clip", checkpoint)
    assert str(error.value) == f"model {checkpoint}: its vision tower 'clip' is no directory here and no hub id"
    for place, found in ((here, Path("clip")), (models, models / "clip"), (checkpoint, checkpoint / "clip")):
        (place / "clip").mkdir()
        assert find_tower("clip", checkpoint) == found
    for nothing in (None, ""):
        with pytest.raises(ModelNotFound) as error:
            find_tower(nothing, checkpoint)
        assert str(error.value) == f"model {checkpoint}: config.json names no mm_vision_tower"


def test_safetensors_come_before_pickles_and_an_index_before_a_file(tmp_path: Path) -> None:
    assert weight_source(tmp_path) is None
    for name in (
        "pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors", "model.safetensors.index.json",
    ):  # fmt: skip
        (tmp_path / name).touch()
        assert weight_source(tmp_path) == tmp_path / name


def test_a_digest_tells_models_by_their_configuration_and_the_ends_of_their_weights(tmp_path: Path) -> None:
    model, tower = tmp_path / "model", tmp_path / "clip"
    tower.mkdir()
    model.mkdir()
    weights = bytearray(3 << 16)
    told: set[str] = set()

    def is_new() -> bool:
        """Whether the digest is another one than before."""
        digest = model_digest(str(model))
        assert len(digest) == 16
        assert int(digest, 16) >= 0
        before = len(told)
        told.add(digest)
        return len(told) > before

    (model / "config.json").write_text('{"mm_vision_tower": "clip"}')
    (model / "model.safetensors").write_bytes(weights)
    assert is_new()
    (model / "README.md").write_text("a file that is not read")
    assert not is_new()
    for at, seen in (
        (3 << 15, False),
        (1 << 16, False),
        ((1 << 16) - 1, True),
        (2 << 16, True),
        ((2 << 16) - 1, False),
    ):
        weights[at] = 1
        (model / "model.safetensors").write_bytes(weights)
        assert is_new() == seen
    for name in ("config.json", "model.safetensors", "other.bin"):
        (tower / name).write_text("x")
        assert is_new()
    (model / "model.safetensors").write_bytes(weights[: 1 << 16] + weights[-(1 << 16) :])
    assert is_new()  # the size counts
    (model / "config.json").write_text("{")
    assert is_new()  # a damaged configuration names no tower
    shutil.copytree(model, tmp_path / "elsewhere" / "model")
    assert model_digest(str(tmp_path / "elsewhere" / "model")) in told


def test_a_tower_that_is_not_here_is_fetched_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(**how: bool) -> Path:
        return find_tower(NAME, tmp_path / "checkpoint", **how)

    assert downloaded(monkeypatch, tmp_path, Hub(["model.safetensors"]), find=find) == [*TOWER_FILES]
    with pytest.raises(ModelNotFound, match="not in the cache, and offline"):
        find(local_files_only=True)


def test_a_folder_named_demo_does_not_stand_for_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("demo") == find_model("demo").resolve() != tmp_path / "demo"
    assert find_model("./demo").resolve() == tmp_path / "demo"
