"""Where rows go: a file by its suffix, or standard output. Checked before a model is loaded.

Knows the formats by name; each lives in its own module and is imported when it is used.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, get_args

from llava_mini_cli import __version__
from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.done import Done
from llava_mini_cli.formats.fingerprint import Settings
from llava_mini_cli.formats.jsonl import JsonlWriter
from llava_mini_cli.formats.row import KeptColumn, Row

Format = Literal["jsonl", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class RowWriter(Protocol):
    """Takes rows one at a time; leaving the `with` block finishes the output."""

    def write(self, row: Row) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Output(RowWriter, Protocol):
    """A writer that knows what its file holds already."""

    done: Done


@dataclass(frozen=True)
class RunInfo:
    """What the rows of a run have in common, for an output to record and to compare."""

    model: str
    settings: Settings  # what shapes the answers
    revision: str | None = None  # of the model, as it was asked for
    version: str = __version__
    kept: tuple[KeptColumn, ...] = ()  # columns of the input that every row carries


@dataclass(frozen=True)
class OutputOptions:
    """Where rows go and in which format."""

    path: Path | None  # None: standard output
    format: Format
    overwrite: bool = False  # replace a file that exists

    @classmethod
    def parse(cls, output: str | None, format: Format | None, *, overwrite: bool = False) -> Self:
        """From `-o`, `-f` and `--overwrite`. Raises `UsageError` where they do not go together."""
        if output is None or output == "-":
            if format == "parquet":
                raise UsageError("--format parquet needs a file: -o FILE.parquet")
            return cls(None, "jsonl", overwrite)
        path = Path(output)
        if path.is_dir():
            raise UsageError(f"-o '{path}' is a folder; name a file, such as {path / 'out.parquet'}")
        return cls(path, format or _format_of(path), overwrite)

    def check(self) -> None:
        """Raises `UsageError` or `OutputError` where the output cannot be made; writes nothing."""
        if self.path is None:
            return
        if self.path.is_file() and not self.overwrite:
            raise UsageError(f"-o '{self.path}' exists; --overwrite replaces it")
        parent = self.path.parent
        if not parent.is_dir():
            raise OutputError(f"cannot write '{self.path}': there is no folder '{parent}'")
        if not os.access(self.path if self.path.exists() else parent, os.W_OK):
            raise OutputError(f"cannot write '{self.path}': permission denied")


def _format_of(path: Path) -> Format:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise UsageError(f"-o '{path}': the suffix must be one of {known}, or name the format with -f")
    return _SUFFIXES[suffix]


def open_output(options: OutputOptions, run: RunInfo) -> Output:
    """The output of a run. Raises `OutputError`."""
    if options.path is None:
        return JsonlWriter(sys.stdout.buffer, "standard output", owned=False)
    if options.format == "parquet":
        from llava_mini_cli.formats.parquet import ParquetWriter

        return ParquetWriter(options.path)
    try:
        return JsonlWriter(options.path.open("wb", buffering=0), str(options.path), owned=True)
    except OSError as error:
        raise OutputError(f"cannot write '{options.path}': {error.strerror}") from error
