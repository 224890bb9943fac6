"""Prepared weights that are kept: the next load uses them from the file, and what is wrong with a file costs a line."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prepared_doubles import NAMES, are_right, are_same, load, made_layer, wanted

from llava_mini_cli.engine import prepared, prepared_file, prepared_folder
from llava_mini_cli.engine.int8_kernels import Int8Kernel, int8_kernels
from llava_mini_cli.engine.prepared import PreparedSupply
from llava_mini_cli.engine.prepared_folder import kept_files
from llava_mini_cli.engine.prepared_index import PAGE
from llava_mini_cli.engine.prepared_wanted import Wanted

DOUBLES = Path(__file__).with_name("prepared_doubles.py")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "llava-mini" / "prepared"


def run(place: Path, asked: Wanted | None = None) -> int:
    """The number of layers that a load had to make; all of them are right."""
    with PreparedSupply(asked or wanted(), place) as supply:
        layers, count = load(supply)
    assert are_right(layers)
    return count


def files_of(place: Path) -> list[str]:
    return sorted(path.suffix for path in place.iterdir()) if place.exists() else []


def kept(place: Path) -> Path:
    (path,) = place.iterdir()
    assert path.suffix == ".weights"
    return path


def test_the_second_load_makes_nothing_and_gets_the_same(place: Path) -> None:
    assert run(place) == len(NAMES)
    assert files_of(place) == [".weights"]
    assert run(place) == 0


def test_the_folder_and_the_file_are_for_their_user_alone(place: Path) -> None:
    run(place)
    assert oct(place.stat().st_mode & 0o777) == "0o700"
    assert oct(kept(place).stat().st_mode & 0o777) == "0o600"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped")
def test_layers_are_used_from_the_file_while_it_is_written_and_afterwards(place: Path) -> None:
    for _ in range(2):
        with PreparedSupply(wanted(), place) as supply:
            layers, _ = load(supply)
        mapped = re.findall(re.escape(str(kept(place))), Path("/proc/self/maps").read_text())
        assert len(mapped) == len(NAMES)
        assert [layer.parts()["scales"].data_ptr() % 64 for layer in layers] == [0] * len(NAMES)
        del layers


@pytest.mark.parametrize("kernel", int8_kernels())
def test_weights_of_every_kernel_are_kept(place: Path, kernel: Int8Kernel) -> None:
    made = made_layer(0, kernel)
    for is_there in (False, True):
        with PreparedSupply(wanted(total=1), place) as supply:
            layer = supply.take("one")
            assert (layer is not None) == is_there
            if layer is None:
                layer = made_layer(0, kernel)
                supply.made("one", layer)
        assert are_same(layer, made)
        assert layer.facts() == made.facts()


def test_weights_that_are_prepared_quickly_are_not_kept(place: Path) -> None:
    said: list[str] = []
    assert run(place, wanted(worth=20.0, say=said.append)) == len(NAMES)
    assert files_of(place) == []
    assert said == []


def test_the_layers_before_it_was_known_are_written_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that becomes slow at the last layer but one: only then does preparing turn out to be worth a file."""
    times = iter([number + 30.0 * (number >= 5) for number in range(7)])
    monkeypatch.setattr(prepared.time, "perf_counter", lambda: next(times))
    with PreparedSupply(wanted(worth=8.0), place) as supply:
        layers, count = load(supply, lambda count: assert_parts(place, [".part"] if count >= 5 else []))
    assert count == len(NAMES)
    assert are_right(layers)
    monkeypatch.undo()
    assert run(place) == 0


def assert_parts(place: Path, suffixes: list[str]) -> None:
    assert files_of(place) == suffixes


@pytest.mark.parametrize("change", [{"about": {"digest": "4567"}}, {"about": {"digest": "0123", "torch": "2"}}])
def test_another_model_or_torch_has_a_file_of_its_own(place: Path, change: dict[str, object]) -> None:
    run(place)
    assert run(place, wanted(**change)) == len(NAMES)
    assert files_of(place) == [".weights", ".weights"]


def test_a_load_that_fails_keeps_nothing(place: Path) -> None:
    def fail(count: int) -> None:
        if count == 4:
            raise RuntimeError("the checkpoint is damaged")

    with pytest.raises(RuntimeError, match="damaged"), PreparedSupply(wanted(), place) as supply:
        load(supply, fail)
    assert files_of(place) == []


def test_without_mapping_plain_weights_are_kept_and_packed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot() -> str:
        return "torch cannot"

    monkeypatch.setattr(prepared_file, "can_map", cannot)
    assert run(place) == len(NAMES)
    monkeypatch.undo()
    assert run(place) == 0


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def cut_inside(path: Path) -> None:
    os.truncate(path, PAGE + 100)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def overwritten(path: Path) -> None:
    flip(path, PAGE * 3 + 17)


def other_index(path: Path) -> None:
    flip(path, path.stat().st_size - 10)


def other_start(path: Path) -> None:
    flip(path, 3)


