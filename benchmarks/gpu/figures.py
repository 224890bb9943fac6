"""Figures as JSON lines, and parts that are run one after the other within a time; a part that fails is a line, too."""

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

Fields = dict[str, Any]
Part = Callable[[], Iterator[Fields]]


class Figures:
    """Lines on standard output and in a file, each there as soon as it is known; no other words get between them."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self._file = path.open("w")
        self._streams = [stream, self._file]
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the beginning."""
        return time.monotonic() - self._began

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def write(self, part: str, fields: Fields) -> None:
        """One line."""
        rounded = {name: _rounded(value) for name, value in fields.items()}
        line = json.dumps({"part": part, **rounded, "at_s": round(self.seconds, 1)})
        for stream in self._streams:
            print(line, file=stream, flush=True)


def run_parts(parts: Mapping[str, Part], figures: Figures, minutes: float, clean: Callable[[], None]) -> None:
    """Runs each part that still begins in time; what it raises becomes its line.

    Args:
        clean: gives memory back that a part has left.
    """
    for name, part in parts.items():
        if figures.seconds > 60 * minutes:
            figures.write(name, {"left_out": "the time was over"})
            continue
        began = figures.seconds
        try:
            for fields in part():
                figures.write(name, fields)
        except Exception as error:  # noqa: BLE001 - whatever one part meets, the others are worth having
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error}".splitlines()[0][:500]
            figures.write(name, {"error": told, "where": f"{Path(where.filename).name}:{where.lineno}"})
        clean()
        figures.write(name, {"part_s": figures.seconds - began})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
