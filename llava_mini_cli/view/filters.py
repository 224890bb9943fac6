"""What somebody looks for among the rows: a filter, and the numbers of the rows that it finds.

Values are parameters of prepared queries. SQL comes from the fixed pieces below alone.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.view.facets import BARS, MOST_OF_A_KIND
from llava_mini_cli.view.table import RowTable

KEPT_ANSWERS = 4  # of ten million rows each takes 80 MB

_CONDITIONS = {  # each with the parameter of its name
    "text": "contains(sought, lower($text))",
    "file": "contains(lower(file), lower($file))",
    "status": "status = $status",
    "question": "question = $question",
    "error": "error_type = $error",
    "label": "label = $label",
    "kind": "kind = $kind",
}
_ORDERS = {
    "": "n",
    "file": "file, n",
    "likely": "n",  # and by their numbers afterwards, which NumPy does more quickly
    "unlikely": "n",
    "time": '"start" NULLS LAST, n',
    "failed": "status, n",
}


@dataclass(frozen=True)
class Filter:
    """Conditions that rows have to meet, all of them, and their order. An empty text stands for no condition."""

    text: str = ""  # in the answer, the error or the name of the file
    file: str = ""
    status: str = ""
    question: str = ""
    error: str = ""
    label: str = ""
    kind: str = ""
    low: float | None = None  # bounds of the row's number
    high: float | None = None
    sort: str = ""  # a key of `_ORDERS`
    group: str = ""  # "medium": the first row of each medium stands for all that are found of it

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """The filter of a query string; names of other things are passed over. Raises `ValueError`."""
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = given.get(field.name, "")
            values[field.name] = value
            if field.name in ("low", "high"):
                values[field.name] = float(value) if value else None
        found = cls(**values)
        if found.sort not in _ORDERS or found.group not in ("", "medium"):
            raise ValueError("no such order of rows")
        return found


@dataclass(frozen=True)
class Found:
    """The rows that a filter finds."""

    version: int  # of the table
    numbers: NDArray[np.int64]  # of the rows, in their order; of the first row of each medium, if they are grouped
    counts: NDArray[np.int64] | None  # rows of each medium, if they are grouped
    rows: int
    media: int
    histogram: list[int]  # of the rows' numbers, whatever the filter says of these


class Finder:
    """Answers filters, and keeps the last answers: a page asks for the same rows many times as it is scrolled."""

    def __init__(self, table: RowTable) -> None:
        self._table = table
        self._kept: OrderedDict[tuple[int, Filter], Found] = OrderedDict()
        self._about: tuple[int, dict[str, Any]] | None = None
        self._lock = Lock()

    def find(self, wanted: Filter, version: int | None = None) -> Found:
        """The rows that are there now and meet the conditions; those of an older version where they are still known."""
        key = self._table.version if version is None else version, wanted
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        key = self._table.version, wanted
        found = self._find(*key)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > KEPT_ANSWERS:
                self._kept.popitem(last=False)
        return found

    def _find(self, version: int, wanted: Filter) -> Found:
        values = {name: getattr(wanted, name) for name in _CONDITIONS if getattr(wanted, name)}
        where = " AND ".join(_CONDITIONS[name] for name in values) or "true"
        sql = (
            f"SELECT n, medium, coalesce(p, 'nan'::DOUBLE) AS p FROM rows WHERE {where} ORDER BY {_ORDERS[wanted.sort]}"
        )
        columns = self._table.arrays(sql, values)
        numbers, media, p = (np.asarray(columns[name]) for name in ("n", "medium", "p"))
        low, high = self.bounds()
        bars = [int(count) for count in np.histogram(p[~np.isnan(p)], BARS, (low, high))[0]]
        inside = np.ones(len(p), np.bool_)
        if wanted.low is not None:
            inside &= p >= wanted.low
        if wanted.high is not None:
            inside &= p <= wanted.high
        order = np.flatnonzero(inside)
        if wanted.sort in ("likely", "unlikely"):  # rows without a number come last, NaN being the largest to NumPy
            order = order[np.argsort(-p[order] if wanted.sort == "likely" else p[order], kind="stable")]
        numbers, media = numbers[order], media[order]
        if not wanted.group:
            return Found(version, numbers, None, len(numbers), _distinct(media), bars)
        _, firsts, counts = np.unique(media, return_index=True, return_counts=True)
        order = np.argsort(firsts)
        return Found(version, numbers[firsts[order]], counts[order], len(numbers), len(firsts), bars)

    def bounds(self) -> tuple[float, float]:
        """The ends of the scale of the rows' numbers: 0 to 1, unless some are beyond that."""
        about = self.about()
        return about["low"], about["high"]

    def about(self) -> dict[str, Any]:
        """What there is to choose from: the values that rows have, with their counts, in JSON's types."""
        version = self._table.version
        with self._lock:
            if self._about and self._about[0] == version:
                return self._about[1]
        about: dict[str, Any] = {"version": version, "rows": self._table.ask("SELECT count(*) FROM rows")[0][0]}
        for name, column in (
            ("statuses", "status"), ("questions", "question"), ("errors", "error_type"), ("labels", "label"),
            ("kinds", "kind"),
        ):  # fmt: skip
            about[name] = self._table.ask(
                f"SELECT {column}, count(*) FROM rows WHERE {column} IS NOT NULL GROUP BY ALL"
                f" ORDER BY count(*) DESC, {column} LIMIT {MOST_OF_A_KIND}"
            )
        (least, most), *_ = self._table.ask("SELECT min(p), max(p) FROM rows WHERE isfinite(p)")
        about["low"], about["high"] = (0.0, 1.0) if least is None else (min(0.0, least), max(1.0, most))
        about["rated"], about["bars"] = least is not None, BARS
        about["measure"] = self._table.measure()
        with self._lock:
            self._about = version, about
        return about


def _distinct(values: NDArray[np.uint64]) -> int:
    """The number of different values; `np.unique` takes seventy times as long for ten million hashes."""
    ordered = np.sort(values)
    return min(1, len(ordered)) + int(np.count_nonzero(ordered[1:] != ordered[:-1]))
