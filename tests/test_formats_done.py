"""What is done already: claims, occurrences of the same work, and which of two rows stands."""

import re
import tracemalloc

import pytest

from llava_mini_cli.formats.outputs.done import (
    ERROR,
    KEY_PATTERN,
    Done,
    parse_key,
    place_of,
    placed,
    standing,
    standing_answers,
    written_key,
)

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


# Answers of several rows


def several(key: str, of: int, *numbers: int) -> list[tuple[str, int]]:
    """Rows of an answer that has `of` of them; all, where no numbers are given."""
    return [(placed(key, number, of), 0) for number in numbers or range(1, of + 1)]


def test_the_rows_of_an_answer_count_as_one() -> None:
    there = done(*several(WORK + OLD, 3), (OTHER + OLD, False), *several(WORK + OLD + ".1", 2))
    assert (len(there), there.replaced) == (3, 0)
    assert [there.claim(*parse_key(key)) for key in (WORK + OLD, OTHER + OLD, WORK + OLD)] == [None] * 3
    assert there.claim(*parse_key(WORK + OLD)) == WORK + OLD + ".2"
    assert there.rows_left == 3


@pytest.mark.parametrize(
    "rows",
    [
        several(WORK + OLD, 3, 1, 2),
        several(WORK + OLD, 3, 1, 3),
        several(WORK + OLD, 3, 2, 3),
        several(WORK + OLD, 3, 1, 1, 2),
        [*several(WORK + OLD, 2, 1), *several(OTHER + NEW, 2, 2)],
    ],
)
def test_an_answer_of_which_rows_are_missing_is_none(rows: list[tuple[str, int]]) -> None:
    for behind in ([], [(OTHER + OLD, 0)], several(OTHER + OLD, 2)):
        there = done(*rows, *behind)
        assert there.claim(*parse_key(WORK + OLD)) == WORK + OLD
        assert there.replaced > 0
        assert list(standing([*rows, *behind])) == [0] * len(rows) + [1] * len(behind)
        assert (there.claim(*parse_key(OTHER + OLD)) is None) == bool(behind)


def test_an_answer_stands_for_an_older_one_of_another_number_of_rows() -> None:
    one, two, three = [(WORK + NEW, 0)], several(WORK + OLD, 2), several(WORK + NEW, 3)
    assert list(standing([*two, *three])) == [0, 0, 1, 1, 1]
    assert list(standing([*three, (OTHER + OLD, 0), *one])) == [0, 0, 0, 1, 1]
    assert list(standing([*one, *two, *three, *one])) == [0, 0, 0, 0, 0, 0, 1]
    assert list(standing([*three, (WORK + NEW, ERROR)])) == [1, 1, 1, 0]
    assert list(standing_answers([*three, (OTHER + NEW, ERROR)])) == [1, 1, 1, 0]
    assert list(standing([*three, *several(WORK + NEW, 3, 1, 2)])) == [1, 1, 1, 0, 0]


def test_a_place_is_written_behind_a_key_and_read_again() -> None:
    for key in (WORK + OLD, WORK + OLD + ".12"):
        assert place_of(key) == (key, 1, 1)
        assert placed(key, 1, 1) == key
        assert place_of(placed(key, 2, 10)) == (key, 2, 10)
        assert parse_key(placed(key, 2, 10)) == parse_key(key)
        assert re.fullmatch(KEY_PATTERN, placed(key, 2, 10))
        for wrong in ("-0of3", "-3of", "-of3", "-1of2-1of2", "-1of02", "-1"):
            assert not re.fullmatch(KEY_PATTERN, key + wrong)


def test_plain_keys_are_read_many_at_a_time_also_between_answers_of_several_rows() -> None:
    plain = [(f"{number:020x}{OLD}", 0) for number in range(5000)]
    rows = [*plain[:4095], *several(WORK + OLD, 3), *plain[4095:], *several(OTHER + OLD, 2, 1)]
    there = done(*rows)
    assert (len(there), there.replaced) == (5001, 1)
    assert list(standing(rows)) == [1] * 5003 + [0]


def test_what_another_output_lacks_is_done_again() -> None:
    here = done((WORK + OLD, False), (OTHER + OLD, False), ("0" * 20 + OLD, False), ("1" * 20 + OLD, True))
    here.keep_those_in(done((WORK + OLD, False), (OTHER + NEW, False), *several("0" * 20 + OLD, 3)))
    claimed = [here.claim(*parse_key(work + OLD)) for work in (WORK, OTHER, "0" * 20, "1" * 20)]
    assert claimed == [None, OTHER + OLD, None, "1" * 20 + OLD]
    assert (here.rows_left, here.errors_left, here.replaced) == (2, 0, 2)


def test_a_row_of_another_outputs_key_replaces_the_one_that_is_there() -> None:
    there = done((WORK + OLD, False))
    for key in (OTHER + OLD, WORK + NEW):
        there.replace(key)
    assert there.replaced == 1
