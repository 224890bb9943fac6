"""What this process may have, told from made folders of the kernel."""

from pathlib import Path

import pytest

from llava_mini_cli import memory_there as module
from llava_mini_cli.memory_there import MemoryThere, held_bytes, memory_there

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HELD = 100 * MIB  # that the process holds itself
MACHINE = "the memory of this machine"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """The folder of a process that holds HELD, on a machine with 8 GiB to spare."""
    folder = tmp_path / "proc"
    write(folder / "meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\nSwapFree: {99 << 20} kB\n")
    write(
        folder / "self/status",
        f"Name:\tx\nVmSize:\t{300 << 10} kB\nVmData:\t{200 << 10} kB\nRssAnon:\t{100 << 10} kB\n",
    )
    return folder


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def mounted(proc: Path, *lines: str, path: str) -> None:
    write(proc / "self/mountinfo", "\n".join(lines))
    write(proc / "self/cgroup", path)


def test_workers_share_the_machine(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_beside", 1)
    assert memory_there(proc) == MemoryThere(8 * GIB + HELD, MACHINE)
    module.share_with(2)
    assert memory_there(proc) == MemoryThere(8 * GIB, "this worker's share")
    module.share_with(4)
    assert memory_there(proc) == MemoryThere(4 * GIB, "this worker's share")
    write(proc / "meminfo", f"MemTotal: {16 << 20} kB\nMemAvailable: {1 << 20} kB\n")
    assert memory_there(proc) == MemoryThere(GIB + HELD, MACHINE)


def version_1(folder: Path, limit: int, used: int, files: int = 0, **more: int) -> None:
    write(folder / "memory.limit_in_bytes", limit)
    write(folder / "memory.usage_in_bytes", used)
    stat = {"cache": 7 * GIB, "total_active_file": files // 2, "total_inactive_file": files // 2} | more
    write(folder / "memory.stat", "\n".join(f"{name} {size}" for name, size in stat.items()))


def version_2(folder: Path, most: object, used: int, files: int = 0, high: object = "max") -> None:
    write(folder / "memory.max", most)
    write(folder / "memory.high", high)
    write(folder / "memory.current", used)
    write(folder / "memory.stat", f"active_file {files}\ninactive_file {files}\nslab_reclaimable {files}\nshmem {GIB}")


def test_the_machine_alone_and_swap_does_not_count(proc: Path) -> None:
    assert held_bytes(proc) == HELD
    assert memory_there(proc) == MemoryThere(8 * GIB + HELD, MACHINE)


def test_a_kernel_that_promises_no_more_than_there_is(proc: Path) -> None:
    write(proc / "sys/vm/overcommit_memory", 0)
    left = f"MemAvailable: {8 << 20} kB\nCommitLimit: {7 << 20} kB\nCommitted_AS: {5 << 20} kB"
    write(proc / "meminfo", left)
    assert memory_there(proc) == MemoryThere(8 * GIB + HELD, MACHINE)
    write(proc / "sys/vm/overcommit_memory", 2)
    assert memory_there(proc) == MemoryThere(2 * GIB + HELD, "vm.overcommit_memory=2")


def test_limits_of_the_process(proc: Path) -> None:
    header = "Limit                     Soft Limit           Hard Limit           Units"
    lines = [f"Max data size             {6 * GIB}           unlimited            bytes"]
    write(proc / "self/limits", "\n".join([header, *lines]))
    assert memory_there(proc) == MemoryThere(6 * GIB - 200 * MIB + HELD, "ulimit -d")
    lines.append(f"Max address space         {5 * GIB}           {9 * GIB}            bytes")
    write(proc / "self/limits", "\n".join([header, *lines]))
    assert memory_there(proc) == MemoryThere(5 * GIB - 300 * MIB + HELD, "ulimit -v")
    write(proc / "self/limits", f"{header}\nMax address space         unlimited            unlimited            bytes")
    assert memory_there(proc) == MemoryThere(8 * GIB + HELD, MACHINE)


def test_cgroups_of_version_1_up_to_the_root(proc: Path, tmp_path: Path) -> None:
    root = tmp_path / "cg root/memory"
    mount = str(root).replace(" ", "\\040")
    mounted(
        proc,
        "30 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
        f"35 31 0:32 / {mount} rw,relatime shared:9 - cgroup cgroup rw,memory",
        path="9:name=systemd:/\n4:memory:/a/b\n3:cpuset:/",
    )
    version_1(root, 2**63 - 4096, 3 * GIB)
    version_1(root / "a", 4 * GIB, 3 * GIB, files=2 * GIB)
    version_1(root / "a/b", 5 * GIB, 1 * GIB)
    assert memory_there(proc) == MemoryThere(3 * GIB + HELD, f"the cgroup {root}/a")
    version_1(root / "a/b", 2 * GIB, 1 * GIB)
    assert memory_there(proc) == MemoryThere(1 * GIB + HELD, f"the cgroup {root}/a/b")
    version_1(root / "a/b", 5 * GIB, 1 * GIB, hierarchical_memory_limit=GIB * 3 // 2)  # of one that cannot be seen
    assert memory_there(proc) == MemoryThere(GIB // 2 + HELD, f"the cgroup {root}/a/b")
    version_1(root / "a/b", GIB, 2 * GIB)
    assert memory_there(proc) == MemoryThere(HELD, f"the cgroup {root}/a/b")


def test_a_container_sees_its_own_cgroup_as_the_root(proc: Path, tmp_path: Path) -> None:
    root = tmp_path / "memory"
    line = f"35 31 0:32 /docker/abc {root} ro - cgroup cgroup rw,memory"
    mounted(proc, line, path="4:memory:/docker/abc/job")
    version_1(root, 4 * GIB, GIB)
    version_1(root / "job", 3 * GIB, GIB)
    assert memory_there(proc) == MemoryThere(2 * GIB + HELD, f"the cgroup {root}/job")
    mounted(proc, line, path="4:memory:/elsewhere")
    assert memory_there(proc) == MemoryThere(3 * GIB + HELD, f"the cgroup {root}")


@pytest.mark.parametrize(("most", "high"), [(3 * GIB, "max"), ("max", 3 * GIB), (4 * GIB, 3 * GIB)])
def test_cgroups_of_version_2(proc: Path, tmp_path: Path, most: object, high: object) -> None:
    root = tmp_path / "unified"
    mounted(proc, f"41 31 0:38 / {root} rw - cgroup2 cgroup2 rw", path="4:memory:/other\n0::/x/y")
    version_2(root / "x/y", most, 2 * GIB, files=512 * MIB, high=high)
    version_2(root / "x", "max", 7 * GIB)
    assert memory_there(proc) == MemoryThere(3 * GIB - GIB // 2 + HELD, f"the cgroup {root}/x/y")
    version_2(root / "x", 8 * GIB, 7 * GIB)
    assert memory_there(proc) == MemoryThere(GIB + HELD, f"the cgroup {root}/x")


def test_no_cgroup_has_more_than_its_limit(proc: Path, tmp_path: Path) -> None:
    mounted(proc, f"41 31 0:38 / {tmp_path} rw - cgroup2 cgroup2 rw", path="0::/x")
    version_2(tmp_path / "x", GIB, 0)
    assert memory_there(proc) == MemoryThere(GIB, f"the cgroup {tmp_path}/x")


def test_files_that_say_nothing_of_use(proc: Path, tmp_path: Path) -> None:
    for line in ("", "1 2", "35 31 0:32 / /nowhere rw - cgroup cgroup rw,memory", "\udcff x"):
        write_bytes(proc / "self/mountinfo", line)
        write(proc / "self/cgroup", "4:memory:/a\n0::/b\nnonsense")
        assert memory_there(proc) == MemoryThere(8 * GIB + HELD, MACHINE)


def write_bytes(file: Path, text: str) -> None:
    file.write_bytes(text.encode(errors="surrogateescape"))


def test_systems_without_such_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(module.os, "sysconf", sizes.__getitem__)
    assert memory_there(tmp_path) == MemoryThere(4096 * 1000, MACHINE)
    assert held_bytes(tmp_path) == 0
    monkeypatch.delattr(module.os, "sysconf")
    assert memory_there(tmp_path) is None


def test_this_process_can_be_told() -> None:
    there = memory_there()
    assert there is None or there.bytes > 0
