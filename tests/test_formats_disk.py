"""Files that are there whole or not at all, and the lock that one run holds at a time."""

import fcntl
import json
import os
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from llava_mini_cli.errors import OutputError, OutputLocked
from llava_mini_cli.formats.disk import check_target, errors_of, sync_folder, whole_file, write_file
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs.folder_lock import FolderLock
from llava_mini_cli.formats.outputs.output import Output, released_on_failure
from llava_mini_cli.formats.shard import Shard
from llava_mini_cli.safe_files import is_at

PID, HOST = os.getpid(), socket.gethostname()


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """What was synced, in order: whether it is a folder, and for a file the bytes that were in it by then."""
    calls: list[tuple[bool, int]] = []

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(status.st_mode)
        calls.append((is_folder, 0 if is_folder else status.st_size))

    monkeypatch.setattr(os, "fsync", note)
    return calls


def test_a_file_is_synced_before_its_name_and_its_folder_after(tmp_path: Path, synced: list[tuple[bool, int]]) -> None:
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")
    with whole_file(target) as stream:
        stream.write(b"new one")
        assert (target.read_bytes(), len(list(tmp_path.glob(".*.tmp")))) == (b"old", 1)
    assert (target.read_bytes(), len(list(tmp_path.iterdir()))) == (b"new one", 1)
    assert synced == [(False, 7), (True, 0)]


def test_a_file_that_was_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")
    with suppress(KeyboardInterrupt), whole_file(target) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_small_files_and_what_is_no_file(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 251 + ".txt")  # 255 bytes: nothing can be put before or behind the name
    write_file(long, b"1")
    write_file(long, b"22")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"22"]
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
    write_file(tmp_path / "pipe", b"333")
    assert os.read(descriptor, 10) == b"333"
    os.close(descriptor)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(OutputError, match=rf"^cannot write '{tmp_path}/gone/a': No such file or directory$"):
        write_file(tmp_path / "gone" / "a", b"")


def test_an_error_of_the_disk_names_the_output() -> None:
    for error, words in [(OSError(28, "No space left on device"), "No space left on device"), (OSError("odd"), "odd")]:
        with pytest.raises(OutputError) as raised, errors_of(Path("x.csv")):
            raise error
        assert str(raised.value) == f"cannot write 'x.csv': {words}"


def test_a_target_is_checked_without_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    there.touch()
    for path in (there, tmp_path / "new"):
        check_target(path)
    asked: list[str] = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(f"{path} {mode == os.W_OK}"))
    for path in (there, tmp_path / "new"):
        with pytest.raises(OutputError, match=f"^cannot write '{path}': permission denied$"):
            check_target(path)
    assert asked == [f"{there} True", f"{tmp_path} True"]
    with pytest.raises(OutputError, match=f"^cannot write '{tmp_path}/no/x': there is no folder '{tmp_path}/no'$"):
        check_target(tmp_path / "no" / "x")


def test_a_folder_is_synced_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = len(os.listdir("/dev/fd"))

    def refuse(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)
    assert len(os.listdir("/dev/fd")) == opened


def test_whether_a_file_is_still_at_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    with path.open() as stream:
        assert is_at(path, stream.fileno())
        path.unlink()
        assert not is_at(path, stream.fileno())
        path.touch()
        assert not is_at(path, stream.fileno())


