"""Answers as text files, one for each question: beside the media, or in a folder of the same shape.

A text file has no room for a key, so what is there is told by its name: a caption that is there is kept, by default,
whoever wrote it. Each file is written whole. Failures leave no file, and are tried again by the next run.
"""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.disk import errors_of, write_file
from llava_mini_cli.formats.done import Done
from llava_mini_cli.formats.folder_lock import FolderLock
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.row import Row

Existing = Literal["skip", "overwrite", "append", "prepend"]

_Work = tuple[str, str | None, str]  # the medium, the name and the text of the prompt


class SidecarOutput:
    """Captions in `a.txt` for `a.jpg`; with several questions about a medium in `a.NAME.txt`."""

    def __init__(self, folder: Path | None, existing: Existing) -> None:
        """`folder`: None writes beside the media, where no run locks another one out."""
        self.done = Done(is_there=self._is_there)
        self._folder = folder
        self._existing = existing
        self._targets: dict[_Work, Path] = {}
        self._taken: set[str] = set()  # names given out by this run
        self._lock: FolderLock | None = None
        if folder is not None:
            self._lock = FolderLock(folder)
            try:
                with self._lock.notes():
                    self._lock.take(None)
            except BaseException:
                self._lock.release()
                raise

    def _is_there(self, job: Job, question: Question) -> bool:
        """Whether the caption stays as it is; otherwise its file is settled."""
        work = _work(job.path, question.prompt)
        if work in self._targets:
            return True  # the same question about the same medium: one file holds the answer
        target = next(path for path in self._names(job, question) if str(path) not in self._taken)
        self._taken.add(str(target))
        self._targets[work] = target
        return self._existing == "skip" and os.path.lexists(target)

    def _names(self, job: Job, question: Question) -> Iterator[Path]:
        """Names for a caption, the best first; the others are for media that differ in their suffix or folder alone."""
        medium = self._medium(job)
        name = ""
        if len(job.questions) > 1:
            name = f".{question.prompt.name or job.questions.index(question) + 1}"
        yield medium.with_name(f"{medium.stem}{name}.txt")
        yield medium.with_name(f"{medium.name}{name}.txt")
        for number in count(2):
            yield medium.with_name(f"{medium.name}.{number}{name}.txt")

    def _medium(self, job: Job) -> Path:
        if self._folder is not None:
            parts = [part for part in Path(job.file_name).parts if part not in ("..", "/")]
            return self._folder.joinpath(*parts)
        if job.item is not None or "://" in job.path:
            raise UsageError(f"--format txt: nothing can be written beside '{job.path}'; name a folder with -o")
        return Path(job.path)

    def write(self, row: Row) -> None:
        """Writes a caption; a failure leaves no file. Raises `OutputError`."""
        target = self._targets[_work(row.source, Prompt(row.prompt, row.prompt_name))]
        if row.text is None:
            return
        with errors_of(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            text = self._joined(target, row.text) + "\n"
        write_file(target, text.encode())

    def _joined(self, target: Path, text: str) -> str:
        """The caption with what was there; the same text is not put to the same place twice."""
        if self._existing in ("skip", "overwrite") or not target.exists():
            return text
        before = target.read_text("utf-8", errors="surrogateescape").strip()
        first, second = (before, text) if self._existing == "append" else (text, before)
        is_there = before.endswith(text) if self._existing == "append" else before.startswith(text)
        if is_there or not before:
            return before or text
        return f"{first}{'' if second.startswith((',', '.', ';')) else ' '}{second}"

    def release(self) -> None:
        """Lets the folder go."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _work(path: str, prompt: Prompt) -> _Work:
    return path, prompt.name, prompt.text