def other_length(path: Path) -> None:
    flip(path, 37)


def of_other_weights(path: Path) -> None:
    run(path.with_name("others"), wanted(about={"digest": "other"}))
    kept(path.with_name("others")).replace(path)
    path.with_name("others").rmdir()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "it has \\d+ bytes, and says \\d+"),
        (cut_inside, "it has \\d+ bytes, and says \\d+"),
        (emptied, "it is cut short"),
        (lengthened, "it has \\d+ bytes, and says \\d+"),
        (overwritten, "the weights of layers.2.linear have changed"),
        (other_index, "its index has changed"),
        (other_start, "it does not begin as such a file does"),
        (other_length, "it has \\d+ bytes, and says \\d+"),
        (of_other_weights, "it is of other weights"),
    ],
)
def test_a_damaged_file_is_made_anew_with_one_line(place: Path, damage: object, reason: str) -> None:
    run(place)
    assert callable(damage)
    damage(kept(place))
    said: list[str] = []
    assert run(place, wanted(say=said.append)) == len(NAMES)
    assert len(said) == 1
    assert re.fullmatch(f"prepared weights '.*' are not used and made anew: {reason}", said[0])
    assert run(place) == 0


def test_a_layer_that_cannot_be_made_of_the_file_is_made_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.nn.Module:
        raise LookupError("no such class")

    run(place)
    monkeypatch.setattr(prepared, "restored", fail)
    said: list[str] = []
    assert run(place, wanted(say=said.append)) == len(NAMES)
    assert [line.endswith("are not used and made anew: no such class") for line in said] == [True]
    assert files_of(place) == []
    monkeypatch.undo()
    assert run(place) == len(NAMES)
    assert run(place) == 0


def test_a_bound_of_nothing_neither_reads_nor_writes(place: Path) -> None:
    assert run(place, wanted(bound=0)) == len(NAMES)
    assert not place.exists()


def test_weights_beyond_the_bound_are_not_kept(place: Path) -> None:
    said: list[str] = []
    assert run(place, wanted(bound=1000, say=said.append)) == len(NAMES)
    assert files_of(place) == []
    assert [re.sub(r"[\d.]+ GiB", "N", line) for line in said] == [
        "prepared weights are not kept for the next run: N are more than --prepared-size N"
    ]


def test_the_file_that_was_not_used_for_longest_goes_when_there_are_too_many(place: Path) -> None:
    def of(name: str, bound: int = 1 << 30) -> Wanted:
        return wanted(about={"digest": name}, bound=bound)

    for name, used in (("first", 100), ("second", 200), ("third", 300)):
        run(place, of(name))
        os.utime(place / f"{of(name).key}.weights", (used, used))
    run(place, of("first"))  # used again
    size = kept_files(place)[0].size
    run(place, of("fourth", bound=int(size * 3.5)))
    assert {file.about["digest"] for file in kept_files(place)} == {"third", "first", "fourth"}


def test_a_disk_without_room_keeps_nothing_and_loses_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(place)

    def full(path: Path) -> object:
        return shutil._ntuple_diskusage(1 << 40, 1 << 40, 1 << 30)  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(prepared_folder.shutil, "disk_usage", full)
    said: list[str] = []
    assert run(place, wanted(about={"digest": "other"}, say=said.append)) == len(NAMES)
    assert len(said) == 1
    assert said[0].endswith("are needed, and the disk has 1.0 GiB free")
    assert files_of(place) == [".weights"]


def test_a_disk_that_becomes_full_leaves_the_weights_as_they_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = prepared_file.write_all, 0

    def fill(descriptor: int, data: memoryview, offset: int) -> None:
        nonlocal written
        written += 1
        if written > 8:
            raise OSError(28, "No space left on device")
        write(descriptor, data, offset)

    monkeypatch.setattr(prepared_file, "write_all", fill)
    said: list[str] = []
    assert run(place, wanted(say=said.append)) == len(NAMES)
    assert said == ["prepared weights are not kept for the next run: No space left on device"]
    assert files_of(place) == []


