"""Parts of a folder that workers write: each row once, whoever dies, and rows through the command where it must be."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine
from crew_doubles import OPTIONS, ThreadHands, asked, jobs, own_memory, parts  # noqa: F401 - a fixture

from llava_mini_cli.errors import OutputError
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs import parquet_parts, prepared_parts
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output
from llava_mini_cli.formats.outputs.output import PartsPlace
from llava_mini_cli.formats.outputs.prepared_parts import PreparedParts, can_prepare, prepare_part
from llava_mini_cli.formats.row import Row
from llava_mini_cli.pipelines.answer import answer_into, load_and_answer
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.safe_files import HOST, STALE
from llava_mini_cli.workers import worker as worker_module
from llava_mini_cli.workers.hands import Gone
from llava_mini_cli.workers.messages import Batch, Ended, Made, Prepared, from_bytes
from llava_mini_cli.workers.worker import Worker

pytestmark = pytest.mark.usefixtures("own_memory", "small_parts")
PLAIN = "wait 0.001"  # a medium without a warning
PROMPTS = [f"What is in part {number}?" for number in range(5)]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PART_ROWS", 12)


def write(folder: Path, run: RunParts, texts: list[str], out: str = "out", shard: str | None = None) -> None:
    media = folder / "in"
    if not media.exists():
        media.mkdir()
        list(jobs(media, texts))
    asked_for = OutputOptions.parse(f"{folder}/{out}/", None, shard=shard)
    some = (asked(path, PROMPTS) for path in sorted(media.iterdir()))
    answer_into(lambda: open_output(asked_for, OPTIONS.run_info()), some, EchoEngine, OPTIONS, run)


def found(folder: Path, out: str = "out") -> list[tuple[object, ...]]:
    """The rows, in an order of their own, without the time of day."""
    assert not list((folder / out / ".llava-mini").glob("parts-*"))
    table = pq.read_table(folder / out).drop_columns(["created_at"])
    return sorted(tuple(map(str, row.values())) for row in table.to_pylist())


def watched(seen: list[object]) -> Callable[[int, Batch], Gone | None]:
    def watch(worker: int, batch: Batch) -> None:
        seen.extend(batch.messages)

    return watch


def of_kind(seen: list[object], kind: type) -> int:
    return sum(isinstance(message, kind) for message in seen)


def test_rows_and_counts_are_those_of_a_run_without_workers(tmp_path: Path) -> None:
    texts = [PLAIN] * 70 + ["broken", "unopenable", "2"] + [PLAIN] * 7
    seen: list[object] = []
    run, alone = parts(ThreadHands(dies_after=watched(seen))), parts(None)
    write(tmp_path, run, texts)
    write(tmp_path, alone, texts, "alone")
    assert found(tmp_path) == found(tmp_path, "alone")
    assert replace(run.tally, listed=[]) == replace(alone.tally, listed=[])
    assert of_kind(seen, Prepared) > 5
    warned = [message for message in seen if isinstance(message, Made) and len(message.items) == 5]
    assert {row.status for message in warned for row, _ in message.items if row.error} == {"error"}
    again = parts(ThreadHands())
    write(tmp_path, again, texts)
    assert (again.tally.skipped, again.tally.media) == (len(texts) * 5, 0)


def test_a_part_that_was_written_and_not_told_of_is_no_row(tmp_path: Path) -> None:
    dead: list[int] = []

    def die(worker: int, batch: Batch) -> Gone | None:
        if len(dead) < 3 and any(isinstance(message, Prepared) for message in batch.messages):
            dead.append(worker)
            return Gone("it fell over")
        return None

    run = parts(ThreadHands(dies_after=die))
    write(tmp_path, run, [PLAIN] * 60)
    rows = pq.read_table(tmp_path / "out", columns=["fingerprint"])["fingerprint"].to_pylist()
    assert (len(rows), len(set(rows)), run.tally.answered, run.tally.media) == (300, 300, 300, 60)
    assert len(dead) == 3
    found(tmp_path)


def test_a_run_that_dies_leaves_nothing_that_stays(tmp_path: Path) -> None:
    hidden = tmp_path / "out" / ".llava-mini"
    hidden.mkdir(parents=True)
    held, dead = left_over(hidden, HOST, age=0), left_over(hidden, HOST, age=0)
    elsewhere, dead_elsewhere = left_over(hidden, "0" * 8, age=0), left_over(hidden, "0" * 8, age=2 * STALE)
    with FileLock(held, tmp_path / "out"), FileLock(hidden / "lock", tmp_path / "out", shared=True):  # another shard
        write(tmp_path, parts(ThreadHands()), [PLAIN] * 20, shard="1/2")
        assert set(hidden.glob("parts-*.d")) == {folder_of(held), folder_of(elsewhere)}
    assert not dead.exists()
    assert not dead_elsewhere.exists()
    write(tmp_path, parts(ThreadHands()), [PLAIN] * 20, shard="2/2")  # and nobody else
    assert found(tmp_path)


def left_over(hidden: Path, host: str, age: float) -> Path:
    """The lock of a run that was killed, with half a part that was prepared for it."""
    lock = hidden / f"parts-{host}-{token_hex(8)}"
    lock.touch()
    folder_of(lock).mkdir()
    (folder_of(lock) / "a.parquet").write_bytes(b"half of it")
    os.utime(folder_of(lock), (time.time() - age, time.time() - age))
    return lock


def folder_of(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.d")


def test_rows_that_were_sent_do_not_wait_while_parts_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = OutputOptions.parse(f"{tmp_path}/out/", None)
    made: list[Row] = list(load_and_answer(jobs(tmp_path, [PLAIN] * 2, PROMPTS), EchoEngine, OPTIONS, parts(None)))
    with open_output(asked_for, OPTIONS.run_info()) as output:
        place = output.place()
        assert place is not None
        monkeypatch.setattr(parquet_parts, "FLUSH_SECONDS", 60.0)
        output.write(made[0])
        monkeypatch.setattr(parquet_parts, "FLUSH_SECONDS", 0.0)
        output.take_in(prepare_part(place, made[1:]))
        assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 2


def test_nothing_is_left_where_nothing_was_done(tmp_path: Path) -> None:
    write(tmp_path, parts(ThreadHands()), [])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("why", ["no disk", "no room"])
def test_rows_come_through_the_command_where_a_worker_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def refuse(*_: object) -> str:
        raise OutputError("no space left on device")

    if why == "no disk":
        monkeypatch.setattr(prepared_parts, "can_prepare", lambda place: False)
    else:
        monkeypatch.setattr(prepared_parts, "prepare_part", refuse)
    seen: list[object] = []
    run = parts(ThreadHands(dies_after=watched(seen)))
    write(tmp_path, run, [PLAIN] * 40)
    assert len(found(tmp_path)) == run.tally.answered == 200
    assert of_kind(seen, Prepared) == 0
    details = [event for event in run.progress.events if event.startswith("detail")]  # type: ignore[attr-defined]
    assert len(details) == (why == "no disk")
    assert all("that it may write to: it sends its rows, and they are written here" in one for one in details)


def test_a_folder_elsewhere_is_not_seen(tmp_path: Path) -> None:
    made = PreparedParts(tmp_path, tmp_path)
    assert can_prepare(PartsPlace(str(made.folder), b""))
    made.close()
    assert not can_prepare(PartsPlace(str(made.folder), b""))
    assert not list(tmp_path.iterdir())


def waiting(count: int, in_hand: int) -> Worker:
    """A worker with media that are over, and wait to become a part."""
    worker = Worker()
    worker._place, worker._in_hand = PartsPlace("nowhere", b""), in_hand
    for number in range(count):
        worker._over(Made(number, [], 0.0))
    return worker


def test_rows_do_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_bytes(waiting(3, 7).take(0.0)).messages == []
    worker = waiting(4, 8)  # half of what it has: it may soon have nothing to do
    assert [message.number for message in from_bytes(worker.take(5.0)).messages] == [0, 1, 2, 3]
    assert worker._in_hand == 4
    worker = waiting(1, 9)
    monkeypatch.setattr(worker_module, "WAIT_S", 0.02)
    time.sleep(0.03)
    assert len(from_bytes(worker.take(0.0)).messages) == 1
    assert from_bytes(worker.take(0.0)).messages == []


def test_a_worker_that_ends_sends_what_waits() -> None:
    worker = waiting(2, 9)
    worker._say(Ended("no more", could_begin=True))
    kinds = [type(message) for message in from_bytes(worker.take(0.0)).messages]
    assert kinds == [Made, Made, Ended]


def test_what_has_a_failure_or_a_warning_is_sent(tmp_path: Path) -> None:
    seen: list[object] = []
    run = parts(ThreadHands(count=1, dies_after=watched(seen)))
    write(tmp_path, run, ["broken", "2", *[PLAIN] * 10, "unopenable"])
    sent = [message for message in seen if isinstance(message, Made)]
    told = [message for message in sent if any(row.error or row.warning for row, _ in message.items)]
    assert len(told) == 3
    said = [row for row in run.progress.rows if row.error or row.warning]  # type: ignore[attr-defined]
    assert len(said) == 15
