"""The hidden file beside an output, `.x.jsonl.llava-mini`: its lock, and the settings that its rows share.

The file stays when the run is over, because the settings in it are what a later run is compared with.
Knows no output format.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llava_mini_cli import __version__
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.column_types import RowFields
from llava_mini_cli.formats.lock import FileLock
from llava_mini_cli.formats.outputs.row_keys import Settings
from llava_mini_cli.formats.row import KeptColumn

ANEW = "--overwrite starts anew, or name another output"
_ONLY_WHERE_SET = (
    "choice_score",
    "choice_prior",
    "evidence",
    "evidence_spans",
    "thumbnails",
)  # settings that are not recorded where they are the default


@dataclass(frozen=True)
class RunInfo:
    """The model and the settings that all rows of a run share, for an output to record and to compare."""

    model: str
    settings: Settings  # what shapes the answers
    revision: str | None = None  # of the model, as it was asked for
    version: str = __version__
    kept: tuple[KeptColumn, ...] = ()  # columns of the input that every row carries
    fields: RowFields | None = None  # the columns of --schema; None: rows have none
    asked: tuple[KeptColumn, ...] = ()  # columns behind these, which follow from the settings

    def record(self, generation: str) -> dict[str, Any]:
        """The same for JSON. A generation is all rows since the output was begun, or begun anew with --overwrite."""
        own = {"version": self.version, "model": self.model, "revision": self.revision}
        return own | {"settings": dict(self.settings), "kept": [list(c) for c in self.kept], "generation": generation}


def record_in(content: object, place: Path) -> dict[str, Any]:
    """The record of a run, as it was found in a file; empty where there is none.

    Raises:
        UsageError: it is no record of ours.
    """
    if content is None or content == {}:
        return {}
    record = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    kinds = {"settings": dict, "kept": list, "generation": str}
    whole = all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    columns: list[Any] = record["kept"] if whole else [None]
    if not all(isinstance(column, list) and len(cast("list[Any]", column)) == 2 for column in columns):
        raise UsageError(f"'{place}' is damaged, or llava-mini did not write it: {ANEW}")
    return record


def check_same_settings(record: dict[str, Any], run: RunInfo, output: Path) -> None:
    """Raises `UsageError` that names every difference which would mix rows of two kinds; none if `record` is empty."""
    record = record_in(record, output)
    if not record:
        return
    was, settings = record["settings"], run.settings
    compared = [name for name in settings if name in was]
    compared += [name for name in _ONLY_WHERE_SET if name in was or name in settings]
    changed = [
        f"--{name.replace('_', '-')} was {_shown(was.get(name))}, is {_shown(settings.get(name))}"
        for name in dict.fromkeys(compared)
        if was.get(name) != settings.get(name)
    ]
    before, now = [list(column) for column in record["kept"]], [list(column) for column in run.kept]
    if before != now:
        shown = (", ".join(f"{name} ({kind})" for name, kind in columns) or "none" for columns in (before, now))
        changed.append("the columns kept from the input were {}, are {}".format(*shown))
    if changed:
        raise UsageError(f"'{output}': {'; '.join(changed)}; {ANEW}")


def _shown(value: object) -> str:
    return "not set" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


class Companion:
    """Locks an output and remembers the settings of its rows."""

    def __init__(self, output: Path) -> None:
        """Raises `OutputLocked` if another run holds the output, `OutputError` if it cannot be locked."""
        self._lock = FileLock(output.with_name(f".{output.name.lstrip('.')}.llava-mini"), output)
        content: Any = self._lock.read().get("run") or {}
        self.record: dict[str, Any] = content if isinstance(content, dict) else {"damaged": content}

    def save(self, record: dict[str, Any]) -> None:
        """Records the settings that the rows share from now on."""
        if record != self.record:
            self._lock.write({"run": record})
            self.record = record

    def release(self) -> None:
        """Lets the lock go. A companion that never had anything to say leaves nothing behind."""
        self._lock.release(remove=not self.record)