@pytest.fixture
def nobody() -> Iterator[None]:
    """Rights that count: for root no folder is read-only."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    yield
    os.seteuid(before)


def given_away(place: Path) -> None:
    """To the user of `nobody`, with the folders above it."""
    if os.geteuid() == 0:
        for path in (place, *place.iterdir()):
            os.chown(path, 65534, 65534)
        for path in place.parents:
            if path != Path("/tmp") and len(path.parts) > 1:
                path.chmod(path.stat().st_mode | 0o055)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = tmp_path / "prepared"
    run(place)
    given_away(place)
    request.getfixturevalue("nobody")
    place.chmod(0o500)
    said: list[str] = []
    assert run(place) == 0
    assert run(place, wanted(about={"digest": "other"}, say=said.append)) == len(NAMES)
    assert len(said) == 1
    assert re.fullmatch(r"prepared weights are not kept for the next run: '.*\.part': Permission denied", said[0])
    place.chmod(0o700)


def linked_folder(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.with_name("elsewhere").mkdir()
    place.symlink_to(place.with_name("elsewhere"))


def file_for_folder(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.touch()


def open_folder(place: Path) -> None:
    place.mkdir(parents=True)
    place.chmod(0o777)


def linked_file(place: Path) -> None:
    run(place)
    path = kept(place)
    path.replace(place.parent / "moved")
    path.symlink_to(place.parent / "moved")


def open_file(place: Path) -> None:
    run(place)
    kept(place).chmod(0o666)


def linked_part(place: Path) -> None:
    place.mkdir(parents=True, mode=0o700)
    (place.parent / "precious").write_text("precious")
    (place / f"{wanted().key}.part").symlink_to(place.parent / "precious")


def pipe(place: Path) -> None:
    place.mkdir(parents=True, mode=0o700)
    os.mkfifo(place / f"{wanted().key}.weights")


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (linked_folder, "it is a link"),
        (file_for_folder, "it is a file, not a folder"),
        (open_folder, "others may write it"),
        (linked_file, "it is a link"),
        (open_file, "others may write it"),
        (linked_part, "it is a link"),
        (pipe, "it is a pipe"),
    ],
)
def test_what_others_may_have_left_is_not_used(place: Path, prepare: object, reason: str) -> None:
    assert callable(prepare)
    prepare(place)
    before = sorted((path.name, path.lstat()) for path in place.parent.rglob("*"))
    said: list[str] = []
    assert run(place, wanted(say=said.append)) == len(NAMES)
    assert len(said) == 1
    assert said[0].startswith("prepared weights are not kept for the next run: '")
    assert reason in said[0]
    after = sorted((path.name, path.lstat()) for path in place.parent.rglob("*"))
    assert [(name, state.st_ino, state.st_size) for name, state in after] == [
        (name, state.st_ino, state.st_size) for name, state in before
    ]


def test_a_left_over_with_another_name_elsewhere_is_not_written_into(place: Path) -> None:
    place.mkdir(parents=True, mode=0o700)
    (place.parent / "precious").write_text("precious")
    os.link(place.parent / "precious", place / f"{wanted().key}.part")
    assert run(place) == len(NAMES)
    assert (place.parent / "precious").read_text() == "precious"
    assert files_of(place) == [".weights"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_not_used(place: Path) -> None:
    run(place)
    os.chown(kept(place), 65534, 65534)
    said: list[str] = []
    assert run(place, wanted(say=said.append)) == len(NAMES)
    assert [line.endswith(": it belongs to somebody else") for line in said] == [True]
    assert kept_files(place) == []


def child(place: Path, when: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(DOUBLES), str(place), when]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_leaves_nothing_that_counts_and_a_later_one_takes_it_away(place: Path) -> None:
    process = child(place, "until told")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["layer 1\n", "layer 2\n"]
    process.kill()
    process.communicate()
    assert files_of(place) == [".part"]
    (place / "0000.part").write_bytes(b"of another model")
    assert run(place) == len(NAMES)
    assert files_of(place) == [".weights"]
    assert run(place) == 0


def test_of_two_runs_one_writes_and_the_other_waits(place: Path) -> None:
    writer = child(place, "until told")
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert [writer.stdout.readline() for _ in range(2)] == ["layer 1\n", "layer 2\n"]
    told = writer.stdin
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        told.write("go on\n")
        told.flush()

    assert run(place, wanted(say=say)) == 0
    assert said == ["waiting for another run, which is preparing the same weights"]
    assert writer.communicate()[0].endswith(f"made {len(NAMES)} True\n")
    assert writer.returncode == 0


def test_of_two_runs_that_begin_together_the_later_takes_the_rest_from_the_other(place: Path) -> None:
    with PreparedSupply(wanted(), place) as late:
        assert late.take(NAMES[0]) is None
        first = made_layer(0)
        with PreparedSupply(wanted(), place) as early:
            load(early, lambda count: late.made(NAMES[0], first) if count == 3 else None)
        assert [late.take(name) is not None for name in NAMES[1:]] == [True] * 5
    assert files_of(place) == [".weights"]


def test_another_run_that_does_not_get_on_is_not_waited_for(place: Path) -> None:
    with PreparedSupply(wanted(), place) as stuck:
        stuck.take(NAMES[0])
        stuck.made(NAMES[0], made_layer(0))
        said: list[str] = []
        assert run(place, wanted(say=said.append, patience=0.3)) == len(NAMES)
    assert said == [
        "waiting for another run, which is preparing the same weights",
        "the other run does not get on; the weights are prepared by this one, too",
    ]


def test_a_file_that_another_run_has_just_finished_is_taken(place: Path) -> None:
    with PreparedSupply(wanted(), place) as late:
        late.take(NAMES[0])
        run(place)
        late.made(NAMES[0], made_layer(0))
        assert [late.take(name) is not None for name in NAMES[1:]] == [True] * 5
    assert files_of(place) == [".weights"]
