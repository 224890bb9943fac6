"""An archive alone chooses no folder of this disk as a model, and fetches none."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from archive_films import run
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import PUBLISHED
from llava_mini_cli.errors import ModelNotFound
from llava_mini_cli.formats.archive.layout import ArchiveHeader
from llava_mini_cli.hub import check_name_from_archive, check_revision, find_model, find_tower, model_digest


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archive, tmp_path / "theirs.index"))


def edit(archive: Path, **fields: Any) -> None:
    replace(ArchiveHeader.read(archive), **fields).write(archive)


@pytest.mark.parametrize("how", [("search", "{}", "a circle"), ("ask", "--index", "{}", "What?")])
def test_a_folder_that_an_archive_names_is_not_followed(copy: Path, tmp_path: Path, how: tuple[str, ...]) -> None:
    tiny = write_tiny_checkpoint(tmp_path / "tiny")
    edit(copy, model=str(tiny), model_digest=model_digest(str(tiny)))
    done = run(*(word.format(copy) for word in how))
    assert (done.exit_code, done.stdout) == (1, "")
    assert "a path that only an archive names is not followed; -m says where it is now" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["../demo", "/etc", "~/model", "a/b/c", "a/..", "model", ""])
def test_only_the_demo_and_hub_ids_are_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelNotFound, match="neither demo nor a hub id"):
        check_name_from_archive(name)


def test_a_hub_id_is_the_hubs_and_not_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_name_from_archive("someone/model")
    (tmp_path / "someone" / "model").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match=r"'./someone/model' lies in the working directory"):
        check_name_from_archive("someone/model")


def test_a_model_that_an_archive_names_is_not_fetched(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("llava_mini_cli.hub._wanted_files", lambda *_: 1 / 0)  # pyright: ignore
    edit(copy, model="someone/model", model_revision="a" * 40)
    done = run("search", copy, "a circle")
    assert done.exit_code == 1
    assert "not in the cache" in done.stderr


@pytest.mark.parametrize("revision", ["../../../x", "/etc", "a/../../b", "", ".", "a\nb"])
def test_a_revision_does_not_leave_the_cache(revision: str, copy: Path) -> None:
    with pytest.raises(ModelNotFound, match="no revision"):
        check_revision(revision)
    edit(copy, model="someone/model", model_revision=revision)
    assert "is no revision of a model" in run("search", copy, "a circle").stderr


def test_usual_revisions_pass() -> None:
    for revision in (None, "main", "v1.0", "refs/pr/3", "a" * 40):
        check_revision(revision)


def test_demo_and_the_published_model_are_no_folders_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_model("demo")
    for name in ("demo", PUBLISHED):
        (tmp_path / name).mkdir(parents=True)
    assert find_model("demo") == shipped
    assert find_model("./demo") == Path("demo")
    with pytest.raises(ModelNotFound, match="not in the cache"):
        find_model(PUBLISHED, local_files_only=True)
    assert find_model(f"./{PUBLISHED}") == Path(PUBLISHED)


def test_a_tower_of_the_hub_is_not_a_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai" / "clip").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match="not in the cache"):
        find_tower("openai/clip", tmp_path / "models" / "checkpoint", local_files_only=True)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": ["demo"]}, "damaged: ValueError(\"model is not ['demo']\")"),
        ({"model_revision": 7}, "damaged: ValueError('model_revision is not 7')"),
        ({"settings": None}, "damaged: "),
        ({"shapes": {"token": [1, 10**12], "clip": 4, "features": [1, 3, 2]}}, "damaged: ValueError("),
        ({"shapes": {"token": [1, 8], "clip": -4, "features": [1, 3, 2]}}, "damaged: ValueError("),
    ],
)
def test_a_header_of_other_types_is_damaged(copy: Path, fields: dict[str, object], words: str) -> None:
    edit(copy, **fields)
    done = run("search", copy, "a circle")
    assert (done.exit_code, done.stdout) == (1, "")
    assert words in done.stderr


def test_a_header_that_is_a_pipe_or_deep_is_one_line(copy: Path) -> None:
    header = copy / "archive.json"
    header.write_text("[" * 100_000)
    assert "archive.json' cannot be read: lists or objects too deep" in run("search", copy, "x").stderr
    header.unlink()
    os.mkfifo(header)
    assert "archive.json' cannot be read: not a regular file" in run("search", copy, "x").stderr
