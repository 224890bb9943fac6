"""What launch.py asks of kernels of every age, by a kernel of the test's own: nothing here is confined."""

import ctypes
import errno
import os
import resource
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_mini_cli.media import launch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
EXECUTE, WRITE, READ, LIST = 1, 2, 4, 8


class Kernel:
    """Notes system calls instead of making them. `abi`: of its Landlock; negative: it has none."""

    def __init__(self, abi: int) -> None:
        self.abi = abi
        self.attributes: tuple[int, ...] = ()
        self.rules: dict[str, int] = {}
        self.restricted = False
        self.filter: list[tuple[int, int, int, int]] = []
        self.flags: tuple[int, int] | None = None

    def syscall(self, number: int, *arguments: object) -> int:
        if number == 444 and arguments[0] is None:
            assert arguments[2] == 1
            return self.abi
        if number == 444:
            self.attributes = struct.unpack("=QQQ", arguments[0])  # pyright: ignore[reportArgumentType]
            return os.open("/dev/null", os.O_RDONLY)
        if number == 445:
            rights, path = struct.unpack("=Qi", arguments[2])  # pyright: ignore[reportArgumentType]
            self.rules[str(Path(f"/proc/self/fd/{path}").readlink())] = rights
        elif number == 446:
            self.restricted = arguments[1] == 0
        else:
            assert number in (317, 277)
            self.flags = (arguments[0], arguments[1])  # pyright: ignore[reportAttributeAccessIssue]
            count, address = struct.unpack("@HP", arguments[2])  # pyright: ignore[reportArgumentType]
            self.filter = [struct.unpack("=HBBI", ctypes.string_at(address + 8 * n, 8)) for n in range(count)]
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(7)
    monkeypatch.setattr(launch, "_libc", kernel)
    return kernel


@pytest.mark.parametrize(
    ("abi", "attributes"),
    [
        (1, (0x1FFF, 0, 0)),
        (2, (0x3FFF, 0, 0)),
        (3, (0x7FFF, 0, 0)),
        (4, (0x7FFF, 3, 0)),
        (5, (0xFFFF, 3, 0)),
        (6, (0xFFFF, 3, 3)),
        (7, (0xFFFF, 3, 3)),
        (99, (0xFFFF, 3, 3)),
    ],
)
def test_a_kernel_is_asked_for_the_rights_that_it_knows(kernel: Kernel, abi: int, attributes: tuple[int, ...]) -> None:
    kernel.abi = abi
    launch._landlock([])
    assert (kernel.attributes, kernel.restricted) == (attributes, True)


def test_a_kernel_without_landlock_is_asked_for_nothing(kernel: Kernel) -> None:
    for abi in (-1, 0):
        kernel.abi = abi
        launch._landlock([])
        assert (kernel.attributes, kernel.rules, kernel.restricted) == ((), {}, False)


def test_rules_give_what_their_letters_say_and_files_no_rights_of_folders(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "medium").write_text("")
    (tmp_path / "link").symlink_to("medium")
    (tmp_path / "lib.so").write_text("")
    (tmp_path / "libs").mkdir()
    (tmp_path / "package").mkdir()
    launch._landlock([f"{letter}{tmp_path}/{name}" for letter, name in (
        ("r", "link"), ("l", "lib.so"), ("l", "libs"), ("d", "package"), ("r", "not there")
    )])  # fmt: skip
    ours = {Path(path).name: rights for path, rights in kernel.rules.items() if path.startswith(str(tmp_path))}
    assert ours == {"medium": READ, "lib.so": READ | EXECUTE, "libs": READ | EXECUTE | LIST, "package": LIST}
    assert kernel.rules["/usr"] == READ | EXECUTE | LIST
    assert kernel.rules["/dev/null"] == READ | WRITE
    assert [path for path, rights in kernel.rules.items() if rights & WRITE] == ["/dev/null"]
    others = {Path(path).parts[1] for path in kernel.rules.keys() - {str(tmp_path / name) for name in ours}}
    assert others.isdisjoint({"root", "tmp", "proc", "run", "var", "srv", "mnt", "opt", "media"})
    assert "/etc" not in kernel.rules
    assert "/home" not in kernel.rules


