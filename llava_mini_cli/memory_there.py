"""How much memory this process may have, and what sets the bound: the machine, a memory cgroup, or a limit of its own.

Swap does not count: weights that lie there would be read from a disk at every step. What the kernel can take back, such
as pages of files, counts as free, so a file that a process keeps mapped has to fit as well as memory of its own.
Knows neither torch nor models.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_NO_LIMIT = 1 << 60  # bytes; cgroup v1 writes a number near 2**63 where there is no limit
_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes a space, and other characters that would end a field


class MemoryThere(NamedTuple):
    """The bytes that this process may have, those that it holds already among them."""

    bytes: int
    source: str  # what sets this bound, in words that can follow "by"


_beside = 1  # processes of ours that share the machine, this one among them


def share_with(count: int) -> None:
    """From here on this process may have one of so many equal shares of the machine's memory, and no more."""
    global _beside
    _beside = count


def memory_there(proc: Path = Path("/proc")) -> MemoryThere | None:
    """The least of all bounds on this process; None on a system that tells of none.

    Args:
        proc: where the kernel tells of this process, its mounts and the machine.
    """
    bounds = [
        bound for bound in (_machine(proc), _share(proc), _promised(proc), *_limits(proc), *_cgroups(proc)) if bound
    ]
    return min(bounds, default=None) or _hardware()


def held_bytes(proc: Path = Path("/proc")) -> int:
    """Bytes of memory that this process holds for itself: not those of files. 0 where the system does not say."""
    return _fields(proc / "self/status").get("RssAnon", 0) * 1024


def _machine(proc: Path) -> MemoryThere | None:
    """What the kernel could give without swapping."""
    free = _fields(proc / "meminfo").get("MemAvailable")
    return None if free is None else MemoryThere(free * 1024 + held_bytes(proc), "the memory of this machine")


def _share(proc: Path) -> MemoryThere | None:
    """What each of several workers on one machine may have; None where there is one."""
    there = _fields(proc / "meminfo").get("MemTotal")
    return None if there is None or _beside == 1 else MemoryThere(there * 1024 // _beside, "this worker's share")


def _promised(proc: Path) -> MemoryThere | None:
    """What the kernel may still promise, where it promises no more than there is (`vm.overcommit_memory` is 2)."""
    with suppress(OSError, KeyError):
        if (proc / "sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2":
            told = _fields(proc / "meminfo")
            free = max(0, told["CommitLimit"] - told["Committed_AS"]) * 1024
            return MemoryThere(free + held_bytes(proc), "vm.overcommit_memory=2")
    return None


def _limits(proc: Path) -> Iterator[MemoryThere]:
    """The limits that `ulimit -v` and `ulimit -d` set; libraries that are loaded count towards them, too."""
    told = _fields(proc / "self/status")
    names = {"Max address space": ("VmSize", "ulimit -v"), "Max data size": ("VmData", "ulimit -d")}
    with suppress(OSError):
        for line in (proc / "self/limits").read_text(encoding="ascii").splitlines():
            for name, (used, source) in names.items():
                soft = line.removeprefix(name).split()[0] if line.startswith(name) else ""
                if soft.isdecimal():
                    free = max(0, int(soft) - told.get(used, 0) * 1024)
                    yield MemoryThere(free + held_bytes(proc), source)


def _cgroups(proc: Path) -> Iterator[MemoryThere]:
    """The limits of this process's memory cgroup, version 1 or 2, and of all above it that can be seen."""
    for version, root, top in _cgroup_mounts(proc):
        path = _own_cgroup(proc, version)
        if path is None:
            continue
        with suppress(ValueError):
            below = Path(os.path.relpath(path, root)).parts  # a container may see its own cgroup as the root
            places = [top.joinpath(*below[:depth]) for depth in range(len(below), -1, -1) if ".." not in below[:depth]]
            for place in places:
                yield from (_version_1 if version == 1 else _version_2)(place, held_bytes(proc))


def _cgroup_mounts(proc: Path) -> Iterator[tuple[int, str, Path]]:
    """The version, the root and the folder of each mount of a cgroup hierarchy that may limit memory."""
    with suppress(OSError):
        for line in (proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            before, _, behind = line.partition(" - ")
            fields, kind = before.split(" "), behind.split(" ")
            is_first = kind[0] == "cgroup" and "memory" in kind[-1].split(",")
            if len(fields) > 4 and (is_first or kind[0] == "cgroup2"):
                root, folder = (_OCTAL.sub(lambda found: chr(int(found[1], 8)), name) for name in fields[3:5])
                yield 1 if is_first else 2, root, Path(folder)


def _own_cgroup(proc: Path, version: int) -> str | None:
    """The path of this process's cgroup below the root of its hierarchy."""
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if (number == "0" and not controllers) if version == 2 else "memory" in controllers.split(","):
                return path
    return None


def _version_1(place: Path, held: int) -> Iterator[MemoryThere]:
    stat = _fields(place / "memory.stat")
    limits = [_number(place / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit")]
    files = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
    yield from _left(place, limits, _number(place / "memory.usage_in_bytes"), files, held)


def _version_2(place: Path, held: int) -> Iterator[MemoryThere]:
    stat = _fields(place / "memory.stat")
    limits = [_number(place / "memory.max"), _number(place / "memory.high")]  # beyond the latter, it is slowed down
    files = stat.get("active_file", 0) + stat.get("inactive_file", 0) + stat.get("slab_reclaimable", 0)
    yield from _left(place, limits, _number(place / "memory.current"), files, held)


def _left(place: Path, limits: list[int | None], used: int | None, files: int, held: int) -> Iterator[MemoryThere]:
    """The lowest of some limits of a cgroup, less what is used of it and is no file's."""
    limit = min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)
    if limit is not None:
        free = max(0, limit - max(0, (used or 0) - files))
        yield MemoryThere(min(limit, free + held), f"the cgroup {place}")


def _number(file: Path) -> int | None:
    """The number that a file holds; None where there is none, as in one that says `max`."""
    with suppress(OSError, ValueError):
        return int(file.read_text(encoding="ascii"))
    return None


def _fields(file: Path) -> dict[str, int]:
    """The first number of each line of a file of the kernel, by the name in front of it."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, *numbers = [*line.replace(":", " ", 1).split(), ""]
            if numbers and numbers[0].isdecimal():
                found[name] = int(numbers[0])
    return found


def _hardware() -> MemoryThere | None:
    """All of the machine's memory, where nobody says how much of it is free, as on macOS."""
    with suppress(ValueError, OSError, AttributeError):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return MemoryThere(size, "the memory of this machine") if size > 0 else None
    return None
