"""Doubles of the engine, of clips and of a run's progress, with the verbs of the real ones. No torch, no decoder.

`python cli_doubles.py ask ...` is the command line with them in place, for tests that need a process of their own; with
`CLIPS=real` in the environment the engine alone is a double.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

import numpy as np

from llava_mini_cli.config import Grammar, ModelOptions, SamplingOptions, WeightFormat
from llava_mini_cli.engine.request import Answer, AnyChunk, Failure, Request
from llava_mini_cli.errors import MediaError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.inputs.folders import IsMedia
from llava_mini_cli.formats.inputs.read import open_inputs
from llava_mini_cli.formats.job import Job, Prompt
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.media.clip import ClipInfo, FrameChunk
from llava_mini_cli.media.open import Opening


class MadeClip:
    """A clip of as many grey frames as the number in its file, with cuts at the seconds behind it: `9/2.5/6`.

    `broken` fails after the first frame; `slow` gives a frame every 20 ms for a minute; `wait 0.5` gives one
    frame after half a second.
    """

    opened: "list[MadeClip]" = []  # noqa: RUF012 - shared on purpose: tests ask which were left open

    def __init__(self, path: str, text: str) -> None:
        self._pause = float(text.removeprefix("wait ")) if text.startswith("wait ") else 0.0
        count, *cuts = ("1" if self._pause else text).split("/")
        frame_count = {"broken": 3, "slow": 3000}.get(count) or int(count)
        self.cuts: list[float] | None = [float(cut) for cut in cuts]
        self.info = ClipInfo(path, "video", 64, 48, float(frame_count), frame_count, 1.0, "made")
        self.warnings: list[str] = []
        self.closed = False
        self._text = text
        MadeClip.opened.append(self)

    @staticmethod
    def opened_in(folder: Path) -> "list[MadeClip]":
        """The clips of files in a folder: not those that threads of other tests, left behind, still open."""
        return [clip for clip in MadeClip.opened if Path(clip.info.path).absolute().is_relative_to(folder)]

    def __iter__(self) -> Iterator[FrameChunk]:
        time.sleep(self._pause)
        for second in range(self.info.frame_count or 0):
            yield FrameChunk(np.zeros((1, 48, 64, 3), np.uint8), np.array([float(second)]))
            if self._text == "slow":
                time.sleep(0.02)
            if self._text == "broken":
                raise MediaError("corrupt", "bad frame")
        if not self._text.startswith("wait"):
            self.warnings.append(f"read {self.info.frame_count} frames")

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_made_clip(
    path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
) -> MadeClip:
    """Opens a file that holds a number of frames, `slow`, `broken`, `unopenable`, `hang` or `exit`, which ends all."""
    text = Path(path).read_text()
    opening.reserve(1000)
    if text == "hang":
        time.sleep(60)
    if text == "exit":
        os._exit(1)
    if text == "unopenable":
        raise MediaError("no_video", "holds no video")
    return MadeClip(path, text)


def read_jobs(media: Sequence[str], prompts: tuple[Prompt, ...], is_media: IsMedia) -> Iterator[Job]:
    """The jobs of media on this disk."""
    return open_inputs(media, prompts, is_media, FileCache(FetchOptions())).jobs


def held_to(grammar: Grammar) -> str:
    """A short answer that a grammar allows, if it is one of a number, a text or a list."""
    told = ("1", "-1", "x", "xxxx") if grammar.kind == "regex" else ()
    return next((text for text in told if re.fullmatch(grammar.text, text)), "[]")


class EchoEngine:
    """Answers each prompt about each window with itself and the number of frames, or with the first of its choices.

    The answer to a yes/no question is yes, but for windows that begin with a frame at 0, 3, 6, ... seconds. One
    that is held to a grammar is a short one that the grammar allows. One request a step.
    """

    frame_size = 336
    still = None
    model_name = "echo"
    model_revision = "abc123"
    device = "cpu"
    dtype = "float32"
    weight_format: WeightFormat = "float32"
    media_bytes = 512 << 20
    note: str | None = None

    def __init__(self, options: ModelOptions, *, yes_no: bool = False, collects: bool = False) -> None:
        self.options = options
        self.most_waiting = 0
        self.requests: list[Request] = []
        self._waiting: list[Request] = []

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    @property
    def is_waiting(self) -> bool:
        return False

    def has_room(self) -> bool:
        return len(self._waiting) < 2

    def add(self, request: Request) -> None:
        self._waiting.append(request)
        self.requests.append(request)
        self.most_waiting = max(self.most_waiting, len(self._waiting))

    def step(self) -> list[Answer | Failure]:
        request = self._waiting.pop(0)
        try:
            times = [time for chunk in request.frames for time in _watched(request, chunk).times]
        except MediaError as error:
            return [request.failure(prompt, window, error) for prompt, window in _asked(request)]
        finally:
            request.frames.close()
        return [self._answer(request, prompt, window, times) for prompt, window in _asked(request)]

    def _answer(self, request: Request, index: int, number: int, times: Sequence[float]) -> Answer | Failure:
        prompt, window = request.prompts[index], request.windows[number]
        seen = [time for time in times if window.start <= time < window.end]
        frames = len(seen)
        if "too long" in prompt:
            return Failure(request.key, index, "prompt", "too_long", "the prompt leaves room for 7 frames", number)
        if not frames:
            return request.failure(index, number, MediaError("empty", "no frame"))
        choices = request.choices_of(index)
        if choices is not None:
            probs = dict.fromkeys(choices, 0.5 / (len(choices) - 1)) | {choices[0]: 0.5}
            return Answer(
                request.key, index, choices[0], (1,), "stop", frames, 5, frames, 1, number, choice_probs=probs
            )
        grammar = request.grammar_of(index)
        text = f"{prompt} [{frames}]" if grammar is None else held_to(grammar)
        p_yes = (0.9 if seen[0] % 3 else 0.1) if request.generation.yes_no else None
        return Answer(request.key, index, text, (1, 2), "stop", frames, 5, frames, 2, number, p_yes)


def _watched(request: Request, chunk: AnyChunk) -> AnyChunk:
    if request.watcher is not None and isinstance(chunk, FrameChunk):
        request.watcher.saw(chunk)
    return chunk


def _asked(request: Request) -> list[tuple[int, int]]:
    """Each prompt that is asked of a window, and the window's index; all windows are known by now."""
    return [
        (prompt, number)
        for number, window in enumerate(request.windows)
        for prompt in range(len(request.prompts))
        if prompt not in window.without
    ]


