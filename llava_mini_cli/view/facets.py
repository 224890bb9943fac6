"""Facts about every row, by which a page from disk filters and sorts without its texts, and the scripts around rows."""

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

BARS = 40  # of the histogram
MOST_OF_A_KIND = 200  # labels, questions and kinds of errors that are offered as choices, the most frequent first
CHUNK = 1000  # rows of one script
_CODED = {"status": "status", "question": "question", "error": "error_type", "label": "label", "kind": "kind"}
_PLURALS = {"status": "statuses", "question": "questions", "error": "errors", "label": "labels", "kind": "kinds"}


class Facets:
    """The facts, gathered row by row."""

    def __init__(self) -> None:
        self._coded: dict[str, list[str | None]] = {name: [] for name in _CODED}
        self._numbers: dict[str, list[float]] = {"p": [], "start": []}
        self._names: dict[str, list[str]] = {"path": [], "file": []}

    def add(self, row: Mapping[str, Any]) -> None:
        """The next row, as `shown_row` gives it."""
        for name, column in _CODED.items():
            self._coded[name].append(row.get(column))
        for name, values in self._numbers.items():
            values.append(row.get(name, math.nan))
        for name, names in self._names.items():
            names.append(row.get(name, ""))

    def script(self, measure: str) -> str:
        """The script that hands them to the page; `measure` names the number that rows have."""
        p = np.array(self._numbers["p"], np.float64)
        rated = p[np.isfinite(p)]
        about: dict[str, Any] = {
            "rows": len(p), "version": 0, "bars": BARS, "measure": measure, "rated": bool(len(rated)),
            "low": min(0.0, float(rated.min(initial=0))), "high": max(1.0, float(rated.max(initial=1))),
        }  # fmt: skip
        columns: dict[str, tuple[str, str]] = {}
        order: dict[str, list[str]] = {}
        for name, values in self._coded.items():
            counts = Counter(value for value in values if value is not None)
            most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_OF_A_KIND]
            about[_PLURALS[name]], order[name] = most, [value for value, _ in most]
            codes = {value: code for code, value in enumerate(order[name], 1)}
            columns[name] = _packed("u16", np.array([codes.get(value or "", 0) for value in values], "<u2"))
        for name, numbers in self._numbers.items():
            columns[name] = _packed("f32", np.array(numbers, "<f4"))
        for name, of in (("medium", "path"), ("place", "file")):
            ranks = {value: rank for rank, value in enumerate(sorted(set(self._names[of])))}
            columns[name] = _packed("u32", np.array([ranks[value] for value in self._names[of]], "<u4"))
        given = {"about": about, "chunk": CHUNK, "order": order, "columns": columns}
        return f"llavaMini.facets({_json(given)});\n"


def chunk_script(number: int, rows: Sequence[Mapping[str, Any]]) -> str:
    """The script that hands the page its rows from `number * CHUNK` on."""
    lines = ",\n".join(_json(row) for row in rows)
    return f"llavaMini.chunk({number}, [\n{lines}\n]);\n"


def _packed(kind: str, values: "np.ndarray[Any, np.dtype[Any]]") -> tuple[str, str]:
    return kind, b64encode(values.tobytes()).decode()


def _json(value: Any) -> str:
    """JSON that is a script's text, too: ASCII, and nothing in it ends a script; what is no number is null."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in cast("Sequence[Any]", value)]
    return value
