"""Small files of strangers, made and then damaged at random, for everything that reads them but the decoders.

    python benchmarks/fuzz.py --seconds 300 [--seed 0] [--only tar --only archive] [--keep FOLDER]

Each case must end within a second, in little memory, and with no exception but those of `errors.py`. A case that does
not is a fault: it is named, and kept in FOLDER. Cases run in a child, so that one that ends the process is known, too.
The same seed gives the same cases. Tests run a few of them, and those of tests/corpus.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fuzz_seeds import SEEDS, Case
from fuzz_targets import TARGETS
from peak_memory import forget_peak, peak

from llava_mini_cli.errors import LlavaMiniError

LONGEST = 1.0  # seconds of a processor for a case
LONGEST_ASLEEP = 20.0  # seconds, on a machine that does other things as well
LARGEST = 400 << 10  # KiB that one case may add to what the process holds
BLOCK = 512
NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"-9223372036854775808", b"1e400", b"9" * 24, b"NaN")
WORDS = (b"null", b"[]", b"{}", b'""', b"[[[[", b"\xff", b"\0", b"\\ud800", b"\xed\xa0\x80", b"../", b"=", b'"', b"\r")
ODD: tuple[object, ...] = (
    *(None, True, 0, -1, 1 << 40, -(1 << 63), 1e308, "", "x" * 300, "../../etc/passwd", "\ud800", "\0"),
    *([], {}, [None], {"a": {}}, [[1]], "10" * 50),
)


class Hang(BaseException):
    """A case that took too long."""


def mutated(case: Case, rng: random.Random) -> Case:
    """A case with one of its files damaged in one to four ways."""
    name = rng.choice(list(case))
    data = case[name]
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_ways(name, data))(data, rng)
    return {**case, name: data}


def _ways(name: str, data: bytes) -> list[Callable[[bytes, random.Random], bytes]]:
    ways = [_flip, _flip, _cut, _repeat, _delete, _insert, _number]
    if name.endswith((".json", ".jsonl")):
        ways += [_json] * 7
    if name.endswith(".tar"):
        ways += [_tar_field] * 7
    return ways


def _place(data: bytes, rng: random.Random) -> int:
    """Any place; often one near the end, where tables have their footers."""
    if rng.random() < 0.3:
        return max(0, len(data) - 1 - rng.randrange(400))
    return rng.randrange(len(data) + 1)


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[min(_place(data, rng), len(data) - 1)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _stretch(data: bytes, rng: random.Random) -> slice:
    begin = _place(data, rng)
    return slice(begin, begin + rng.choice((1, 4, 32, BLOCK, 2 * BLOCK)))


def _repeat(data: bytes, rng: random.Random) -> bytes:
    stretch = _stretch(data, rng)
    return data[: stretch.stop] + data[stretch] * rng.choice((1, 3, 300)) + data[stretch.stop :]


def _delete(data: bytes, rng: random.Random) -> bytes:
    stretch = _stretch(data, rng)
    return data[: stretch.start] + data[stretch.stop :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice((*NUMBERS, *WORDS)) * rng.choice((1, 1, 400)) + data[at:]


def _number(data: bytes, rng: random.Random) -> bytes:
    """A run of digits becomes another number."""
    digits = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
    if not digits:
        return _insert(data, rng)
    begin = end = rng.choice(digits)
    while data[end : end + 1].isdigit():
        end += 1
    return data[:begin] + rng.choice(NUMBERS) + data[end:]


def _json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text, or of one line of several, becomes an odd one, or goes."""
    lines = data.splitlines() if data.count(b"}\n{") else [data]
    at = rng.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[at])
    except (ValueError, IndexError, RecursionError):
        return _insert(data, rng)
    inner = value
    while isinstance(inner, dict | list) and inner:
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.3:
            if rng.random() < 0.1:
                del inner[key]
            else:
                inner[key] = rng.choice(ODD)
            break
        inner = inner[key]
    lines[at] = json.dumps(value).encode()
    return b"\n".join(lines)


