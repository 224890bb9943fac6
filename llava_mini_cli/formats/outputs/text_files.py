"""Answers as text files, one for each question: beside the media, or in a folder of the same shape.

A text file has no room for a key, so a caption is known by its name alone. By default one that is there is kept,
whoever wrote it. Each file is written whole. Failures leave no file, and are tried again by the next run.

Of several media that want one name in a folder, the first has it. Where such media come from lists, whose order may
change, the others get names with a digest of where they are, by which the next run knows them whenever they come.
"""

import os
import re
import stat
from hashlib import blake2b
from pathlib import Path

from llava_mini_cli.config import Existing
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.disk import errors_of, write_own_file
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.folder_lock import FolderLock
from llava_mini_cli.formats.outputs.output import Output, released_on_failure
from llava_mini_cli.formats.row import Row, printable
from llava_mini_cli.formats.shown_text import without_controls
from llava_mini_cli.safe_files import make_own_folder, obstacle_at, open_regular, sweep

Work = tuple[str, str | None, str]  # the medium, the name and the text of the prompt
_LONGEST_CAPTION = 16 << 20  # bytes that something is added to
_LONGEST_NAME = 255  # bytes, of a file on the disks there are
_NEVER_IN_NAMES = re.compile(r"[/\0]")


class SidecarOutput(Output):
    """Captions in `a.txt` for `a.jpg`; with several questions about a medium in `a.NAME.txt`."""

    def __init__(self, folder: Path | None, existing: Existing, suffix: str = "txt") -> None:
        """`folder`: None writes beside the media, where no run locks another one out."""
        lock = None if folder is None else FolderLock(folder)
        super().__init__(Done(is_there=self._is_there), lock)
        self.done.obstacle = self._obstacle
        self.done.keeps_digests = False
        self._folder = folder
        self._existing = existing
        self._suffix = suffix
        self._targets: dict[Work, Path] = {}
        self._taken: set[str] = set()  # names given out by this run
        self._numbers: dict[str, int] = {}  # a name that was taken -> the last number that went behind it
        self._first: dict[str, str] = {}  # a medium in the folder -> the first one that is to be there
        if lock is not None:
            with released_on_failure(lock), lock.notes():
                lock.take(None)

    def _is_there(self, job: Job, question: Question) -> bool:
        """True if the caption that is there stays. Settles the name of its file; a job with a fault needs none."""
        if job.fault is not None:
            return False
        work = _work(job.path, question.prompt)
        if work in self._targets:
            return True  # the same question about the same medium: one file holds the answer
        target = self._target(job, question)
        self._taken.add(str(target))
        self._targets[work] = target
        return self._existing == "skip" and _is_caption(target)

    def _obstacle(self, job: Job, question: Question) -> Fault | None:
        """Why a caption cannot be written, or cannot be added to what is there."""
        target = self._targets[_work(job.path, question.prompt)]
        try:
            reason = self._obstacle_above(target) or obstacle_at(target)
            if reason is None and self._existing in ("append", "prepend") and target.exists():
                os.close(open_regular(target))
                reason = "it is too long for a caption" if target.stat().st_size > _LONGEST_CAPTION else None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        return None if reason is None else Fault("output", "not_writable", f"cannot write '{target}': {reason}")

    def _obstacle_above(self, target: Path) -> str | None:
        """What is in the way of the folders that lead to a caption."""
        folders = self._folders_above(target)
        for folder in folders:
            if len(os.fsencode(folder.name)) > _LONGEST_NAME:
                return f"the name of the folder '{folder.name[:20]}...' is too long"
            if os.path.lexists(folder) and not stat.S_ISDIR(folder.lstat().st_mode):
                return f"'{folder}' is a link, or no folder"
        nearest = next((folder for folder in reversed(folders) if folder.exists()), self._folder or target.parent)
        if nearest.exists() and not os.access(nearest, os.W_OK | os.X_OK):
            return f"the folder '{nearest}' cannot be written to"
        return None

    def _folders_above(self, target: Path) -> list[Path]:
        """The folders below our own that a caption is in, the outermost first; beside media there are none."""
        if self._folder is None:
            return []
        inner = target.parent.relative_to(self._folder).parts
        return [self._folder.joinpath(*inner[: depth + 1]) for depth in range(len(inner))]

    def _target(self, job: Job, question: Question) -> Path:
        """The best name for a caption that is not taken; all but the first are for media that would share one."""
        medium, name = self._medium(job), _part_for(question, job)
        first, second = medium.stem, medium.name
        if self._folder is not None and _is_by_base_name(job):
            own = f"{medium.name}.{_digest(job.identity)}"
            if self._first.setdefault(str(medium), job.identity) != job.identity:
                second = own
            if os.path.lexists(medium.with_name(self._file(f"{own}{name}"))):
                first = own  # in an earlier run the first name was taken
        for base in (first, second):
            target = medium.with_name(self._file(f"{base}{name}"))
            if str(target) not in self._taken:
                return target
        return self._numbered(target, second, name)

    def _file(self, stem: str) -> str:
        return _file_name(stem, self._suffix)

    def _numbered(self, taken: Path, base: str, name: str) -> Path:
        """The first name with a number that is not taken; where many ask, each goes on behind the one before."""
        target, number = taken, self._numbers.get(str(taken), 1)
        while str(target) in self._taken:
            number += 1
            target = taken.with_name(self._file(f"{base}.{number}{name}"))
        self._numbers[str(taken)] = number
        return target

    def _medium(self, job: Job) -> Path:
        """The path that a caption's name is made of: the medium's, or its place in the folder. Raises `UsageError`."""
        if self._folder is not None:
            parts = [part for part in Path(job.file_name).parts if part not in ("..", "/")]
            return self._folder.joinpath(*parts)
        if job.item is not None or "://" in job.path:
            raise UsageError(
                f"--format {self._suffix}: nothing can be written beside '{job.path}'; name a folder with -o"
            )
        return Path(job.path)

    def write(self, row: Row) -> None:
        """Writes a caption; a failure leaves no file. Raises `OutputError`."""
        if row.text is not None:
            self.write_text(work_of(row), without_controls(row.text) + "\n")

    def write_text(self, work: Work, text: str) -> None:
        """Writes the file that belongs to a question. Raises `OutputError`."""
        target = self._targets[work]
        with errors_of(target):
            for folder in self._folders_above(target):
                make_own_folder(folder)
            text = self._joined(target, text.removesuffix("\n")) + "\n"
        write_own_file(target, text.encode("utf-8", "surrogateescape"))  # what was there may not be UTF-8

    def finish(self, error: BaseException | None) -> None:
        """Takes away what killed runs left in the folders that captions of this run belong to."""
        for folder in {target.parent for target in self._targets.values()}:
            sweep(folder)

    def _joined(self, target: Path, text: str) -> str:
        """The caption with what was there; the same text is not put to the same place twice."""
        if self._existing in ("skip", "overwrite") or not target.exists():
            return text
        with open(open_regular(target), encoding="utf-8", errors="surrogateescape") as stream:  # noqa: PTH123
            before = stream.read(_LONGEST_CAPTION).strip()
        first, second = (before, text) if self._existing == "append" else (text, before)
        is_there = before.endswith(text) if self._existing == "append" else before.startswith(text)
        if is_there or not before:
            return before or text
        return f"{first}{'' if second.startswith((',', '.', ';')) else ' '}{second}"


