"""The command's side of its workers and a worker's own, in one process: threads in place of Ray's actors."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from archive_doubles import SeeingEngine, digest, index, index_options  # noqa: F401 - a fixture
from archive_doubles import job as index_job
from cli_doubles import EchoEngine
from crew_doubles import OPTIONS, ThreadHands, asked, jobs, own_memory, parts, plain, rows  # noqa: F401 - a fixture

from llava_mini_cli import __version__
from llava_mini_cli.config import ModelOptions, RunLimits
from llava_mini_cli.errors import ModelNotFound, WorkersError
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.fetch.embedded import Embedded, Member, OpenTar
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.pipelines import build_archive
from llava_mini_cli.pipelines.answer import load_and_answer
from llava_mini_cli.workers import crew as crew_module
from llava_mini_cli.workers import worker as worker_module
from llava_mini_cli.workers.crew import DEATHS_A_WORKER
from llava_mini_cli.workers.hands import Gone
from llava_mini_cli.workers.messages import Batch, Made, Piece, from_bytes, to_bytes
from llava_mini_cli.workers.portable import portable
from llava_mini_cli.workers.worker import Worker

pytestmark = pytest.mark.usefixtures("own_memory")


def test_rows_and_counts_are_those_of_a_run_without_workers(tmp_path: Path) -> None:
    texts = ["3", "broken", "unopenable", *["2"] * 90, ""]
    hands = ThreadHands()
    here, there = parts(None), parts(hands)
    gone = asked(tmp_path / "gone.mp4")
    alone = rows(iter([*jobs(tmp_path, texts), gone]), here)
    shared = rows(iter([*jobs(tmp_path, texts), gone]), there)
    assert plain(shared) == plain(alone)
    assert len(shared) == len(alone) == 2 * len(texts) + 1
    assert replace(there.tally, listed=[]) == replace(here.tally, listed=[])
    assert sorted(there.tally.listed) == sorted(here.tally.listed)
    events = [one.progress.events for one in (here, there)]  # type: ignore[attr-defined]
    assert events[0].count("item done") == events[1].count("item done") == len(texts) + 1
    assert (hands.is_closed, hands.hired) == (True, 2)
    assert sum(hands.given) == len(texts) + 1
    assert len(hands.given) > 4


def test_no_job_starts_nobody() -> None:
    hands = ThreadHands()
    assert rows(iter(()), parts(hands)) == []
    assert (hands.hired, hands.is_closed) == (0, False)


def test_a_deadly_medium_becomes_one_error_row_for_each_question(tmp_path: Path) -> None:
    hands = ThreadHands(deadly=lambda job: job.path.endswith("m050.mp4"))
    run = parts(hands)
    found = rows(jobs(tmp_path, ["1"] * 100), run)
    failed = [row for row in found if row.status == "error"]
    assert (len(found), len(failed), run.tally.media_failed, run.tally.media) == (200, 2, 1, 100)
    assert {(row.error_type, row.error_stage, row.fingerprint) for row in failed} == {
        ("worker_died", "worker", "m050.mp4 What?"),
        ("worker_died", "worker", "m050.mp4 Who?"),
    }
    assert failed[0].error == "a worker died 3 times over it, the last time with nothing else in hand: it fell over"
    assert failed[0].model_revision == "abc123"
    assert hands.hired == 5
    events = run.progress.events  # type: ignore[attr-defined]
    assert sum(event.startswith("noted lost: worker") for event in events) == 3


def test_workers_that_all_die_end_the_run(tmp_path: Path) -> None:
    hands = ThreadHands(deadly=lambda job: True)
    with pytest.raises(
        WorkersError, match=r"^7 workers died in a row, the last one worker \d+: it fell over; what was"
    ):
        rows(jobs(tmp_path, ["1"] * 100), parts(hands))
    assert hands.hired == 2 + DEATHS_A_WORKER * 2
    assert hands.is_closed


def test_a_model_that_cannot_be_loaded_is_told_once(tmp_path: Path) -> None:
    hands = ThreadHands()
    with pytest.raises(WorkersError, match=r"^no worker is left: worker \d: there is no model echo$"):
        list(load_and_answer(jobs(tmp_path, ["1"]), no_model, OPTIONS, parts(hands)))
    assert hands.hired == 2


def no_model(options: ModelOptions) -> EchoEngine:
    raise ModelNotFound(f"there is no model {options.model}")


def test_a_worker_with_other_weights_is_let_go(tmp_path: Path) -> None:
    loaded.clear()
    hands = ThreadHands()
    run = parts(hands)
    assert len(list(load_and_answer(jobs(tmp_path, ["1"] * 20), of_another_format, OPTIONS, run))) == 40
    events = run.progress.events  # type: ignore[attr-defined]
    lost = [event for event in events if event.startswith("noted lost")]
    assert len(lost) == 1
    assert "holds the weights in int8, others in float32; --dtype settles it" in lost[0]


loaded: list[EchoEngine] = []


def of_another_format(options: ModelOptions) -> EchoEngine:
    engine = EchoEngine(options)
    loaded.append(engine)
    if len(loaded) > 1:
        engine.weight_format = "int8"
    return engine


def test_a_machine_that_goes_down_is_nobodys_fault(tmp_path: Path) -> None:
    left = [8]

    def down(worker: int, batch: Batch) -> Gone | None:
        if left[0] and any(isinstance(message, Made) for message in batch.messages):
            left[0] -= 1
            return Gone("its machine went down", blamed=False)
        return None

    found = rows(jobs(tmp_path, ["1"] * 10), parts(ThreadHands(dies_after=down)))
    assert (len(found), {row.status for row in found}, left) == (20, {"ok"}, [0])


def test_no_place_for_a_worker_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "ALONE_S", 0.0)
    with pytest.raises(WorkersError, match="no worker is left, and no machine has room for one"):
        rows(jobs(tmp_path, ["1"]), parts(ThreadHands(free=0)))


@pytest.mark.parametrize(
    ("hands", "missing"), [(ThreadHands(3, stuck=frozenset({2, 3})), 2), (ThreadHands(9, free=1), 8)]
)
def test_workers_that_wait_for_room_are_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hands: ThreadHands, missing: int
) -> None:
    monkeypatch.setattr(crew_module, "ROOM_S", 0.1)
    run = parts(hands)
    assert len(rows(jobs(tmp_path, ["wait 0.05"] * 10, ["What?"]), run)) == 10
    events = [event for event in run.progress.events if "room" in event]  # type: ignore[attr-defined]
    words = f"noted {missing} of {missing + 1} workers have not started within 0.1 s: the machines may have no room"
    assert events == [f"{words} for them now; the run goes on with 1"]


def test_workers_that_start_are_not_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "ROOM_S", 0.0)
    run = parts(ThreadHands())
    rows(jobs(tmp_path, ["wait 0.05"] * 10, ["What?"]), run)
    assert not [event for event in run.progress.events if "room" in event]  # type: ignore[attr-defined]


def test_a_worker_that_gets_nowhere_is_given_up(tmp_path: Path) -> None:
    hands = ThreadHands(count=1)
    found = rows(jobs(tmp_path, ["1", "wait 8", "1"], ["What?"]), parts(hands, timeout=0.3))
    assert sorted((Path(row.id).name, row.error_type) for row in found) == [
        ("m000.mp4", None), ("m001.mp4", "worker_died"), ("m002.mp4", None),
    ]  # fmt: skip
    assert "gave no sign for 0.3 s, --worker-timeout" in str([row.error for row in found])
    assert hands.hired == 4


@pytest.mark.parametrize(("limits", "stopped_by"), [(RunLimits(5), "limit"), (RunLimits(None, 2), "max_failures")])
def test_limits_end_a_run(tmp_path: Path, limits: RunLimits, stopped_by: str) -> None:
    run = parts(ThreadHands())
    rows(jobs(tmp_path, ["unopenable"] * 30), run, replace(OPTIONS, limits=limits))
    assert (run.tally.stopped_by, run.tally.media) == (stopped_by, 5 if stopped_by == "limit" else 2)


def test_what_reading_the_jobs_raises_is_raised(tmp_path: Path) -> None:
    def broken() -> Iterator[Job]:
        yield from jobs(tmp_path, ["1"])
        raise WorkersError("the list ended")

    with pytest.raises(WorkersError, match="the list ended"):
        rows(broken(), parts(ThreadHands()))


# Archives


@pytest.mark.usefixtures("digest")
def test_an_archive_is_that_of_a_run_without_workers(tmp_path: Path) -> None:
    media = [Path(job.path) for job in jobs(tmp_path, ["5", "broken", "unopenable", *["3"] * 20])]
    options = index_options(features="float16", caption_every=2.0)
    alone = index(tmp_path / "alone", *media, options=options)
    hands = ThreadHands(dies_after=once_after_a_piece())
    shared = parts(hands)
    build_archive.index_jobs(map(index_job, media), tmp_path / "shared", SeeingEngine, options, shared)
    assert (shared.tally.answered, shared.tally.failed) == (alone.tally.answered, alone.tally.failed) == (21, 2)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert hands.hired == 3


def once_after_a_piece() -> Callable[[int, Batch], Gone | None]:
    """A worker dies once it has sent some frames of a medium, and is not there to say that they are all."""
    dying: list[int] = []

    def die(worker: int, batch: Batch) -> Gone | None:
        if worker in dying:
            return Gone("it fell over")
        if not dying and any(isinstance(message, Piece) for message in batch.messages):
            dying.append(worker)
            batch.messages = [message for message in batch.messages if isinstance(message, Piece)][:1]
        return None

    return die


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    with open_archive(folder) as archive:
        table = archive.media.to_pylist()
    return {
        row["path"]: tuple(row[name] for name in ("status", "frames", "frames_sampled", "model", "settings", "warning"))
        for row in table
    }


# A worker


def test_a_worker_says_who_it_is() -> None:
    version, place = Worker().hello()
    assert version == __version__
    assert "process" in place


def test_a_worker_without_work_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    monkeypatch.setattr(worker_module, "POLL_S", 0.01)
    time.sleep(0.05)
    assert from_bytes(worker.take(0.0)).silent_s == 0.0
    worker.give(to_bytes([asked(tmp_path / "x.mp4")._replace(number=0)]), {})  # nobody works on it
    time.sleep(0.05)
    assert 0.04 < from_bytes(worker.take(0.0)).silent_s < 5


def test_what_only_this_process_can_read_goes_along_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(b"xx12345")
    job = asked(tmp_path / "a.mp4")
    member = job._replace(source=Member("t/a.mp4", ".mp4", OpenTar(tmp_path / "tar"), 2, 5))
    cut = job._replace(source=Member("t/b.mp4", ".mp4", OpenTar(tmp_path / "tar"), 6, 5))
    with FileCache(FetchOptions(cache_dir=tmp_path / "cache")) as cache:
        sent = portable(member, cache, ships=False).source
        assert isinstance(sent, Embedded)
        assert (sent.name, sent.suffix, sent.data) == ("t/a.mp4", ".mp4", b"12345")
        assert portable(job, cache, ships=True) is job
        fault = portable(cut, cache, ships=False).fault
    assert fault is not None
    assert fault.stage == "fetch"
    assert from_bytes(to_bytes(job)) == job
