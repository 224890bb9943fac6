"""Links, pipes and sockets that a stranger left where a run writes, and what killed runs leave there themselves."""

import fcntl
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import killed_runs
import pytest
from cli_doubles import EchoEngine, open_made_clip
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.archive.locks import writing
from llava_mini_cli.formats.archive.writer import make_folder
from llava_mini_cli.formats.disk import whole_file, write_file, write_own_file
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs.folder_lock import FolderLock
from llava_mini_cli.safe_files import (
    NotRegularError,
    Temporary,
    check_tree,
    make_own_folder,
    open_regular,
    sweep,
)

SECRET = "the secret\n"
ELSEWHERE = ".llava-mini-00000000-0123456789abcdef.tmp"  # a temporary file of another machine


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory, with three media for doubles, and a secret beside them."""
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_made_clip)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "photos" / name).write_text("1")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o600)
    return tmp_path


def llava_mini(*arguments: str, code: int) -> Result:
    result = CliRunner().invoke(app, ["ask", *arguments, "-m", "echo"])
    assert result.exit_code == code, result.stderr
    return result


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # the working directory is the file's own: a whole path may be too long
        Path(path.name).rename(path)


OBSTACLES: dict[str, Callable[[Path], object]] = {
    "it is a link, and links are not followed here": lambda path: path.symlink_to("../secret"),
    "it is a pipe": os.mkfifo,
    "it is a folder": Path.mkdir,
    "it is a socket": make_socket,
}


@pytest.mark.parametrize("existing", ["append", "prepend", "overwrite", "skip"])
@pytest.mark.parametrize("reason", OBSTACLES)
def test_what_is_no_file_in_place_of_a_caption_fails_its_medium_alone(folder: Path, reason: str, existing: str) -> None:
    OBSTACLES[reason](folder / "photos" / "b.txt")
    before = (folder / "photos" / "b.txt").lstat()
    is_kept = existing == "skip" and "link" in reason  # somebody keeps captions behind links
    for _ in range(2):
        result = llava_mini("photos", "What?", "-f", "txt", "--existing", existing, code=0 if is_kept else 3)
        assert (f"error: photos/b.jpg: cannot write 'photos/b.txt': {reason}\n" in result.stderr) is not is_kept
    assert [(folder / "photos" / f"{name}.txt").read_text() for name in "ac"] == ["What? [1]\n"] * 2
    after = (folder / "photos" / "b.txt").lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (folder / "secret").read_text() == SECRET
    assert len(list((folder / "photos").iterdir())) == 6


def test_one_obstacle_of_several_questions_leaves_the_others(folder: Path) -> None:
    os.mkfifo(folder / "photos" / "a.2.txt")
    llava_mini("photos/a.jpg", "-p", "What?", "-p", "Why?", "-f", "txt", "--summary-json", "s.json", code=3)
    assert (folder / "photos" / "a.1.txt").read_text() == "What? [1]\n"
    summary = json.loads((folder / "s.json").read_text())
    assert (summary["rows_answered"], summary["rows_failed"], summary["failures"]) == (1, 1, {"not_writable": 1})


def test_a_caption_of_a_gigabyte_is_not_read(folder: Path) -> None:
    with (folder / "photos" / "a.txt").open("wb") as stream:
        stream.truncate(1 << 30)
    result = llava_mini("photos", "What?", "-f", "txt", "--existing", "append", code=3)
    assert "cannot write 'photos/a.txt': it is too long for a caption" in result.stderr
    assert (folder / "photos" / "a.txt").stat().st_size == 1 << 30


def test_a_caption_keeps_the_permissions_of_the_one_before(folder: Path) -> None:
    (folder / "photos" / "a.txt").write_text("mine")
    (folder / "photos" / "a.txt").chmod(0o600)
    llava_mini("photos", "What?", "-f", "txt", "--existing", "append", code=0)
    modes = [stat.S_IMODE((folder / "photos" / f"{name}.txt").stat().st_mode) for name in "ab"]
    umask = os.umask(0)
    os.umask(umask)
    assert modes == [0o600, 0o666 & ~umask]
    assert (folder / "photos" / "a.txt").read_text() == "mine What? [1]\n"


def test_a_folder_of_captions_follows_no_link_below_itself(folder: Path) -> None:
    (folder / "photos" / "deep").mkdir()
    (folder / "photos" / "deep" / "d.jpg").write_text("1")
    for name in ("out", "elsewhere"):
        (folder / name).mkdir()
    (folder / "out" / "deep").symlink_to("../elsewhere")
    (folder / "mine").symlink_to("out")  # that the user typed a link is fine
    result = llava_mini("photos", "What?", "-f", "txt", "-o", "mine", code=3)
    assert "'deep' is a link, or no folder" in result.stderr.replace(f"{folder.resolve()}/out/", "")
    assert not list((folder / "elsewhere").iterdir())
    assert (folder / "out" / "a.txt").exists()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("hidden", [".metadata.rows.{}", ".metadata.rows.{}.llava-mini", "metadata.{}"])
@pytest.mark.parametrize("target", ["../secret", "../new", None])
def test_metadata_are_not_written_through_a_link(folder: Path, suffix: str, hidden: str, target: str | None) -> None:
    planted = folder / "photos" / hidden.format(suffix)
    if target is None:
        os.mkfifo(planted)
    else:
        planted.symlink_to(target)
    for more in ([], ["--overwrite"]):
        result = llava_mini("photos", "What?", "-f", "hf", "-o", f"photos/metadata.{suffix}", *more, code=1 + (
            target is None and hidden == "metadata.{}"))  # fmt: skip
        assert result.stderr.count("\n") == 1
    assert (folder / "secret").read_text() == SECRET
    assert not (folder / "new").exists()


def test_a_second_name_of_a_file_is_not_written_in_place(folder: Path) -> None:
    outputs = {".metadata.rows.jsonl": "photos/metadata.jsonl", ".rows.jsonl.llava-mini": "photos/rows.jsonl"}
    for name, path in outputs.items():
        (folder / "photos" / name).hardlink_to(folder / "secret")
        result = llava_mini("photos", "What?", "-o", path, code=1)
        assert "it has another name elsewhere (a hard link)" in result.stderr
        (folder / "photos" / name).unlink()
    assert (folder / "secret").read_text() == SECRET


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_the_companion_of_an_output_is_no_link(folder: Path, name: str) -> None:
    (folder / f".{name}.llava-mini").symlink_to("secret")
    result = llava_mini("photos", "What?", "-o", name, code=1)
    assert f"no lock '.{name}.llava-mini': it is a link" in result.stderr
    assert (folder / "secret").read_text() == SECRET


def test_parts_of_somebody_else_are_not_removed_through_a_link(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "x.parquet").write_text(SECRET)
    (folder / "rows.parquet.parts").symlink_to("other")
    result = llava_mini("photos", "What?", "-o", "rows.parquet", "--overwrite", code=1)
    assert "cannot write 'rows.parquet.parts': it is a link" in result.stderr
    (folder / "out").mkdir()
    (folder / "out" / ".llava-mini").symlink_to("../other")
    result = llava_mini("photos", "What?", "-o", "out/", code=1)
    assert "cannot write 'out/.llava-mini': it is a link" in result.stderr
    os.mkfifo(folder / "part-000001-x.parquet")
    (folder / "piped").mkdir()
    os.mkfifo(folder / "piped" / "part-000001-x.parquet")
    assert "it is a pipe" in llava_mini("photos", "What?", "-o", "piped/", code=1).stderr
    assert [path.name for path in (folder / "other").iterdir()] == ["x.parquet"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "s.json"])
def test_an_output_that_the_user_typed_may_be_a_link(folder: Path, name: str) -> None:
    (folder / "disk").mkdir()
    (folder / name).symlink_to(f"disk/{name}")
    option = "--summary-json" if name == "s.json" else "-o"
    llava_mini("photos", "What?", option, name, code=0)
    assert (folder / name).is_symlink()
    assert (folder / "disk" / name).stat().st_size > 100


def test_an_archive_is_not_written_through_links(tmp_path: Path) -> None:
    archive, other = tmp_path / "archive", tmp_path / "other"
    archive.mkdir()
    other.mkdir()
    (archive / ".readers").symlink_to(tmp_path / "new")
    with pytest.raises(OutputError, match=r"'.*/archive/.readers': it is a link"):
        make_folder(archive)
    assert not (tmp_path / "new").exists()
    for table in ("media", "frames", "vectors"):
        (archive / table).symlink_to(other)
        with pytest.raises(OutputError, match=rf"'.*/archive/{table}': it is a link"):
            writing(archive)
        (archive / table).unlink()


def test_a_folder_that_a_library_writes_into_holds_no_link(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".venv").mkdir(parents=True)
    (tmp_path / "deep" / "x.csv").touch()
    (tmp_path / "deep" / ".venv" / "link").symlink_to("/")
    check_tree(tmp_path)
    check_tree(tmp_path / "none")
    (tmp_path / "deep" / "loss.csv").symlink_to("x.csv")
    with pytest.raises(NotRegularError, match="it is a link") as raised:
        check_tree(tmp_path)
    assert raised.value.filename == str(tmp_path / "deep" / "loss.csv")


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text(SECRET)
    for number, (reason, make) in enumerate(OBSTACLES.items()):
        path = tmp_path / f"{number}"
        make(path)
        for options in ({}, {"writing": True}, {"writing": True, "create": True}):
            with pytest.raises(NotRegularError, match=reason):
                open_regular(path, **options)
        for write in (Temporary, lambda path: write_own_file(path, b"")):
            with pytest.raises((NotRegularError, OutputError), match=reason):
                write(path)
    with pytest.raises(NotRegularError, match="it is a device"):
        open_regular(Path("/dev/null"))
    descriptor = open_regular(tmp_path / "new", create=True)
    assert os.get_blocking(descriptor)
    os.close(descriptor)


def test_a_link_that_is_put_there_after_the_look_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "pipe2").symlink_to("pipe")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("llava_mini_cli.safe_files.check_regular", lambda path, alone=False: None)
    with pytest.raises(OSError, match=r"Too many levels|it is a link"):
        open_regular(tmp_path / "link", writing=True)
    with pytest.raises(NotRegularError, match="it is a pipe"):
        open_regular(tmp_path / "pipe")


def test_folders_of_ours_are_made_and_no_links(tmp_path: Path) -> None:
    for _ in range(2):
        make_own_folder(tmp_path / "new")
    (tmp_path / "link").symlink_to("new")
    (tmp_path / "file").touch()
    for name, reason in {"link": "it is a link", "file": "it is a file, not a folder"}.items():
        with pytest.raises(NotRegularError, match=reason):
            make_own_folder(tmp_path / name)
    with pytest.raises(OutputError, match="it is a link"):
        FileLock(tmp_path / "link", tmp_path)
    FolderLock(tmp_path / "link")  # the user typed this one


def test_a_temporary_file_is_nobody_elses(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    names: set[Path] = set()
    for _ in range(3):
        with whole_file(target) as stream:
            (temporary,) = tmp_path.glob(".*.tmp")
            names.add(temporary)
            with temporary.open() as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(tmp_path)
            stream.write(b"new")
    assert len(names) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_temporary_file_that_was_swapped_is_not_put_in_place(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    with pytest.raises(NotRegularError, match="taken away or replaced"), whole_file(tmp_path / "a") as stream:
        (temporary,) = tmp_path.glob(".*.tmp")
        temporary.unlink()
        temporary.symlink_to("secret")
        stream.write(b"new")
    with pytest.raises(NotRegularError, match="it is a link"), whole_file(tmp_path / "a"):
        (tmp_path / "a").symlink_to("secret")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "secret"]
    assert (tmp_path / "secret").read_text() == SECRET


def test_a_temporary_file_that_a_sweep_takes_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, left = fcntl.flock, [BlockingIOError(), None]

    def late(descriptor: int, mode: int) -> None:
        """The first time another run holds it, the second time that run has just removed it."""
        if left:
            error = left.pop(0)
            if error is not None:
                raise error
            next(tmp_path.glob(".*.tmp")).unlink()
        flock(descriptor, mode)

    monkeypatch.setattr(fcntl, "flock", late)
    opened = len(os.listdir("/dev/fd"))
    write_own_file(tmp_path / "a", b"1")
    assert not left
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert len(os.listdir("/dev/fd")) == opened


def test_left_overs_on_a_disk_without_locks_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    left = left_over(tmp_path)
    write_file(tmp_path / "a", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([left.name, "a"])


def left_over(folder: Path) -> Path:
    """A temporary file whose writer is gone."""
    made = Temporary(folder / "x")
    made.stream.close()
    return made.path


def test_what_is_swept_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, read_only = left_over(tmp_path), left_over(tmp_path)
    read_only.chmod(0o400)
    (tmp_path / ".mine.tmp").touch()
    (tmp_path / ".llava-mini-x.tmp").touch()
    (tmp_path / ELSEWHERE).touch()
    linked = tmp_path / ELSEWHERE.replace("0", "1")
    linked.symlink_to(".mine.tmp")
    live = Temporary(tmp_path / "y")
    sweep(tmp_path)
    assert not dead.exists()
    assert not read_only.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        ".mine.tmp", ".llava-mini-x.tmp", ELSEWHERE, linked.name, live.path.name
    }  # fmt: skip
    os.utime(tmp_path / ELSEWHERE, (time.time() - 3700,) * 2)
    sweep(tmp_path)
    assert not (tmp_path / ELSEWHERE).exists()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    sweep(tmp_path, alone=True)
    assert live.path.exists()  # another user's
    monkeypatch.undo()
    sweep(tmp_path, alone=True)
    assert not live.path.exists()
    live.discard()
    sweep(tmp_path / "none")


def _hang(folder: str, ready: str) -> None:
    with whole_file(Path(folder, "a.txt")) as stream:
        stream.write(b"half")
        stream.flush()
        Path(ready).touch()
        time.sleep(60)


def test_a_killed_writer_leaves_what_the_next_one_takes_away(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    process = get_context("spawn").Process(target=_hang, args=(str(tmp_path / "out"), str(tmp_path / "ready")))
    process.start()
    try:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        sweep(tmp_path / "out")
        assert len(list((tmp_path / "out").iterdir())) == 1  # it is at work
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert len(list((tmp_path / "out").iterdir())) == 1
    sweep(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "output",
    [
        ["-f", "txt", "--existing", "overwrite"],
        ["-f", "hf", "-o", "metadata.jsonl"],
    ],
)
def test_runs_killed_at_every_change_of_files_leave_nothing_in_the_end(tmp_path: Path, output: list[str]) -> None:
    made: set[Path] = set()
    was_left = False
    for kill_at in range(1, 40):
        root = tmp_path / f"{kill_at}"
        (root / "photos" / "deep").mkdir(parents=True)
        for name in ("a.jpg", "deep/b.jpg"):
            (root / "photos" / name).write_text("1")
        arguments = ["ask", ".", "What?", "-m", "echo", *output]
        is_over = killed_runs.run(root / "photos", *arguments, kill_at=kill_at) == 0
        was_left |= any(root.rglob(".*.tmp"))
        assert killed_runs.run(root / "photos", *arguments) == 0
        files = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        assert not [path for path in files if path.suffix == ".tmp"], kill_at
        made = made or files
        assert len(files) == len(made)  # names of parts are random
        if is_over:
            assert was_left
            return
    pytest.fail("it never came to its end")
