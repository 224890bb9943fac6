"""Starts a decoder so that it cannot outlive the process that asked for it, and sees nothing but its own medium.

Run as a script (`python -I -S launch.py PARENT_PID MEMORY RULE... -- COMMAND ...`) it binds itself to its parent's
life, gives up every right that a decoder has no use for and becomes the command. MEMORY is in bytes, 0 for no bound.
A RULE is a letter and an absolute path, links followed: `r` a file that may be read, `l` a library (a file, or a
folder with all below it, that may be read and run), `d` a folder of which, with all below it, names may be listed;
`p`, without a path, lets it start processes, for each of which MEMORY counts anew.

What the kernel does not know is left out without a word; `media/confinement.py` tells what it knows. Uses the
standard library only and imports nothing else of the package, so that it starts in a few milliseconds; knows nothing
of media.
"""

import ctypes
import errno
import os
import resource
import stat
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SIGKILL = 9  # on Linux; importing `signal` would take half as long as all the rest
STACK_BYTES = 2 << 20  # of each thread: what is set aside counts as taken, and 64 threads of 8 MiB are half a GiB

# Landlock (landlock(7)): numbers of system calls, which are the same on every machine, and bits of rights.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE  # a rule of a file may name no others
_RIGHTS_OF_ABI = (0, 13, 14, 15, 15, 16)  # how many rights of files there are; more from the sixth on are not known
_TCP, _SCOPES = 0b11, 0b11  # bind and connect (ABI 4); abstract sockets and signals out of the domain (ABI 6)

_LETTERS = {"r": _READ_FILE, "l": _READ_FILE | _READ_DIR | _EXECUTE, "d": _READ_DIR, "w": _READ_FILE | _WRITE_FILE}
_SYSTEM = (
    *(f"l/{name}" for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr", "nix/store", "gnu/store")),
    "l/home/linuxbrew/.linuxbrew",
    *(f"r/etc/{name}" for name in ("ld.so.cache", "ld.so.preload", "localtime")),
    *(f"r/etc/{name}/openssl.cnf" for name in ("ssl", "pki/tls")),  # without it OpenSSL does not begin
    *(f"r/dev/{name}" for name in ("zero", "random", "urandom")),
    "w/dev/null",
    "l/sys/devices/system/cpu",  # from which libraries count processors
)

# seccomp(2): the system calls that are refused, by their number, for what Landlock leaves open: sockets other than
# TCP (and io_uring, which makes sockets, too), and changes of what a file's entry says. The first numbers are what
# the kernel calls this kind of machine, seccomp itself, clone, and what starts processes only (fork, vfork).
_REFUSED = {
    "x86_64": (
        0xC000003E,
        317,
        56,
        (57, 58),
        (41, 425, 76, 90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280, 452, 463, 466),
    ),
    "aarch64": (0xC00000B7, 277, 220, (), (198, 425, 5, 6, 7, 14, 15, 16, 45, 52, 53, 54, 55, 88, 452, 463, 466)),
}
_CLONE3 = 435  # on every machine; where it is said to be unknown, libraries take clone, whose flags can be seen
_CLONE_THREAD = 0x10000
_X32 = 0x40000000  # from here on x86 counts the same calls once more
_SET_MODE_FILTER, _SPEC_ALLOW = 1, 4  # the second: no slower mode of the processor for it
_ALLOW, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EACCES, 0x00050000 | errno.ENOSYS

_CAPABILITIES_VERSION = 0x20080522
_KEPT_CAPABILITIES = 0b110  # root's: to read files of others

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Asks the kernel for SIGKILL when the starting thread of process `parent` ends (Linux; elsewhere nothing).

    Survives `exec`. Exits at once if the parent is gone already.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def bound(memory: int) -> None:
    """Sets limits: no core, no file written, `memory` bytes of memory (0: any).

    Of memory what is private and writable counts, so files that are mapped and addresses that are only set aside do
    not (RLIMIT_DATA; only Linux holds to it).
    """
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if memory:
        limits[resource.RLIMIT_DATA] = memory
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (lowered, lowered))
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft == resource.RLIM_INFINITY or soft > STACK_BYTES:
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))


def confine(rules: list[str]) -> None:
    """Gives up, for this process and what it becomes, all but what `rules` allow (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _give_up_capabilities()
        _landlock(rules)
        _refuse_calls(alone="p" not in rules)


def _give_up_capabilities() -> None:
    """Keeps those of root's powers that reading takes; the others could lift limits, or load modules."""
    header = struct.pack("=II", _CAPABILITIES_VERSION, 0)
    held = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; twice, for 64 of them
    if _libc.capget(header, held) == 0:
        effective, permitted = struct.unpack("=II", held.raw[:8])
        kept = (effective & _KEPT_CAPABILITIES, permitted & _KEPT_CAPABILITIES)
        _libc.capset(header, struct.pack("=6I", *kept, 0, 0, 0, 0))


def _landlock(rules: list[str]) -> None:
    abi: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if abi < 1:
        return
    handled = (1 << _RIGHTS_OF_ABI[min(abi, len(_RIGHTS_OF_ABI) - 1)]) - 1
    attributes = struct.pack("=QQQ", handled, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return
    for rule in (*_SYSTEM, *rules):
        try:
            path = os.open(rule[1:], os.O_PATH | os.O_CLOEXEC)
        except OSError:  # not there: whoever opens it says so
            continue
        rights = _LETTERS[rule[0]]
        if not stat.S_ISDIR(os.fstat(path).st_mode):
            rights &= _FILE_RIGHTS
        _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, path), 0)
        os.close(path)
    _libc.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _refuse_calls(*, alone: bool) -> None:
    """Refuses system calls; if `alone`, those that start processes, too, but not threads."""
    if os.uname().machine not in _REFUSED or ctypes.sizeof(ctypes.c_void_p) != 8:
        return
    architecture, seccomp, clone, forks, refused = _REFUSED[os.uname().machine]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    # BPF: an instruction is (code, how many to skip if so, if not, value).
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, _REFUSE), (load, 0, 0, 0)]
    if alone:
        refused = (*refused, *forks)
        steps += [(equal, 0, 1, _CLONE3), (give, 0, 0, _UNKNOWN)]
        steps += [(equal, 0, 4, clone), (load, 0, 0, 16), (any_bit, 0, 1, _CLONE_THREAD), (give, 0, 0, _ALLOW)]
        steps += [(give, 0, 0, _REFUSE)]
    steps += [(at_least, len(refused) + 1, 0, _X32)]
    steps += [(equal, len(refused) - place, 0, number) for place, number in enumerate(refused)]
    steps += [(give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _libc.syscall(seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, program)


def main(arguments: list[str]) -> None:
    """Becomes the command that follows `--` among the arguments."""
    parent, memory, *rest = arguments
    end = rest.index("--")
    die_with_parent(int(parent))
    bound(int(memory))
    confine(rest[:end])
    os.execv(rest[end + 1], rest[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
