"""A child sees its own medium, the interpreter and the libraries; all else is refused, and the row says so."""

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import media_films as films
import pytest

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import open as open_module
from llava_mini_cli.media.child import Child, Command, python_command
from llava_mini_cli.media.confinement import KINDS, kept_from, refusal_of
from llava_mini_cli.media.decoders import DECODERS, Plan
from llava_mini_cli.media.open import open_clip

DENIED = f"[Errno {errno.EACCES}] Permission denied"
MIB = 1 << 20
# Each is tried in the child, which knows `medium`, `folder`, `port`, and `temporary`, a folder elsewhere.
ATTEMPTS = {
    "read /etc/passwd": "open('/etc/passwd')",
    "read a file beside": "open(folder + '/secret')",
    "read through a link": "open(folder + '/link')",
    "read another process": "open(f'/proc/{os.getppid()}/environ')",
    "list the folder": "os.listdir(folder)",
    "write to the folder": "open(folder + '/new', 'w')",
    "write to /tmp": "open('/tmp/llava-mini-confined', 'w')",
    "write to shared memory": "open('/dev/shm/llava-mini-confined', 'w')",
    "write to the medium": "open(medium, 'a')",
    "empty the medium": "os.truncate(medium, 0)",
    "make a folder": "os.mkdir(temporary + '/new')",
    "make a pipe": "os.mkfifo(folder + '/pipe')",
    "make a link": "os.symlink('secret', folder + '/another')",
    "remove a file": "os.remove(folder + '/secret')",
    "move the medium": "os.rename(medium, temporary + '/moved')",
    "change who may read": "os.chmod(folder + '/secret', 0o777)",
    "change the owner": "os.chown(folder + '/secret', 1, 1)",
    "change the time": "os.utime(medium)",
    "change an attribute": "os.setxattr(medium, 'user.mark', b'1')",
    "connect": "socket.create_connection(('127.0.0.1', port))",
    "listen": "socket.create_server(('127.0.0.1', 0))",
    "send a packet": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', port))",
    "reach a local service": "socket.socket(socket.AF_UNIX)",
    "make an io_uring": "call(425, 1, ctypes.create_string_buffer(120))",
}
SCRIPT = """
import ctypes, os, resource, signal, socket, sys
medium, port, temporary, attempt = sys.argv[1:]
port, folder = int(port), os.path.dirname(medium)
def call(*arguments):
    if (value := (libc := ctypes.CDLL(None, use_errno=True)).syscall(*arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value
"""


def _confines() -> bool:
    """True if this kernel has all that is tested here: Landlock with signals, and seccomp."""
    known = sys.platform == "linux" and os.uname().machine in ("x86_64", "aarch64")
    return known and ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) >= 6


pytestmark = pytest.mark.skipif(not _confines(), reason="this kernel does not confine all")