def _is_caption(target: Path) -> bool:
    """True for a file, and for a link, which somebody may keep captions behind; a folder or a pipe holds none."""
    try:
        mode = target.lstat().st_mode
    except OSError:  # whoever writes there says what is wrong
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def work_of(row: Row) -> Work:
    """The question that a row answers."""
    return _work(row.source, Prompt(row.prompt, row.prompt_name))


def _work(path: str, prompt: Prompt) -> Work:
    return path, prompt.name, prompt.text


def _part_for(question: Question, job: Job) -> str:
    """The part of a name that tells the captions of one medium apart; empty where there is only one."""
    if len(job.questions) == 1:
        return ""
    name = question.prompt.name or f"{job.questions.index(question) + 1}"
    return f".{_NEVER_IN_NAMES.sub('_', printable(name))}"  # the name of a column may hold anything


def _file_name(stem: str, suffix: str) -> str:
    """The name of a file; where it would be too long for a disk, a digest stands for its end."""
    if len(os.fsencode(f"{stem}.{suffix}")) <= _LONGEST_NAME:
        return f"{stem}.{suffix}"
    end = f".{_digest(stem)}.{suffix}"
    return os.fsencode(stem)[: _LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end


def _is_by_base_name(job: Job) -> bool:
    """True if the medium's file name is its base name alone, which many media may share."""
    path = Path(job.path)
    return job.item is not None or path.is_absolute() or ".." in path.parts


def _digest(identity: str) -> str:
    return blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
