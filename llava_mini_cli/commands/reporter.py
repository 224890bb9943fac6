"""Progress of a run on stderr: a bar on a terminal, a plain line now and then off it, and warnings as they come.

A run over one video counts frames, a run over many media counts media.
"""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from llava_mini_cli.commands.stderr import KNOWN_TO_DEMO, say, say_warning, terminal_line
from llava_mini_cli.commands.summary import counts
from llava_mini_cli.config import WeightFormat
from llava_mini_cli.errors import LlavaMiniError
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.progress import Progress
from llava_mini_cli.pipelines.tally import Tally

_NOTES = logging.getLogger("llava_mini_cli.notes")  # of the engine, such as why it waits

LABEL_WIDTH = 32  # characters before a bar
PLAIN_INTERVAL = 10.0  # seconds between lines when stderr is not a terminal
WARNINGS = 20  # said as they come; more are counted, and stand in their rows


class Reporter(Progress):
    """Says it on stderr; leaving the `with` block clears the bar."""

    def __init__(self, tally: Tally, total: int | None, *, quiet: bool, verbose: bool) -> None:
        self._tally = tally
        self._total = total  # media, done ones included; None: not known
        self._jobs: Callable[[], Iterator[object]] | None = None
        self._by_frame = total == 1
        self._quiet = quiet
        self._verbose = verbose
        self._began = time.monotonic()
        self._said_at = self._began
        self._last_said = ""
        self._warnings: Counter[bool] = Counter()  # said or not
        self._notes = _NoteHandler(self._say)
        self._bar = None if quiet or not sys.stderr.isatty() else _bar(total, by_frame=self._by_frame)

    def count_from(self, jobs: Callable[[], Iterator[object]] | None) -> None:
        """Takes a way to read the media a second time, by which they are counted if nobody knows their number yet."""
        self._jobs = jobs

    def _start_counting(self) -> None:
        """In a thread of its own, and not before there is work: finding what is done must not share the interpreter."""
        if self._total is None and self._jobs is not None and not self._quiet:
            threading.Thread(target=self._count, args=(self._jobs,), name="count", daemon=True).start()

    def _count(self, jobs: Callable[[], Iterator[object]]) -> None:
        with suppress(LlavaMiniError, OSError):  # the run says so itself
            self._total = sum(1 for _ in jobs())

    def _left_of_total(self) -> int | None:
        """Media that were not done before, where the number of all is known."""
        return None if self._total is None else max(self._total - self._tally.media_skipped, self._tally.media)

    def loading(self, model: str) -> None:
        self._start_counting()
        text = f"loading {model}"
        if self._bar is not None:
            self._bar.set_description_str(shortened(text))
        elif self._verbose:
            say(f"llava-mini: {text}")
        if model == "demo" and not self._quiet:
            self._say(KNOWN_TO_DEMO)

    def loaded(self, weight_format: WeightFormat, note: str | None) -> None:
        if note is not None and not self._quiet:
            self._say(f"llava-mini: {note}")
        if self._verbose:
            self._say(f"llava-mini: the model's weights are held in {weight_format}")

    def opened(self, info: ClipInfo) -> None:
        if self._bar is not None:
            self._bar.set_description_str(shortened(info.path), refresh=False)
            if self._by_frame:
                self._bar.total = info.frame_count
        if self._verbose:
            length = "" if info.duration_s is None else f", {info.duration_s:.1f} s"
            self._say(f"{info.path}: {info.kind}, {info.width}x{info.height}{length}, {info.codec or 'codec unknown'}")

    def frames(self, count: int) -> None:
        if self._bar is not None and self._by_frame:
            self._bar.update(count)
        self._tick()

    def row(self, row: Row) -> None:
        if self._verbose and row.status == "error":
            self._say_once(f"{row.id}: failed: {row.error}")
        if row.warning and not self._quiet:
            self._warn(f"{row.id}: {row.warning}")

    def item_done(self) -> None:
        if self._bar is not None and not self._by_frame:
            self._bar.total = self._left_of_total()
            rate = self._tally.frames / (time.monotonic() - self._began)
            self._bar.set_postfix_str(f"{rate:.1f} frames/s, {self._tally.media_failed} failed", refresh=False)
            self._bar.update()
        self._tick()

    def noted(self, text: str) -> None:
        if not self._quiet:
            self._say(f"llava-mini: {text}")

    def detailed(self, text: str) -> None:
        if self._verbose:
            self._say(f"llava-mini: {text}")

    def warned(self, path: str, message: str) -> None:
        if not self._quiet:
            self._warn(f"{path}: {message}")

    @contextmanager
    def aside(self) -> Generator[None]:
        """Takes the bar off the screen while something else is written to the terminal."""
        if self._bar is None:
            yield
        else:
            with tqdm.external_write_mode(file=sys.stderr):
                yield

    def __enter__(self) -> Self:
        if not self._quiet:
            _NOTES.addHandler(self._notes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _NOTES.removeHandler(self._notes)
        if self._bar is not None:
            self._bar.close()
        if self._warnings[False]:
            say_warning(f"and {self._warnings[False]} more warnings; they stand in their rows")

    def _tick(self) -> None:
        now = time.monotonic()
        if self._bar is not None or self._quiet or now - self._said_at < PLAIN_INTERVAL:
            return
        self._said_at = now
        seconds = now - self._began
        rates = f"{self._tally.media / seconds:.1f} media/s, {self._tally.frames / seconds:.1f} frames/s"
        say(f"llava-mini: {counts(self._tally, self._left_of_total())}, {rates}{self._left(seconds)}")

    def _left(self, seconds: float) -> str:
        """The time that is still needed, if the number of media is known."""
        total = self._left_of_total()
        if total is None or not self._tally.media:
            return ""
        left = seconds / self._tally.media * (total - self._tally.media)
        return f", {tqdm.format_interval(left)} left"

    def _warn(self, text: str) -> None:
        """Says a warning, once for all prompts of its medium; not more than so many of them."""
        if text == self._last_said:
            return
        is_said = self._verbose or self._warnings[True] < WARNINGS
        self._warnings[is_said] += 1
        self._last_said = text
        if is_said:
            self._say(f"llava-mini: warning: {text}")

    def _say_once(self, text: str) -> None:
        """Says what the prompts of one medium have in common only once."""
        if text != self._last_said:
            self._last_said = text
            self._say(text)

    def _say(self, text: str) -> None:
        with self.aside():
            say(text)


class _NoteHandler(logging.Handler):
    """Says what a part below logs for whoever started the run."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(f"llava-mini: {record.getMessage()}")


def _bar(total: int | None, *, by_frame: bool) -> "tqdm[Any]":
    # tqdm's own lock would be shared between processes, which nothing here needs.
    tqdm.set_lock(threading.RLock())  # pyright: ignore[reportUnknownMemberType]
    return tqdm(
        total=None if by_frame else total,
        unit=" frames" if by_frame else " media",
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
        ascii=None if (sys.stderr.encoding or "").lower().startswith("utf") else True,
    )


def shortened(text: str) -> str:
    """The end of `text`, as much of it as a bar has room for."""
    line = terminal_line(text)
    return line if len(line) <= LABEL_WIDTH else "…" + line[1 - LABEL_WIDTH :]
