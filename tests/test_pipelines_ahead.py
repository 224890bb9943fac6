"""Media opened ahead: order, the bound on bytes, disks that hang, inputs that wait, and the end."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_doubles import MadeClip

from llava_mini_cli.errors import LlavaMiniError
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.media.open import Opening
from llava_mini_cli.pipelines.ahead import AHEAD, SLOW_S, OpenAhead, Opened


def jobs(count: int) -> Iterator[Job]:
    return (Job(str(number), str(number), ()) for number in range(count))


def made(job: Job, opening: Opening) -> Clip:
    return MadeClip(job.path, "1")


def take(ahead: OpenAhead, seconds: float = 20.0) -> Opened:
    deadline = time.monotonic() + seconds
    while (opened := ahead.take()) is None:
        assert time.monotonic() < deadline
        ahead.wait()
    return opened


def ends(ahead: OpenAhead, seconds: float = 20.0) -> bool:
    """Whether nothing more comes: a thread finds out, soon after the last was taken."""
    deadline = time.monotonic() + seconds
    while not ahead.is_exhausted and time.monotonic() < deadline:
        ahead.wait(0.01)
    return ahead.is_exhausted


def close(opened: Opened) -> None:
    assert not isinstance(opened.clip, Fault)
    opened.clip.close()
    opened.release()


def test_media_come_in_the_order_of_their_jobs_though_they_open_in_any() -> None:
    def uneven(job: Job, opening: Opening) -> Clip:
        time.sleep(0.02 if int(job.path) % 3 == 0 else 0)
        return made(job, opening)

    ahead = OpenAhead(jobs(200), uneven)
    taken = [take(ahead) for _ in range(200)]
    assert [opened.job.path for opened in taken] == [str(number) for number in range(200)]
    assert ends(ahead)
    assert ahead.take() is None
    ahead.close()


def test_no_more_bytes_are_held_than_the_limit() -> None:
    held = most = 0
    lock = threading.Lock()

    def counted(job: Job, opening: Opening) -> Clip:
        nonlocal held, most
        opening.reserve(30)
        with lock:
            held += 30
            most = max(most, held)
        return made(job, opening)

    ahead = OpenAhead(jobs(100), counted, limit=100)
    for _ in range(100):
        opened = take(ahead)
        with lock:
            held -= 30
        close(opened)
    assert 90 <= most <= 130  # the next one may exceed the limit while nothing that was taken is open
    ahead.close()


def test_room_that_is_given_back_early_is_there_for_others() -> None:
    def kept(job: Job, opening: Opening) -> Clip:
        opening.reserve(90)
        opening.keep(10)
        return made(job, opening)

    ahead = OpenAhead(jobs(9), kept, limit=170)
    held = [take(ahead) for _ in range(9)]  # none of them closed: the last has 90 beside the 80 of the others
    for opened in held:
        close(opened)
    assert ahead._held == ahead._taken_bytes == 0
    ahead.close()


def test_a_medium_larger_than_the_limit_is_opened_alone() -> None:
    sizes = [10, 10, 500, 10, 500, 10]
    begun: list[str] = []

    def sized(job: Job, opening: Opening) -> Clip:
        opening.reserve(sizes[int(job.path)])
        begun.append(job.path)
        return made(job, opening)

    ahead = OpenAhead(jobs(6), sized, limit=100)
    first, second = take(ahead), take(ahead)
    time.sleep(0.1)
    assert "2" not in begun  # waits for what was taken, although it is next
    close(first)
    close(second)
    for number in (2, 3, 4, 5):
        opened = take(ahead)
        assert opened.job.path == str(number)
        close(opened)
    ahead.close()


def test_a_medium_larger_than_the_limit_that_was_overtaken_is_opened_too() -> None:
    sizes = [500, 10, 10, 500]

    def slow_scan(job: Job, opening: Opening) -> Clip:
        time.sleep(SLOW_S + 0.3 if sizes[int(job.path)] > 100 else 0)
        opening.reserve(sizes[int(job.path)])
        return made(job, opening)

    ahead = OpenAhead(jobs(4), slow_scan, limit=100)
    taken: list[str] = []
    for _ in sizes:
        opened = take(ahead)
        taken.append(opened.job.path)
        close(opened)
    assert sorted(taken) == ["0", "1", "2", "3"]
    assert taken[-1] in ("0", "3")
    ahead.close()


@pytest.mark.parametrize("room_first", [False, True])
def test_a_file_whose_disk_hangs_is_given_up_and_the_others_go_on(room_first: bool) -> None:
    free = threading.Event()
    hanging = range(0, 40, 5)  # more than there are threads
    late: list[MadeClip] = []

    def hangs(job: Job, opening: Opening) -> Clip:
        if room_first:
            opening.reserve(1)
        if int(job.path) in hanging:
            free.wait(30)
            late.append(MadeClip(job.path, "1"))
            return late[-1]
        return made(job, opening)

    ahead = OpenAhead(jobs(40), hangs, timeout=0.2)
    began = time.monotonic()
    for number in range(40):
        opened = take(ahead)
        assert opened.job.path == str(number)
        if number in hanging:
            assert opened.clip == Fault("decode", "timeout", "the file could not be opened within 0.2 s")
        else:
            close(opened)
    assert time.monotonic() - began < 20
    assert ends(ahead)
    free.set()
    deadline = time.monotonic() + 10
    while not (len(late) == len(hanging) and all(clip.closed for clip in late)):  # closed by the threads left behind
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ahead.close()


def test_what_was_given_up_leaves_its_room_to_a_large_one() -> None:
    forever = threading.Event()

    def opens(job: Job, opening: Opening) -> Clip:
        opening.reserve(500 if job.path == "2" else 10)
        if job.path == "0":
            forever.wait(60)
        return made(job, opening)

    ahead = OpenAhead(jobs(4), opens, timeout=0.3, limit=100)
    given_up = take(ahead)
    assert isinstance(given_up.clip, Fault)
    for path in ("1", "2", "3"):
        opened = take(ahead, 10)
        assert opened.job.path == path
        close(opened)
    forever.set()  # what comes back late takes no room away from others
    assert ends(ahead)
    ahead.close()
    assert ahead._held == 0


def test_what_a_child_process_watches_has_no_deadline_here() -> None:
    def scans(job: Job, opening: Opening) -> Clip:
        opening.guarded()
        time.sleep(0.4)
        opening.reserve(1)
        time.sleep(0.4)
        return made(job, opening)

    ahead = OpenAhead(jobs(1), scans, timeout=0.1)
    close(take(ahead))
    ahead.close()


def test_two_never_exceed_the_limit_together() -> None:
    held = most = 0
    lock, go = threading.Lock(), threading.Event()

    def large(job: Job, opening: Opening) -> Clip:
        nonlocal held, most
        opening.reserve(500)
        with lock:
            held += 1
            most = max(most, held)
        go.wait(SLOW_S + 0.5)  # so that those behind overtake it
        with lock:
            held -= 1
        opening.keep(1)
        return made(job, opening)

    ahead = OpenAhead(jobs(4), large, limit=100)
    for _ in range(4):
        close(take(ahead))
    assert most == 1
    ahead.close()


def test_how_pictures_are_wanted_is_told_to_who_opens_them() -> None:
    wanted: list[object] = []

    def noted(job: Job, opening: Opening) -> Clip:
        wanted.append(opening.still)
        return made(job, opening)

    ahead = OpenAhead(jobs(2), noted, 320)
    for _ in range(2):
        close(take(ahead))
    assert wanted == [320, 320]
    ahead.close()


def test_what_is_slow_is_overtaken_and_keeps_no_thread_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.pipelines.ahead.SLOW_S", 0.1)
    slow = range(0, 60, 6)  # more than there are threads, guarded by others
    free = threading.Event()

    def scans(job: Job, opening: Opening) -> Clip:
        if int(job.path) in slow:
            free.wait(30)
        return made(job, opening)

    ahead = OpenAhead(jobs(60), scans)
    quick = [number for number in range(60) if number not in slow]
    assert [int(take(ahead).job.path) for _ in quick] == quick
    assert not ahead.is_exhausted
    free.set()
    assert sorted(int(take(ahead).job.path) for _ in slow) == list(slow)
    assert ends(ahead)
    ahead.close()


def test_media_are_handed_out_while_the_input_waits_for_more() -> None:
    more = threading.Event()

    def typed() -> Iterator[Job]:
        yield from jobs(1)
        more.wait(30)
        yield from jobs(1)

    ahead = OpenAhead(typed(), made)
    close(take(ahead))
    assert ahead.take() is None
    assert not ahead.is_exhausted
    more.set()
    close(take(ahead))
    ahead.close()


def test_what_the_input_raises_comes_after_what_it_gave() -> None:
    def broken() -> Iterator[Job]:
        yield from jobs(2)
        raise ValueError("bad line")

    ahead = OpenAhead(broken(), made)
    for _ in range(2):
        assert not ahead.is_exhausted
        close(take(ahead))
    with pytest.raises(ValueError, match="bad line"):
        assert ends(ahead)
    ahead.close()


def test_a_mistake_of_ours_is_a_fault_and_a_missing_decoder_ends_the_run() -> None:
    def fails(job: Job, opening: Opening) -> Clip:
        opening.reserve(100)
        raise (ZeroDivisionError("oops") if job.path == "0" else LlavaMiniError("there is no ffmpeg"))

    ahead = OpenAhead(jobs(2), fails, limit=100)
    assert take(ahead).clip == Fault("decode", "internal", "ZeroDivisionError: oops")
    with pytest.raises(LlavaMiniError, match="no ffmpeg"):
        take(ahead)
    ahead.close()


def test_closing_closes_what_is_open_and_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    opened_here: list[MadeClip] = []
    hang = threading.Event()

    def endless() -> Iterator[Job]:
        yield from jobs(AHEAD)
        hang.wait(60)

    def last_hangs(job: Job, opening: Opening) -> Clip:
        if job.path == "9":
            hang.wait(60)
        opened_here.append(MadeClip(job.path, "1"))
        return opened_here[-1]

    ahead = OpenAhead(endless(), last_hangs)
    opened = take(ahead)
    deadline = time.monotonic() + 10
    while len(opened_here) < AHEAD - 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = time.monotonic()
    ahead.close()
    assert time.monotonic() - began < 10
    close(opened)
    assert all(clip.closed for clip in opened_here)
    hang.set()
