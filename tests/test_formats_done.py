"""What is done already: claims, occurrences of the same work, and which of two rows stands."""

import re
import tracemalloc

import pytest

from llava_mini_cli.formats.outputs.done import KEY_PATTERN, Done, parse_key, standing, written_key

WORK, OTHER = "0123456789abcdef0123", "f" * 20
OLD, NEW = "000000000001", "000000000002"


def done(*rows: tuple[str, bool], retry_errors: bool = False) -> Done:
    there = Done(retry_errors=retry_errors)
    there.add(rows)
    return there


def test_finished_work_is_claimed_once_for_each_of_its_rows() -> None:
    there = done((WORK + OLD, False), (WORK + OLD + ".1", False), (OTHER + OLD, False))
    assert len(there) == 3
    assert [there.claim(*parse_key(WORK + OLD)) for _ in range(4)] == [None, None, WORK + OLD + ".2", WORK + OLD + ".3"]
    assert (there.rows_left, there.replaced) == (2, 0)


def test_new_work_asked_for_twice_gets_two_keys() -> None:
    there = Done()
    assert [there.claim(*parse_key(WORK + OLD)) for _ in range(3)] == [WORK + OLD, WORK + OLD + ".1", WORK + OLD + ".2"]


def test_a_file_that_changed_is_new_work_that_replaces_the_old() -> None:
    there = done((WORK + OLD, False))
    assert there.claim(*parse_key(WORK + NEW)) == WORK + NEW
    assert there.replaced == 1


@pytest.mark.parametrize(("retry", "claimed"), [(False, None), (True, WORK + OLD)])
def test_errors_are_done_unless_they_are_to_be_tried_again(retry: bool, claimed: str | None) -> None:
    there = done((WORK + OLD, True), retry_errors=retry)
    assert there.claim(*parse_key(WORK + OLD)) == claimed
    assert there.errors_left == (not retry)


@pytest.mark.parametrize(
    ("older", "newer", "left"),
    [
        ((OLD, True), (OLD, False), "answer"),
        ((OLD, False), (OLD, True), "answer"),
        ((OLD, False), (NEW, True), "error"),
        ((OLD, True), (NEW, True), "error"),
    ],
)
def test_the_newer_row_stands_but_no_error_for_an_answer(
    older: tuple[str, bool], newer: tuple[str, bool], left: str
) -> None:
    there = done((WORK + older[0], older[1]), (WORK + newer[0], newer[1]))
    assert (len(there), there.replaced) == (1, 1)
    assert there.claim(*parse_key(WORK + newer[0])) is None
    assert there.errors_left == (left == "error")
    first_stands = older[1] is False and left == "answer"
    assert list(standing([(WORK + older[0], older[1]), (WORK + newer[0], newer[1])])) == [
        first_stands,
        not first_stands,
    ]


def test_rows_of_different_work_and_of_the_same_work_asked_twice_all_stand() -> None:
    assert list(standing([(WORK + OLD, False), (WORK + OLD + ".1", True), (OTHER + OLD, True)])) == [1, 1, 1]


@pytest.mark.parametrize("key", ["no key", " " * 32, "g" * 32, "0" * 30 + "  ", WORK + OLD + ".0", WORK + OLD + "."])
def test_what_is_no_key_does_not_look_like_one(key: str) -> None:
    assert re.fullmatch(KEY_PATTERN, key) is None
    assert re.fullmatch(KEY_PATTERN, WORK + OLD) is not None
    assert re.fullmatch(KEY_PATTERN, WORK + OLD + ".12") is not None


def test_keys_read_back_as_written() -> None:
    for key in (WORK + OLD, OTHER + NEW + ".12", "0" * 32):
        assert written_key(*parse_key(key)) == key


def test_what_is_done_takes_little_memory() -> None:
    """Numbers, not rows: a million of them fit beside everything else in 500 MB."""
    count = 50_000
    tracemalloc.start()
    there = Done()
    there.add((written_key(number.to_bytes(10), number), False) for number in range(count))
    assert len(there) == count
    assert all(there.claim(number.to_bytes(10), number) is None for number in range(count))
    used = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    assert used < 200  # bytes a row
