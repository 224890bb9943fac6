"""The bounded hand-over by itself: capacity, order, errors, and its end from either side."""

import threading
import time
from collections.abc import Callable

import pytest

from llava_mini_cli.handover import HandOver, StoppedError


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_items_come_in_order_and_no_more_wait_than_the_capacity() -> None:
    made: list[int] = []

    def count(numbers: HandOver[int]) -> None:
        for number in range(100):
            made.append(number)
            numbers.put(number)

    numbers = HandOver(count, 3, "count")
    wait_until(lambda: len(made) == 4)  # three wait, and one for room
    time.sleep(0.02)
    assert len(made) == 4
    for number in range(100):
        assert next(numbers) == number
        assert len(made) <= number + 5
    assert next(numbers, None) is None
    assert next(numbers, None) is None
    assert numbers.join(5)


def test_it_is_ready_for_an_item_and_for_the_end() -> None:
    go = threading.Semaphore(0)

    def one(items: HandOver[str]) -> None:
        go.acquire()
        items.put("a")
        go.acquire()

    items = HandOver(one, 1, "one")
    assert not items.ready()
    go.release()
    wait_until(items.ready)
    assert next(items) == "a"
    assert not items.ready()
    go.release()
    wait_until(items.ready)
    assert list(items) == []


def test_what_was_raised_comes_after_what_was_put_and_again() -> None:
    def fails(items: HandOver[int]) -> None:
        items.put(1)
        items.put(2)
        raise ValueError("bad line")

    items = HandOver(fails, 5, "fails")
    assert items.join(5)
    assert items.ready()
    assert [next(items), next(items)] == [1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="bad line"):
            next(items)


def test_stopping_wakes_a_producer_that_waits_for_room_and_drops_what_waits() -> None:
    raised: list[BaseException] = []

    def endless(items: HandOver[int]) -> None:
        try:
            while True:
                items.put(1)
        except StoppedError as error:
            raised.append(error)
            raise

    items = HandOver(endless, 2, "endless")
    wait_until(items.ready)
    items.stop()
    assert items.join(5)
    assert len(raised) == 1
    assert list(items) == []
    items.stop()  # again
    with pytest.raises(StoppedError):
        items.put(2)


def test_stopping_wakes_everybody_who_waits_for_an_item() -> None:
    free = threading.Event()
    ends: list[int | None] = []
    items: HandOver[int] = HandOver(lambda items: free.wait(30) and None, 1, "silent")
    takers = [threading.Thread(target=lambda: ends.append(next(items, None))) for _ in range(3)]
    for taker in takers:
        taker.start()
    items.stop()
    for taker in takers:
        taker.join(5)
    assert ends == [None] * 3
    free.set()
    assert items.join(5)


def test_a_thread_that_does_not_end_is_left_behind_and_what_it_raises_is_nobodys() -> None:
    free = threading.Event()

    def deaf(items: HandOver[int]) -> None:
        free.wait(30)
        raise ValueError("too late")

    items = HandOver(deaf, 1, "deaf")
    items.stop()
    began = time.monotonic()
    assert not items.join(0.05)
    assert time.monotonic() - began < 5
    assert list(items) == []
    free.set()
    assert items.join(5)
    assert list(items) == []


def test_what_was_raised_is_dropped_by_stopping() -> None:
    def fails(items: HandOver[int]) -> None:
        raise ValueError("bad line")

    items = HandOver(fails, 1, "fails")
    assert items.join(5)
    items.stop()
    assert list(items) == []


def test_its_thread_has_a_name_and_keeps_no_process_alive() -> None:
    free = threading.Event()
    items: HandOver[int] = HandOver(lambda items: free.wait(30) and None, 1, "frames of a film")
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "frames of a film"]
    assert thread.daemon
    free.set()
    assert items.join(5)
    assert thread not in threading.enumerate()