def test_what_decoders_are_kept_from_here() -> None:
    assert kept_from() == KINDS


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A film in a folder with a secret beside it."""
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "secret").write_text("a secret")
    (folder / "link").symlink_to("secret")
    return films.film(folder / "film.mp4", 90, *films.H264)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def outcome(command: Command) -> str:
    """The last line that a child says; empty if it ended well."""
    with closing(Child(command, 20)) as child:
        for _ in iter(child.read_some, b""):
            pass
        return child.said[-1] if child.finish() != 0 else ""


def trying(plan: Plan, port: int, temporary: Path, attempt: str) -> Command:
    """A decoder that does one thing that is none of its business, and would give no frame then."""
    arguments = (str(plan.path), str(port), str(temporary), attempt)
    argv = (sys.executable, "-c", SCRIPT + "open(medium).close()\n" + attempt, *arguments)
    return Command(argv, reads=(plan.path,), memory=plan.memory)


def row_error(film: Path, port: int, temporary: Path, attempt: str) -> MediaError:
    decoder = replace(DECODERS["decord"], command=lambda plan: trying(plan, port, temporary, attempt))
    with (
        pytest.raises(MediaError) as caught,
        open_clip(film, SamplingOptions(decoder="decord"), decoders={"decord": decoder}) as clip,
    ):
        list(clip)
    return caught.value


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_what_a_decoder_tries_is_refused_and_the_row_says_so(
    film: Path, tmp_path: Path, port: int, attempt: str
) -> None:
    before = film.read_bytes()
    error = row_error(film, port, tmp_path, ATTEMPTS[attempt])
    assert error.kind == "corrupt"
    assert DENIED in str(error)
    assert sorted(os.listdir(film.parent)) == ["film.mp4", "link", "secret"]
    assert film.read_bytes() == before


@pytest.mark.parametrize("attempt", ["bytearray(8 << 30)", "[bytes(MiB) for MiB in [1 << 20] * 8192]"])
def test_a_decoder_that_grows_is_refused_and_the_row_says_how_much_it_had(
    film: Path, tmp_path: Path, port: int, attempt: str
) -> None:
    error = row_error(film, port, tmp_path, attempt)
    allowed = open_module.most_bytes(256 * 144, deep=False, toned=False) // MIB
    assert (error.kind, str(error)) == ("too_large", f"decoding needs more than {allowed} MiB of memory")


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))", "not allowed to raise maximum limit"),
        ("resource.setrlimit(resource.RLIMIT_CORE, (1, 1))", "not allowed to raise maximum limit"),
        ("os.write(os.memfd_create('x'), b'x')", "File too large"),
        ("os.kill(os.getppid(), signal.SIGCONT)", "Operation not permitted"),
        ("call(444, None, 0, 1) and os.execv('/bin/cat', ['cat', folder + '/secret'])", "cat:"),
        ("os.setuid(1); os.setuid(0)", "Operation not permitted"),
    ],
)
def test_no_power_is_left_that_would_lift_the_bounds(
    film: Path, tmp_path: Path, port: int, attempt: str, refusal: str
) -> None:
    assert refusal in str(row_error(film, port, tmp_path, attempt))


@pytest.mark.parametrize(
    "attempt",
    ["os.fork()", "os.posix_spawn('/bin/true', ['true'], {})", "call(435, ctypes.create_string_buffer(88), 88)"],
)
def test_one_that_is_alone_can_start_threads_and_no_process(film: Path, attempt: str) -> None:
    code = SCRIPT + "import threading\nthread = threading.Thread(target=print)\nthread.start(); thread.join()\n"
    argv = (sys.executable, "-c", code + attempt, str(film), "0", "", "")
    assert outcome(Command((*argv[:2], code, *argv[3:]), alone=True)) == ""
    refusal = "[Errno 38] Function not implemented" if "call" in attempt else DENIED
    assert refusal in outcome(Command(argv, alone=True))


def test_what_a_child_may_do(tmp_path: Path, film: Path) -> None:
    odd = tmp_path / os.fsdecode(b"gr\xfc\xdf.mp4")
    odd.symlink_to(film)
    code = (
        "import os, sys, random\n"
        "assert len(open(sys.argv[1], 'rb').read()) == int(sys.argv[2])\n"
        "open('/dev/null', 'w').write('x'); open('/dev/stdin').read(); open('/dev/urandom', 'rb').read(1)\n"
        "os.write(int(sys.argv[3]), b'through an inherited descriptor')\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = (str(odd), str(film.stat().st_size), str(theirs.fileno()))
        argv = (sys.executable, "-c", code, *arguments)
        reads = (odd, tmp_path / "there is no such file")
        assert outcome(Command(argv, b"in", reads=reads, pass_fds=(theirs.fileno(),))) == ""
        assert ours.recv(100) == b"through an inherited descriptor"


def test_shared_memory_that_has_its_size_can_be_written() -> None:
    memory = os.memfd_create("pixels")
    os.ftruncate(memory, 10)
    code = "import mmap, sys; mmap.mmap(int(sys.argv[1]), 10)[:] = b'0123456789'"
    assert outcome(Command((sys.executable, "-c", code, str(memory)), pass_fds=(memory,))) == ""
    assert os.pread(memory, 20, 0) == b"0123456789"
    os.close(memory)


@pytest.mark.parametrize("module", ["numpy.random", "PIL.Image", "ssl", "llava_mini_cli.media.picture_worker"])
def test_libraries_can_be_imported_without_a_home(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.delenv("HOME")
    code = f"import {module}"
    assert outcome(replace(python_command("x"), argv=(sys.executable, "-P", "-c", code))) == ""


def test_the_current_directory_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.txt").write_text("the user's")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    argv = (sys.executable, "-c", "open('own.txt')")
    assert outcome(Command(argv)) == f"PermissionError: {DENIED}: 'own.txt'"


def test_memory_is_what_is_written_not_what_is_mapped_or_set_aside(film: Path) -> None:
    code = (
        "import mmap, os, sys, threading\n"
        "film = open(sys.argv[1], 'rb')\n"
        "maps = [mmap.mmap(film.fileno(), 0, prot=mmap.PROT_READ) for _ in range(4000)]\n"
        "aside = mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)\n"
        "stop = threading.Event()\n"
        "threads = [threading.Thread(target=stop.wait) for _ in range(64)]\n"
        "[thread.start() for thread in threads]; stop.set()\n"
    )
    argv = (sys.executable, "-c", code, str(film))
    assert outcome(Command(argv, reads=(film,), memory=200 * MIB)) == ""


def test_a_file_that_grows_in_the_middle_gives_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = films.film(tmp_path / "small.ts", 90, *films.H264)
    large = films.film(tmp_path / "large.ts", 20, *films.H264, size=(3840, 2160))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    monkeypatch.setattr(open_module, "most_bytes", lambda *_, **__: 90 * MIB)
    with open_clip(tmp_path / "both.ts", SamplingOptions(decoder="ffmpeg", fps=3)) as clip:
        times = [time for chunk in clip for time in chunk.times]
    assert times[:9] == pytest.approx([0.1667 + n / 3 for n in range(9)], abs=0.04)
    assert any("frames could be decoded: decoding needs more than 90 MiB of memory" in said for said in clip.warnings)


def test_a_program_that_cannot_be_run_confined(tmp_path: Path) -> None:
    (tmp_path / "library").write_text("")
    for name, line in {"good": "exit 0", "bad": f"exec cat {tmp_path}/library", "silent": "exit 3"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    assert refusal_of(str(tmp_path / "good")) is None
    assert refusal_of(str(tmp_path / "silent")) == "it ended with status 3"
    assert f"{tmp_path}/library: Permission denied" in (refusal_of(str(tmp_path / "bad")) or "")
