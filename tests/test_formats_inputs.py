"""Arguments -> prompts and jobs."""

import os
from pathlib import Path

import pytest
from cli_doubles import read_jobs
from hypothesis import given
from hypothesis import strategies as st

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.prompts import parse_prompt, parse_prompts
from llava_mini_cli.media.open import is_media_path

WHAT = (Prompt("What?"),)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("What is shown?", Prompt("What is shown?")),
        ("topic=What is taught?", Prompt("What is taught?", "topic")),
        ("a-b_1=x=y", Prompt("x=y", "a-b_1")),
        ("Is 1+1=2?", Prompt("Is 1+1=2?")),
        ("=x", Prompt("=x")),
        ("n=two\nlines", Prompt("two\nlines", "n")),
    ],
)
def test_prompt_names(text: str, prompt: Prompt) -> None:
    assert parse_prompt(text) == prompt


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_named_prompt_keeps_any_text(text: str) -> None:
    if text.strip():
        assert parse_prompt(f"name={text}") == Prompt(text, "name")


@pytest.mark.parametrize("texts", [[""], ["  "], ["a="], ["a=x", "a=y"], ["x", "x"], ["\udcff"]])
def test_unusable_prompts(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_prompts(texts)


def test_a_folder_gives_its_media_sorted_and_a_file_gives_itself(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.mp4", "sub/c.webm", "notes.txt", ".hidden.jpg", ".git/d.jpg", "sub/e"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    folder = str(tmp_path / "in")
    jobs = list(read_jobs([folder, f"{folder}/notes.txt", "gone.mp4", folder], WHAT, is_media_path))
    assert [job.file_name for job in jobs] == [
        "a.mp4", "b.JPG", "sub/c.webm", "notes.txt", "gone.mp4", "a.mp4", "b.JPG", "sub/c.webm",
    ]  # fmt: skip
    assert jobs[0].path == f"{folder}/a.mp4"
    assert all(tuple(question.prompt for question in job.questions) == WHAT for job in jobs)
    assert [job.questions[0].id for job in jobs] == [job.path for job in jobs]


def test_folders_are_walked_only_when_reached(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    jobs = read_jobs([str(tmp_path)], WHAT, is_media_path)
    (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
    assert [job.file_name for job in jobs] == ["b.jpg"]


def test_a_folder_without_media_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="no images or videos"):
        read_jobs(["gone.mp4", str(tmp_path)], WHAT, is_media_path)


def test_a_folder_inside_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").touch()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    jobs = read_jobs([str(tmp_path)], WHAT, is_media_path)
    assert [job.file_name for job in jobs] == ["a.jpg", "closed"]