def _tar_field(data: bytes, rng: random.Random) -> bytes:
    """A field of a header becomes another one, and the checksum is made right."""
    headers = [at for at in range(0, len(data) - BLOCK + 1, BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return _flip(data, rng)
    at = rng.choice(headers)
    block = bytearray(data[at : at + BLOCK])
    begin, length = rng.choice(
        ((0, 100), (124, 12), (124, 12), (124, 12), (136, 12), (156, 1), (156, 1), (345, 155), (482, 13))
    )
    values = (
        *(
            rng.randbytes(length),
            b"\xff" * (length - 2) + b"\xfe\x00",
            b"\x80" + rng.randbytes(length - 1),
            bytes(length),
        ),
        *(
            b"-0000001000",
            b"7" * length,
            b"00000001000",
            bytes([rng.choice(b"0123456789LKxgXSVMZ")]),
            b"\x80" + b"\0" * 10 + b"\1",
        ),
    )
    block[begin : begin + length] = rng.choice(values)[:length].ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + BLOCK :]


def cases(seed: int, only: list[str]) -> Iterator[tuple[str, Case]]:
    """Damaged cases without end, of each target in turn."""
    rng = random.Random(seed)
    while True:
        for target in only:
            yield target, mutated(rng.choice(SEEDS[target]()), rng)


def fault_of(target: str, case: Case, folder: Path) -> str | None:
    """Why a case is a fault; None where it is none. The case stays in the folder."""
    _write(case, folder)
    most, begin = forget_peak(), time.process_time()
    try:
        with _limited():
            TARGETS[target](folder)
    except LlavaMiniError:
        pass
    except Hang:
        return f"more than {LONGEST} s: " + traceback.format_exc(limit=-3)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{type(error).__name__}: " + traceback.format_exc(limit=-4)
    if time.process_time() - begin > LONGEST:  # in a library that no signal ends
        return f"{time.process_time() - begin:.1f} s"
    grown = peak() - most
    return f"{grown >> 10} MiB" if grown > LARGEST else None


def _write(case: Case, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in case.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@contextmanager
def _limited() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = [signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_ASLEEP)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


def _keep(folder: Path, keep: Path | None, target: str, seed: int, number: int) -> None:
    if keep is not None:
        shutil.copytree(folder, keep / f"{target}-{seed}-{number}", dirs_exist_ok=True)


def _child(arguments: argparse.Namespace, folder: Path) -> int:
    """Runs cases until the time is over; says which are faults, and how many ran."""
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    end = time.monotonic() + arguments.seconds
    counts = dict.fromkeys(arguments.only, 0)
    for warm in arguments.only:  # what is imported at first use takes its time
        for case in SEEDS[warm]():
            _write(case, folder)
            TARGETS[warm](folder)
    found = 0
    for number, (target, case) in enumerate(cases(arguments.seed, arguments.only)):
        if time.monotonic() > end:
            break
        counts[target] += 1
        fault = fault_of(target, case, folder)
        if fault is not None:
            found += 1
            print(f"--- {target}, seed {arguments.seed}, case {number}: {fault}", file=sys.stderr, flush=True)
            _keep(folder, arguments.keep, target, arguments.seed, number)
    print(f"seed {arguments.seed}: {counts}, {found} faults", flush=True)
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(TARGETS))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.only = arguments.only or list(TARGETS)
    if arguments.child is not None:
        return _child(arguments, arguments.child)
    end, seed, faults = time.monotonic() + arguments.seconds, arguments.seed, 0
    with tempfile.TemporaryDirectory() as folder:
        while (left := end - time.monotonic()) > 1:
            only = [word for name in arguments.only for word in ("--only", name)]
            keep = ["--keep", str(arguments.keep)] if arguments.keep else []
            words = [sys.executable, __file__, "--child", f"{folder}/case", "--seed", str(seed), *only, *keep]
            with subprocess.Popen(
                [*words, "--seconds", str(min(left, 60))], env={**os.environ, "OMP_NUM_THREADS": "1"}
            ) as child:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(min(left, 60) + 30)
                if child.poll() is None or child.returncode < 0:
                    child.kill()
                    print(f"--- seed {seed}: the process ended with {child.returncode}, or never", file=sys.stderr)
                    _keep(Path(folder, "case"), arguments.keep, "ended", seed, 0)
                faults += child.returncode != 0
            seed += 1
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