def test_a_lock_says_who_holds_it_and_keeps_what_the_file_held(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text('{"pid": 1, "host": "elsewhere", "run": {"a": 1}}')
    lock = FileLock(path, tmp_path / "out")
    assert json.loads(path.read_text()) == {"pid": PID, "host": HOST, "run": {"a": 1}}
    assert lock.read() == {"run": {"a": 1}}
    with pytest.raises(OutputLocked) as locked:
        FileLock(path, tmp_path / "out")
    assert str(locked.value) == f"another run (pid {PID}) is writing '{tmp_path}/out'"
    with pytest.raises(OutputLocked, match="not now"):
        FileLock(path, tmp_path / "out", shared=True, busy="not now")
    for text, words in [('{"pid": 5, "host": "a.b"}', " (pid 5 on a.b)"), ("", ""), ("{", "")]:
        path.write_text(text)
        with pytest.raises(OutputLocked, match="another run") as locked:
            FileLock(path, tmp_path / "out")
        assert str(locked.value) == f"another run{words} is writing '{tmp_path}/out'"
    lock.release()
    assert path.exists()


def test_a_shorter_text_leaves_nothing_of_the_longer_one(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock", tmp_path) as lock:
        lock.write({"run": "x" * 99})
        lock.write({"run": "y"})
        assert (tmp_path / "lock").read_text() == json.dumps({"pid": PID, "host": HOST, "run": "y"}, indent=1) + "\n"
    with FileLock(tmp_path / "lock", tmp_path) as lock:  # the block let it go
        lock.release = lambda **_: None  # type: ignore[method-assign]
        (tmp_path / "lock").write_text("no JSON")
        with pytest.raises(OutputError, match=f"^'{tmp_path}/lock' is damaged; without it settings are not compared$"):
            lock.read()
    FileLock(tmp_path / "other", tmp_path).release()


def test_some_share_a_lock_and_one_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one, other = (FileLock(path, tmp_path, shared=True) for _ in range(2))
    assert path.read_text() == ""
    with pytest.raises(OutputLocked):
        FileLock(path, tmp_path)
    waiting = threading.Thread(target=lambda: FileLock(path, tmp_path, wait=True).release(remove=True))
    waiting.start()
    one.release(remove=True)
    assert path.exists()  # it is not one's own to remove
    waiting.join(0.1)
    assert waiting.is_alive()
    other.release()
    waiting.join(10)
    assert not path.exists()
    alone = FileLock(path, tmp_path)
    alone.share()
    FileLock(path, tmp_path, shared=True).release()
    alone.release(remove=True)
    assert path.exists()


def test_a_lock_whose_file_was_taken_away_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock, left = tmp_path / "lock", fcntl.flock, [1]

    def late(descriptor: int, mode: int) -> None:
        if left:
            left.pop()
            path.unlink()
        flock(descriptor, mode)

    monkeypatch.setattr(fcntl, "flock", late)
    lock = FileLock(path, tmp_path)
    with pytest.raises(OutputLocked):
        FileLock(path, tmp_path)
    path.unlink()
    path.write_text("of somebody else")
    lock.release(remove=True)
    assert path.read_text() == "of somebody else"


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = len(os.listdir("/dev/fd"))
    for number, words in [(37, "its file system has no locks"), (95, "its file system has no locks"), (5, "I/O")]:

        def refuse(descriptor: int, mode: int, number: int = number) -> None:
            raise OSError(number, "I/O")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(OutputError, match=f"^cannot lock 'x': {words}$"):
            FileLock(tmp_path / "lock", Path("x"))
    with pytest.raises(OutputError, match=f"^cannot write 'x': no lock '{tmp_path}/no/lock': No such file or"):
        FileLock(tmp_path / "no" / "lock", Path("x"))
    assert len(os.listdir("/dev/fd")) == opened


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".llava-mini").iterdir())


def begun(folder: Path, shard: str | None) -> FolderLock:
    lock = FolderLock(folder)
    with released_on_failure(lock), lock.notes():
        lock.take(Shard.parse(shard) if shard else None)
    return lock


def test_a_folder_is_of_one_run_or_of_the_shards_of_one_split(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first, second = begun(folder, "1/2"), begun(folder, "2/2")
    assert (first.alone, second.alone) == (True, False)
    assert hidden(folder) == ["lock", "run", "shard-1of2", "shard-2of2"]
    for shard, words in [(None, "another run"), ("1/2", f"'{folder}/shard 1/2'"), ("1/3", f"'{folder}'")]:
        with pytest.raises(OutputLocked, match=words):
            begun(folder, shard)
    (folder / "part").touch()
    second.release()
    assert hidden(folder) == ["lock", "run", "shard-1of2"]
    first.release()
    assert hidden(folder) == ["lock", "run"]
    third = begun(folder, "1/3")
    assert third.alone
    third.release()


def test_a_folder_that_got_nothing_goes_and_one_that_was_there_stays(tmp_path: Path) -> None:
    begun(tmp_path / "new", None).release()
    (tmp_path / "old").mkdir()
    begun(tmp_path / "old", None).release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old"]
    first = begun(tmp_path / "shared", "1/2")
    second = begun(tmp_path / "shared", "2/2")
    second.release()  # others are at work
    assert hidden(tmp_path / "shared") == ["lock", "run", "shard-1of2"]
    first.release()
    assert hidden(tmp_path / "shared") == ["lock"]  # which another shard may be waiting to share


class Held:
    """A lock that notes what was done to it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def release(self) -> None:
        self.said.append("released")


class Finishing(Output):
    """An output that notes how it ended, and may fail at that."""

    def __init__(self, held: Held, fails: bool) -> None:
        super().__init__(done=None, lock=held)  # type: ignore[arg-type]
        self.said, self._fails = held.said, fails

    def finish(self, error: BaseException | None) -> None:
        self.said.append(f"finished by {error!r}")
        if self._fails:
            raise OutputError("disk full")


@pytest.mark.parametrize("fails", [False, True])
def test_an_output_is_finished_and_then_let_go_however_it_ends(fails: bool) -> None:
    for error, words in [(None, "None"), (ValueError(), "ValueError()")]:
        held = Held()
        with suppress(ValueError, OutputError), Finishing(held, fails) as output:
            assert isinstance(output, Finishing)
            if error is not None:
                raise error
        assert held.said == [f"finished by {words}", "released"]


def test_a_lock_is_let_go_only_where_its_block_fails() -> None:
    held = Held()
    with released_on_failure(held):
        pass
    assert held.said == []
    with pytest.raises(KeyboardInterrupt), released_on_failure(held):
        raise KeyboardInterrupt
    assert held.said == ["released"]
