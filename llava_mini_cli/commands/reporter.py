"""Progress of a run on stderr: a bar on a terminal, a plain line now and then off it, and failures as they come.

A run over one video counts frames, a run over many media counts media.
"""

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from llava_mini_cli.commands.stderr import one_line, say
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import ClipInfo

LABEL_WIDTH = 32  # characters before a bar
PLAIN_INTERVAL = 10.0  # seconds between lines when stderr is not a terminal


class Reporter:
    """Implements `pipelines.progress.Progress`; leaving the `with` block clears the bar."""

    def __init__(self, total: int | None, *, quiet: bool, verbose: bool) -> None:
        self.media = 0
        self.frames_read = 0
        self.answered = 0
        self.failed = 0
        self._total = total  # media; None: not known
        self._quiet = quiet
        self._verbose = verbose
        self._began = time.monotonic()
        self._said = self._began
        self._last_said = ""
        self._bar: tqdm[Any] | None = None
        # tqdm's own lock would be shared between processes, which nothing here needs.
        tqdm.set_lock(threading.RLock())  # pyright: ignore[reportUnknownMemberType]
        if not quiet and sys.stderr.isatty():
            by_frame = total == 1
            self._bar = tqdm(
                total=None if by_frame else total,
                unit=" frames" if by_frame else " media",
                file=sys.stderr,
                leave=False,
                dynamic_ncols=True,
                ascii=None if (sys.stderr.encoding or "").lower().startswith("utf") else True,
            )

    def loading(self, model: str) -> None:
        self._note(f"loading {model}")

    def opened(self, info: ClipInfo) -> None:
        if self._bar is not None:
            self._bar.set_description_str(shortened(info.path))
            if self._total == 1:
                self._bar.total = info.frame_count
        if self._verbose:
            length = "" if info.duration_s is None else f", {info.duration_s:.1f} s"
            self._say(f"{info.path}: {info.kind}, {info.width}x{info.height}{length}, {info.codec or 'codec unknown'}")

    def frames(self, count: int) -> None:
        self.frames_read += count
        if self._bar is not None and self._total == 1:
            self._bar.update(count)
        self._tick()

    def row(self, row: Row) -> None:
        if row.status == "ok":
            self.answered += 1
        else:
            self.failed += 1
            self._say_once(f"llava-mini: error: {row.id}: {row.error}")
        if row.warning and not self._quiet:
            self._say_once(f"llava-mini: warning: {row.id}: {row.warning}")

    def item_done(self) -> None:
        self.media += 1
        if self._bar is not None and self._total != 1:
            self._bar.update()
            self._bar.set_postfix_str(f"{self.frames_read} frames, {self.failed} failed")
        self._tick()

    def summary(self, path: Path | None) -> None:
        """One line at the end of a run; `path` is the file that the rows went to."""
        if not self._quiet:
            seconds = time.monotonic() - self._began
            target = "" if path is None else f", written to {path}"
            say(f"llava-mini: {self._counts()}, {seconds:.1f} s{target}")

    @contextmanager
    def aside(self) -> Generator[None]:
        """Takes the bar off the screen while something else is written to the terminal."""
        with tqdm.external_write_mode(file=sys.stderr):
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._bar is None and not self._quiet and now - self._said >= PLAIN_INTERVAL:
            self._said = now
            rate = self.frames_read / (now - self._began)
            say(f"llava-mini: {self._counts()}, {rate:.1f} frames/s")

    def _counts(self) -> str:
        media = f"{self.media}/{self._total} media" if self._total else f"{self.media} media"
        return f"{media}, {self.frames_read} frames, {self.answered} answers, {self.failed} failed"

    def _note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(shortened(text))
        elif self._verbose:
            say(f"llava-mini: {text}")

    def _say_once(self, text: str) -> None:
        """Says what the prompts of one medium have in common only once."""
        if text != self._last_said:
            self._last_said = text
            self._say(text)

    def _say(self, text: str) -> None:
        with self.aside():
            say(text)


def shortened(text: str) -> str:
    """The end of `text`, as much of it as a bar has room for."""
    line = one_line(text)
    return line if len(line) <= LABEL_WIDTH else "…" + line[1 - LABEL_WIDTH :]
