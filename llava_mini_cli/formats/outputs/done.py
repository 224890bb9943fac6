"""The rows that an output holds already, which a run therefore leaves out.

A key is made by `row_keys.RowKeys`: the work in its first digits, and in the rest the state of the file and the
settings that the work was done with. An input may ask the same about the same file twice; each time wants its row,
so the second carries the key with `.1` behind it. Where the answer to one question is several rows, they stand
together, and each has its place behind the key, `-3of7`: they count as one, and as none if some are missing. A file
that was moved, or written again with the same bytes, has another key and is looked up by content. An error whose reason
lay in the moment (`errors.PASSING_KINDS`) is no finished work. Knows no file format, and keeps 110 bytes a row, and 36
more once something was looked up.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from struct import Struct

from llava_mini_cli.errors import PASSING_KINDS
from llava_mini_cli.formats.job import Fault, Job, Question
from llava_mini_cli.formats.outputs.known_contents import KnownContents

WORK_DIGITS = 20  # hexadecimal digits of a key that name the work; the rest tell in which state it was done
STATE_DIGITS = 12
KEY_DIGITS = WORK_DIGITS + STATE_DIGITS
# The whole of a key, with its occurrence, and the row's place among those of one answer.
KEY_PATTERN = rf"[0-9a-f]{{{KEY_DIGITS}}}(\.[1-9][0-9]{{0,8}})?(?:-[1-9][0-9]{{0,8}}of[1-9][0-9]{{0,8}})?"
_KEY = Struct(">10sHI")  # a key in bytes: the work, and the state in two numbers
_PARSED_AT_ONCE = 4096

IsThere = Callable[[Job, Question], bool]
Obstacle = Callable[[Job, Question], Fault | None]  # why an answer could not be written
RowMark = tuple[str, int]  # the key of a row that is there, and its end
RowDigest = tuple[str, str]  # its key, and its digest where it has one

ANSWER, ERROR, PASSING = 0, 1, 3  # ends of a row; the last is an error, too, but one of the moment
_ASKED, _ERROR, _PASSING = 1, 2, 4  # flags of an entry: claimed by this run; the row that is there is such an error
_FLAGS = 3  # bits


def end_of(status: str, error_type: str | None) -> int:
    """The end of a row with these columns."""
    return ANSWER if status == "ok" else PASSING if error_type in PASSING_KINDS else ERROR


class Done:
    """Rows that are there, by their keys; each is claimed once by the run that would make it again."""

    def __init__(self, *, retry_errors: bool = False, is_there: IsThere | None = None) -> None:
        self.is_there = is_there  # asked before any key is made, by outputs that tell by something else than a key
        self.obstacle: Obstacle | None = None  # told of work that is left, before a medium is opened
        self.read_digests: Callable[[], Iterable[RowDigest]] | None = None  # of rows that are there; read when wanted
        self.keeps_digests = True  # False if nobody reads the digests of the rows to come
        self.errors_left = 0  # claimed error rows that stay as they are
        self.rows_left = 0  # claimed rows that stay as they are, errors among them
        self.replaced = 0  # rows of which there is, or will be, a newer one
        self._retry_errors = retry_errors
        self._entries: dict[bytes, int] = {}  # the work -> state of the file and flags
        self._asked_again: dict[bytes, int] = {}  # the work -> how often it was asked for, if more than once

    def __len__(self) -> int:
        """The number of rows, without those that a newer one replaces."""
        return len(self._entries)

    def add(self, rows: Iterable[RowMark]) -> None:
        """Adds rows that are there, the older ones first."""
        entries = self._entries
        for work, state, end, _ in _answers(rows):
            if work is None:
                self.replaced += 1
                continue
            entry = state << _FLAGS | end << 1
            before = entries.get(work)
            if before is not None:
                self.replaced += 1
                if not supersedes(state, not end, before >> _FLAGS, not before & _ERROR):
                    continue
            entries[work] = entry

    def keep_those_in(self, other: "Done") -> None:
        """Has work done again of which another output, that is to have it too, has nothing."""
        for work, entry in self._entries.items():
            known = other._entries.get(work)
            if known is None or known >> _FLAGS != entry >> _FLAGS:
                self._entries[work] = entry | _ERROR | _PASSING

    def replace(self, key: str) -> None:
        """Counts the row that one with this key replaces, if there is one: another output's `take` gave the key."""
        self.take(*parse_key(key))

    def forget(self) -> None:
        """Lets the memory go; the counts stay. Nothing can be claimed after it."""
        self._entries.clear()
        self._asked_again.clear()
        for found in ("_contents", "_numbers"):
            self.__dict__.pop(found, None)

    def claim(self, work: bytes, state: int) -> str | None:
        """None if the row of this work is there; otherwise the key that it is to carry."""
        left = self.find(work, state)
        return None if left is None else self.take(left, state)

    def find(self, work: bytes, state: int) -> bytes | None:
        """None if the row of this work is there, which is claimed thereby; otherwise the work that `take` wants."""
        entry = self._entries.get(work)
        if entry is not None and entry & _ASKED:
            work = numbered(work, self._asked_again.get(work, 0) + 1)
            entry = self._entries.get(work)
        if entry is None or entry >> _FLAGS != state or self._is_tried_again(entry):
            return work
        self._leave(work, entry)
        return None

    def take(self, work: bytes, state: int) -> str:
        """Claims work that is to be done; returns the key that its row will carry."""
        self.replaced += work in self._entries
        self._ask(work, state << _FLAGS)
        return written_key(work, state)

    def has_size(self, size: int) -> bool:
        """True if a row that was there when the run began is about a medium of this size."""
        return self._contents.has_size(size)

    def alike(self, work: bytes, digest: str) -> bytes | None:
        """The work of a row that is there, not claimed yet, and has this digest; None if there is none.

        Where there is a row of `work` itself, the file at its path was written or touched, and no other row is meant.
        """
        rows = self._contents.find(digest)
        for other, state in rows if work not in self._entries else [row for row in rows if row[0] == work]:
            entry = self._entries.get(other, _ASKED)
            if not entry & _ASKED and entry >> _FLAGS == state:
                return other
        return None

    def leave(self, work: bytes) -> bool:
        """Claims a row that `alike` gave: it stays as it is. False if it is an error that is to be tried again."""
        entry = self._entries[work]
        if self._is_tried_again(entry):
            return False
        self._leave(work, entry)
        return True

    def spans(self, stem: bytes, state: int) -> tuple[frozenset[int], bool]:
        """The numbers of a medium's spans whose rows are there, which are claimed thereby, and whether they are all.

        Args:
            stem: what the works of these rows begin with.
        """
        numbers = self._numbers.get(stem, ())
        there: set[int] = set()
        ends: list[int] = []
        for number in numbers:
            entry = self._entries[numbered(stem, number)]
            if entry >> _FLAGS not in (state, state ^ 1) or self._is_tried_again(entry):
                continue
            there.add(number)
            if entry >> _FLAGS != state:
                ends.append(number)
            self.errors_left += bool(entry & _ERROR)
        self.rows_left += len(there)
        self.replaced += len(numbers) - len(there)
        return frozenset(there), any(there.issuperset(range(1, end + 1)) for end in ends)

    def _is_tried_again(self, entry: int) -> bool:
        """True for an error of the moment, and for others where that was asked for."""
        return bool(entry & _PASSING or (entry & _ERROR and self._retry_errors))

    def _leave(self, work: bytes, entry: int) -> None:
        self._ask(work, entry)
        self.rows_left += 1
        self.errors_left += bool(entry & _ERROR)

    def _ask(self, work: bytes, entry: int) -> None:
        self._entries[work] = entry | _ASKED
        if len(work) > WORK_DIGITS // 2:
            self._asked_again[work[: WORK_DIGITS // 2]] = int.from_bytes(work[WORK_DIGITS // 2 :], "big")

    @cached_property
    def _numbers(self) -> "dict[bytes, array[int]]":
        """The numbers of rows that were there when the run began, by the work in front of them."""
        found: dict[bytes, array[int]] = {}
        for work in self._entries:
            if len(work) > WORK_DIGITS // 2:
                number = int.from_bytes(work[WORK_DIGITS // 2 :], "big")
                found.setdefault(work[: WORK_DIGITS // 2], array("I")).append(number)
        return found

    @cached_property
    def _contents(self) -> KnownContents:
        rows = self.read_digests() if self.read_digests is not None else ()
        return KnownContents((*parse_key(key), digest) for key, digest in rows if place_of(key)[1] == 1)


def _answers(rows: Iterable[RowMark]) -> Iterator[tuple[bytes | None, int, int, int]]:
    """`parse_key` of each answer, many at a time where they are plain keys; its end, and the number of its rows.

    Rows of an answer of which some are missing have None in place of the work. Whoever reads rows has found their keys
    to be of `KEY_PATTERN`.
    """
    left = iter(rows)
    begun, count = "", 0  # the answer whose rows are coming, and how many came
    while some := list(islice(left, _PARSED_AT_ONCE)):
        keys = [key for key, _ in some]
        if not count and set(map(len, keys)) == {KEY_DIGITS}:
            numbers = _KEY.iter_unpack(bytes.fromhex("".join(keys)))
            for (work, high, low), (_, end) in zip(numbers, some, strict=True):
                yield work, high << 32 | low, end, 1
            continue
        for key, end in some:
            head, number, of = place_of(key)
            if count and (head, number) != (begun, count + 1):
                yield None, 0, end, count
                count = 0
            if number != count + 1:
                yield None, 0, end, 1
                continue
            begun, count = head, number
            if number == of:
                yield *parse_key(key), end, count
                count = 0
    if count:
        yield None, 0, ERROR, count


def place_of(key: str) -> tuple[str, int, int]:
    """The key of an answer, the number of a row among its rows, from 1, and how many these are."""
    head, _, place = key.partition("-")
    number, _, of = place.partition("of")
    return (head, int(number), int(of)) if place else (head, 1, 1)


def placed(key: str, number: int, of: int) -> str:
    """The key of one row of an answer; the first has the number 1, and an only one the key alone."""
    return key if of == 1 else f"{key}-{number}of{of}"


def parse_key(key: str) -> tuple[bytes, int]:
    """The work, occurrence included, and the state it was done in."""
    key = key.partition("-")[0]
    state, _, occurrence = key[WORK_DIGITS:].partition(".")
    work = bytes.fromhex(key[:WORK_DIGITS])
    return numbered(work, int(occurrence)) if occurrence else work, int(state, 16)


def written_key(work: bytes, state: int) -> str:
    """The two parts of a key as a row carries them."""
    key = f"{work[: WORK_DIGITS // 2].hex()}{state:0{STATE_DIGITS}x}"
    occurrence = int.from_bytes(work[WORK_DIGITS // 2 :], "big")
    return f"{key}.{occurrence}" if occurrence else key


def numbered(work: bytes, occurrence: int) -> bytes:
    """The same work asked for another time."""
    return work + occurrence.to_bytes(4, "big")


def standing(rows: Iterable[RowMark]) -> bytearray:
    """For each row, the older ones first: 1 if it stands, 0 if another one of the same work stands for it."""
    marks = bytearray()
    newest: dict[bytes, int] = {}  # the work -> position and whether it is an error, then the state
    several: dict[int, int] = {}  # position of the first row -> rows, of answers that have several
    for work, state, end, count in _answers(rows):
        position = len(marks)
        if work is None:
            marks += bytes(count)
            continue
        entry = (position << 1 | bool(end)) << 4 * STATE_DIGITS | state
        before = newest.get(work)
        if before is not None:
            older, older_state = divmod(before, 1 << 4 * STATE_DIGITS)
            if not supersedes(state, not end, older_state, not older & 1):
                marks += bytes(count)
                continue
            first = older >> 1
            replaced = several.pop(first, 1)
            marks[first : first + replaced] = bytes(replaced)
        marks += b"\1" * count
        newest[work] = entry
        if count > 1:
            several[position] = count
    return marks


def standing_answers(rows: Iterable[RowMark]) -> bytearray:
    """For each row: 1 if it stands and is no error."""
    failed = bytearray()

    def noted() -> Iterator[RowMark]:
        for key, end in rows:
            failed.append(end)
            yield key, end

    return bytearray(mark > end for mark, end in zip(standing(noted()), failed, strict=True))


def supersedes(state: int, ok: bool, older_state: int, older_ok: bool) -> bool:
    """True if a newer row of the same work replaces the older one: always, but for an error where an answer was."""
    return ok or not older_ok or state != older_state