@dataclass
class ProgressLog:
    """Remembers what a run said."""

    events: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def loading(self, model: str) -> None:
        self.events.append(f"loading {model}")

    def loaded(self, weight_format: WeightFormat, note: str | None) -> None:
        self.events.append(f"loaded in {weight_format}, {note}")

    def opened(self, info: ClipInfo) -> None:
        self.events.append(f"opened {Path(info.path).name}")

    def frames(self, count: int) -> None:
        self.events.append(f"frames {count}")

    def row(self, row: Row) -> None:
        self.rows.append(row)

    def item_done(self) -> None:
        self.events.append("item done")

    def noted(self, text: str) -> None:
        self.events.append(f"noted {text}")

    def detailed(self, text: str) -> None:
        self.events.append(f"detail {text}")

    def warned(self, path: str, message: str) -> None:
        self.events.append(f"{Path(path).name}: {message}")


def main() -> None:
    """The command line with doubles; the module that would import torch is replaced before anything imports it."""
    load = ModuleType("llava_mini_cli.pipelines.load_engine")
    load.load_engine = EchoEngine  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[load.__name__] = load
    from llava_mini_cli import hub
    from llava_mini_cli.__main__ import main as run
    from llava_mini_cli.engine.estimate import Outlook
    from llava_mini_cli.media import open as media_open
    from llava_mini_cli.pipelines import model_outlook

    model_outlook.measured_outlook = lambda model: Outlook("cpu", None, "float32", ())
    hub.check_model = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    if os.environ.get("CLIPS") != "real":
        media_open.open_clip = open_made_clip  # pyright: ignore[reportAttributeAccessIssue]
    run()


if __name__ == "__main__":
    main()