def verdict(steps: list[tuple[int, int, int, int]], architecture: int, number: int, argument: int = 0) -> int:
    """The value that a filter gives for a system call, as the kernel's machine would find it."""
    place, held = 0, 0
    while True:
        code, if_so, if_not, value = steps[place]
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            held = {0: number, 4: architecture, 16: argument}[value]
        else:
            is_so = {0x15: held == value, 0x35: held >= value, 0x45: held & value != 0}[code]
            place += if_so if is_so else if_not


ALLOWED, REFUSED = 0x7FFF0000, 0x50000 | errno.EACCES


@pytest.mark.parametrize(
    ("machine", "architecture", "refused"),
    [  # socket, io_uring_setup, truncate, chmod, fchmodat2, chown, utimensat, setxattr
        ("x86_64", 0xC000003E, {41, 425, 76, 90, 452, 92, 280, 188}),
        ("aarch64", 0xC00000B7, {198, 425, 45, 52, 452, 54, 88, 5}),
    ],
)
def test_the_calls_that_the_filter_refuses(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, machine: str, architecture: int, refused: set[int]
) -> None:
    monkeypatch.setattr(launch.os, "uname", lambda: SimpleNamespace(machine=machine))
    launch._refuse_calls(alone=False)
    assert kernel.flags == (1, 4)
    found = {number for number in range(600) if verdict(kernel.filter, architecture, number) == REFUSED}
    assert found == set(launch._REFUSED[machine][4])
    assert refused <= found
    assert {verdict(kernel.filter, architecture, number) for number in set(range(600)) - found} == {ALLOWED}
    for number in (0, 0x40000000, 0x40000029, 0xFFFFFFFF):
        assert verdict(kernel.filter, architecture ^ 1, number) == REFUSED
        assert verdict(kernel.filter, architecture, number) == (REFUSED if number else ALLOWED)


@pytest.mark.parametrize(
    ("machine", "architecture", "clone", "forks"),
    [("x86_64", 0xC000003E, 56, {57, 58}), ("aarch64", 0xC00000B7, 220, set[int]())],
)
def test_one_that_is_alone_starts_threads_and_no_process(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, machine: str, architecture: int, clone: int, forks: set[int]
) -> None:
    monkeypatch.setattr(launch.os, "uname", lambda: SimpleNamespace(machine=machine))
    launch._refuse_calls(alone=False)
    others = {number for number in range(600) if verdict(kernel.filter, architecture, number) == REFUSED}
    launch._refuse_calls(alone=True)
    found = {number: verdict(kernel.filter, architecture, number) for number in range(600)}
    assert {number for number in found if found[number] == REFUSED} == others | forks | {clone}
    assert {number for number in found if found[number] not in (REFUSED, ALLOWED)} == {435}
    assert found[435] == 0x50000 | errno.ENOSYS
    thread = 0x3D0F00  # the flags of glibc's pthread_create
    assert verdict(kernel.filter, architecture, clone, thread) == ALLOWED
    assert verdict(kernel.filter, architecture, clone, thread & ~0x10000) == REFUSED
    assert verdict(kernel.filter, architecture, clone | 0x40000000, thread) == REFUSED


def test_a_machine_of_another_kind_has_no_filter(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    launch._refuse_calls(alone=True)
    assert kernel.flags is None
    monkeypatch.setattr(launch.os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    monkeypatch.setattr(launch.ctypes, "sizeof", lambda _: 4)  # Python of 32 bits under a kernel of 64
    launch._refuse_calls(alone=True)
    assert kernel.flags is None


def limits(monkeypatch: pytest.MonkeyPatch, memory: int, inherited: int) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(launch.resource, "getrlimit", lambda _: (inherited, inherited))
    monkeypatch.setattr(launch.resource, "setrlimit", lambda limit, values: found.update({limit: values}))
    launch.bound(memory)
    return found


def test_limits_are_lowered_and_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {resource.RLIMIT_CORE: (0, 0), resource.RLIMIT_FSIZE: (0, 0)}
    infinity = resource.RLIM_INFINITY
    stack = {resource.RLIMIT_STACK: (2 << 20, infinity)}
    assert limits(monkeypatch, 0, infinity) == nothing | stack
    assert limits(monkeypatch, 5000, infinity) == nothing | stack | {resource.RLIMIT_DATA: (5000, 5000)}
    assert limits(monkeypatch, 5000, 3000) == nothing | {resource.RLIMIT_DATA: (3000, 3000)}
    assert limits(monkeypatch, 3000, 5000) == nothing | {resource.RLIMIT_DATA: (3000, 3000)}
