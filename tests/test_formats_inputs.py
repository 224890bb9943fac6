"""Files, folders, globs and lists -> jobs; prompts from flags and files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from input_doubles import WHAT, inputs, jobs_of, touch

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.listing import read_listing
from llava_mini_cli.formats.inputs.options import InputOptions
from llava_mini_cli.formats.inputs.prompts import parse_prompt, parse_prompts, read_prompt_file, unique_prompts
from llava_mini_cli.formats.job import Prompt


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


def test_prompt_files(tmp_path: Path) -> None:
    lines, jsonl = tmp_path / "q.txt", tmp_path / "q.jsonl"
    lines.write_text("\ufefftopic=What is taught?\r\n\n# is it empty?\n")
    assert read_prompt_file(str(lines)) == (Prompt("What is taught?", "topic"), Prompt("# is it empty?"))
    jsonl.write_text('{"prompt": "x = 1?", "name": "eq"}\n\n{"prompt": "two\\nlines"}\n{"prompt": "z", "name": null}')
    assert read_prompt_file(str(jsonl)) == (Prompt("x = 1?", "eq"), Prompt("two\nlines"), Prompt("z"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("q.txt", "\n", "holds no prompt"),
        ("q.txt", "a=x\na=y", "two prompts have the name 'a'"),
        ("q.txt", "ok\nname=", "line 2: the prompt 'name' is empty"),
        ("q.jsonl", '{"prompt": "x"}\n{"text": "x"}', "line 2: not an object such as"),
        ("q.jsonl", "{", "line 1: not an object"),
        ("q.jsonl", '["x"]', "line 1: not an object"),
        ("q.jsonl", '{"prompt": 1}', "line 1: prompt and name must be text"),
    ],
)
def test_bad_prompt_files_name_the_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words) as error:
        read_prompt_file(str(tmp_path / name))
    assert "holds" in words or "two prompts" in words or name in str(error.value)
    with pytest.raises(UsageError, match="no such file"):
        read_prompt_file(str(tmp_path / "gone"))


def test_a_folder_gives_its_media_sorted_and_a_file_gives_itself(tmp_path: Path) -> None:
    touch(tmp_path / "in", "b.JPG", "a.mp4", "sub/c.webm", "notes.txt", ".hidden.jpg", ".git/d.jpg", "sub/e")
    folder = str(tmp_path / "in")
    jobs = jobs_of(folder, f"{folder}/notes.txt", "gone.mp4", folder)
    assert [job.file_name for job in jobs] == [
        "a.mp4", "b.JPG", "sub/c.webm", "notes.txt", "gone.mp4", "a.mp4", "b.JPG", "sub/c.webm",
    ]  # fmt: skip
    assert jobs[0].path == f"{folder}/a.mp4"
    assert all(tuple(question.prompt for question in job.questions) == WHAT for job in jobs)
    assert [job.questions[0].id for job in jobs] == [job.path for job in jobs]
    flat = jobs_of(folder, options=InputOptions(recursive=False))
    assert [job.file_name for job in flat] == ["a.mp4", "b.JPG"]


def test_folders_are_walked_only_when_reached(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    with inputs(tmp_path) as opened:
        assert opened.total is None
        (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
        assert [job.file_name for job in opened.jobs] == ["b.jpg"]


def test_a_folder_without_media_is_refused_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match="no images or videos in the folder"), inputs("gone.mp4", tmp_path):
        pass


def test_a_folder_inside_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    touch(tmp_path, "a.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [job.file_name for job in jobs_of(tmp_path)] == ["a.jpg", "closed"]


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ((), (), ["a.jpg", "b.mp4", "x/a.jpg", "x/thumbs/a.jpg", "x/y/c.mp4"]),
        (("*.jpg",), (), ["a.jpg", "x/a.jpg", "x/thumbs/a.jpg"]),
        (("*.jpg",), ("thumbs",), ["a.jpg", "x/a.jpg"]),
        ((), ("x/thumbs/",), ["a.jpg", "b.mp4", "x/a.jpg", "x/y/c.mp4"]),
        ((), ("x/*.jpg",), ["a.jpg", "b.mp4", "x/thumbs/a.jpg", "x/y/c.mp4"]),
        (("x/**/*.mp4", "b.*"), (), ["b.mp4", "x/y/c.mp4"]),
        (("[ab].*",), ("a.*", "x"), ["b.mp4"]),
    ],
)
def test_include_and_exclude(
    tmp_path: Path, include: tuple[str, ...], exclude: tuple[str, ...], names: list[str]
) -> None:
    touch(tmp_path, "a.jpg", "b.mp4", "x/a.jpg", "x/thumbs/a.jpg", "x/y/c.mp4", "x/notes.txt")
    options = InputOptions(include=include, exclude=exclude)
    assert [job.file_name for job in jobs_of(tmp_path, options=options)] == names
    in_glob = jobs_of(f"{tmp_path}/**", options=options)
    assert sorted(job.file_name for job in in_glob) == sorted(names)


def test_what_leaves_nothing_says_why(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    options = InputOptions(include=("*.mp4",))
    with pytest.raises(UsageError, match="that --include and --exclude leave"):
        jobs_of(tmp_path, options=options)
    with pytest.raises(UsageError, match="--include and --exclude leave nothing of"):
        jobs_of(f"{tmp_path}/*", options=options)


def test_globs_in_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a/b.mp4", "a/x/c.mp4", "a/x/d.dat", "a/[1].jpg", "a/notes.txt")
    jobs = jobs_of("a/**/*.mp4")
    assert [(job.path, job.file_name) for job in jobs] == [("a/b.mp4", "b.mp4"), ("a/x/c.mp4", "x/c.mp4")]
    assert [job.path for job in jobs_of("a/*")] == ["a/[1].jpg", "a/b.mp4"]  # media alone, as in a folder
    assert [job.path for job in jobs_of("a/x/*.dat")] == ["a/x/d.dat"]  # unless the pattern names a suffix
    assert [job.path for job in jobs_of("a/[1].jpg")] == ["a/[1].jpg"]  # a name that exists is no pattern
    with inputs("a/*.mp4", "a/b.mp4") as opened:
        assert opened.total == 2
    with pytest.raises(UsageError, match=r"no file matches 'a/\*\.webm'"):
        jobs_of("a/*.webm")


def test_a_list_of_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "dir/a.jpg", "dir/b.jpg")
    Path("list").write_bytes(b"x/one.mp4\r\n\n  \n./two.mp4\ndir\n/abs/three.mp4\n\xff.mp4\nx/one.mp4")
    jobs = jobs_of("first.mp4", options=InputOptions(files_from="list"))
    assert [(job.path, job.file_name) for job in jobs] == [
        ("first.mp4", "first.mp4"), ("x/one.mp4", "x/one.mp4"), ("./two.mp4", "two.mp4"), ("dir/a.jpg", "a.jpg"),
        ("dir/b.jpg", "b.jpg"), ("/abs/three.mp4", "three.mp4"), ("\udcff.mp4", "\udcff.mp4"),
        ("x/one.mp4", "x/one.mp4"),
    ]  # fmt: skip
    assert jobs[-2].questions[0].id == "\\xff.mp4"
    for name in ("gone", "dir"):
        with pytest.raises(UsageError, match=f"--files-from cannot read '{name}'"):
            jobs_of(options=InputOptions(files_from=name))
    with pytest.raises(UsageError, match="-0 needs --files-from"):
        InputOptions(null=True)


PATHS = st.lists(st.binary(min_size=1).filter(lambda name: b"\0" not in name), max_size=20)


@settings(deadline=None)
@given(names=PATHS)
def test_any_file_name_survives_a_list(names: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("list") / "list"
    path.write_bytes(b"".join(name + b"\0" for name in names))
    assert [os.fsencode(entry) for entry in read_listing(str(path), null=True)] == names


@pytest.mark.parametrize(("null", "end"), [(False, b"\n"), (True, b"\0")])
def test_a_pipe_gives_each_job_as_its_line_arrives(tmp_path: Path, null: bool, end: bytes) -> None:
    """The answer to one line comes before the next line is written, and the pipe stays open."""
    (tmp_path / "a.mp4").write_text("4")
    doubles = str(Path(__file__).parent / "cli_doubles.py")
    command = [sys.executable, doubles, "ask", "-p", "What?", "--files-from", "-", *(["-0"] if null else [])]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            process.stdin.write(b"a.mp4" + end)
            process.stdin.flush()
            began = time.monotonic()
            assert b'"text": "What? [4]"' in process.stdout.readline()
            assert time.monotonic() - began < 30
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_prompt_file_without_end_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("llava_mini_cli.formats.inputs.prompts._LARGEST_FILE", 1 << 20)
    with pytest.raises(UsageError, match=r"^--prompt-file cannot read '/dev/zero': larger than 1 mib$"):
        read_prompt_file("/dev/zero")
    full = tmp_path / "full.txt"
    full.write_bytes(b"x" * (1 << 20))
    assert [len(prompt.text) for prompt in read_prompt_file(str(full))] == [1 << 20]


def test_ten_thousand_questions_are_told_apart_at_once() -> None:
    prompts = [Prompt(f"question {number}") for number in range(10_000)]
    begin = time.process_time()
    assert unique_prompts(prompts) == tuple(prompts)
    assert time.process_time() - begin < 1
    with pytest.raises(UsageError, match=r"^the same question is asked twice: question 7$"):
        unique_prompts([*prompts, Prompt("question 7")])
    assert unique_prompts([Prompt("same", "a"), Prompt("same", "b"), Prompt("same")])[2] == Prompt("same")
