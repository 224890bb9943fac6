"""Captions as `metadata.jsonl` or `metadata.parquet` inside the folder that they are about.

`datasets.load_dataset("imagefolder", data_dir=...)` reads such a folder as it is. It wants a file behind every row, so
the metadata hold answers alone. All rows, failures among them, are in a hidden file beside them, which is what a run
goes on with; the metadata are written from it, whole, whenever a run ends, as JSON lines with no type left to guess.
"""

import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.disk import errors_of, whole_file
from llava_mini_cli.formats.job import Job, Question
from llava_mini_cli.formats.outputs.companion import ANEW
from llava_mini_cli.formats.outputs.output import Output, Store
from llava_mini_cli.formats.outputs.shown_types import write_with_types_first
from llava_mini_cli.formats.row import Row, printable


def store_path(metadata: Path) -> Path:
    """The hidden file of all rows."""
    return metadata.with_name(f".{metadata.stem}.rows{metadata.suffix}")


class HuggingFaceOutput(Output):
    """Rows in a store, and the answers among them in the metadata of the folder."""

    def __init__(self, path: Path, store: Store, *, overwrite: bool) -> None:
        """`store` is an output at `store_path(path)`."""
        super().__init__(store.done, store)
        self.done.is_there = self._check_inside
        self._path = path
        self._store = store
        self._folder = os.path.realpath(path.parent)
        self._parents: dict[str, str] = {}  # folder of a medium -> the same as seen from ours
        self._wrote = False
        if not overwrite and self._age() > 0:
            store.release()
            raise UsageError(f"'{path}' was not written by llava-mini, or was changed since: {ANEW}")

    def _age(self) -> int:
        """0: the metadata are of the rows in the store, and carry their time. Below: older; above: somebody else's."""
        if not self._path.exists():
            return -1
        rows = store_path(self._path)
        if rows.exists():
            return self._path.stat().st_mtime_ns - rows.stat().st_mtime_ns
        return -1 if rows.with_name(f"{rows.name}.parts").exists() else 1

    def _check_inside(self, job: Job, question: Question) -> bool:
        """Raises `UsageError` for a medium outside the folder; always False, as rows are known by their keys."""
        if job.fault is None:
            self._relative(job.path)
        return False

    def _relative(self, path: str) -> str:
        """A medium as seen from the folder."""
        parent, name = os.path.split(path)
        if parent not in self._parents:
            full = os.path.realpath(parent or ".")
            if "://" in path or os.path.commonpath([self._folder, full]) != self._folder:
                raise UsageError(
                    f"'{self._path}' describes the media in its folder, and '{path}' is not among them; "
                    "name another output, or -f for plain rows"
                )
            self._parents[parent] = os.path.relpath(full, self._folder)
        return (Path(self._parents[parent]) / name).as_posix()

    def write(self, row: Row) -> None:
        """Adds a row. Raises `OutputError`."""
        is_answer = row.status == "ok"
        self._store.write(replace(row, file_name=printable(self._relative(row.source))) if is_answer else row)
        self._wrote = True

    def finish(self, error: BaseException | None) -> None:
        """Finishes the store, and writes the metadata where they are behind it."""
        self._store.finish(error)
        if not isinstance(error, OutputError) and (self._wrote or self._is_behind()):
            self._publish()

    def _is_behind(self) -> bool:
        """True if a run was killed before it wrote the metadata."""
        return store_path(self._path).exists() and self._age() < 0

    def _publish(self) -> None:
        with errors_of(self._path), whole_file(self._path) as stream:
            if self._path.suffix == ".jsonl":
                with TemporaryFile(dir=self._folder) as answers:
                    self._store.copy_answers(answers)
                    answers.seek(0)
                    write_with_types_first(answers, stream)
            else:
                self._store.copy_answers(stream)
            stream.flush()
            rows = store_path(self._path)
            if rows.exists():  # Parquet that was interrupted is still in parts, and newer than the metadata
                time = rows.stat().st_mtime_ns
                os.utime(stream.fileno(), ns=(time, time))
