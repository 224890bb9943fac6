"""How long a model's work takes on this machine in one format of its weights, and the file that keeps what was found.

`llava-mini doctor -m MODEL` measures (`estimating.py`); a dry run reads what it found. Knows no torch.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Self, cast, get_args

from llava_mini_cli import __version__
from llava_mini_cli.config import WeightFormat
from llava_mini_cli.engine.rates import keep, read_kept, this_machine
from llava_mini_cli.memory_there import MemoryThere
from llava_mini_cli.plain_files import read_bytes

ANSWER_TOKENS = 64
MINUTE_FRAMES = 60  # at --fps 1
TAIL_TOKENS = 24  # of a question of ordinary length
ROWS_AT_ONCE = 64  # answers that share a step, as the engine's bound has it
_KIND = "estimates"
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Estimate:
    """Seconds of each piece of work; questions are of ordinary length."""

    load: float  # from the command to a model that can be asked
    picture: float  # encoding a single picture with one question
    frame: float  # encoding one of several frames with one question
    frame_question: float  # each further question, with each frame
    medium: float  # the language model over a medium of one frame and its first question
    position: float  # the same, each further vision token
    question: float  # the same, each further question
    step: float  # a token of one answer
    row: float  # a token of each further answer at the same time

    @property
    def image(self) -> float:
        """A picture with one question, to the first token of the answer."""
        return self.picture + self.medium

    @property
    def minute(self) -> float:
        """A minute of video at --fps 1 with one question, to the first token; frames are decoded beside."""
        return MINUTE_FRAMES * self.frame + self.medium + (MINUTE_FRAMES - 1) * self.position

    def answer(self, tokens: int = ANSWER_TOKENS) -> float:
        """An answer of so many tokens by itself."""
        return tokens * self.step

    def further_question(self, tokens: int = ANSWER_TOKENS) -> float:
        """A further question about the same picture, its answer given beside the others."""
        return self.frame_question + self.question + tokens * self.row

    def run(self, work: "RunWork") -> "RunSeconds":
        """What a whole run takes, one model loaded once."""
        further = work.rows - work.media
        frames = work.frames * self.frame + work.frame_questions * self.frame_question
        read = work.media * self.medium + (work.frames - work.media) * self.position + further * self.question
        read += work.choice_tokens * self.question / TAIL_TOKENS
        written = work.rows - work.chosen_rows
        steps = ceil(written / ROWS_AT_ONCE)
        tokens = steps * self.step + (written - steps) * self.row
        return RunSeconds(self.load, frames, read + work.new_tokens * tokens)


@dataclass(frozen=True)
class RunWork:
    """The work of a run, in counts."""

    media: int  # with at least one frame and one question
    frames: int
    frame_questions: int  # the frames of each medium times its questions beyond the first
    rows: int  # questions about all media
    new_tokens: int  # of each answer that is written, at most
    chosen_rows: int = 0  # of them, those with given choices, for which no token is generated
    choice_tokens: int = 0  # of all choices of these rows, which are read like tokens of questions


@dataclass(frozen=True)
class RunSeconds:
    """Seconds of a run, by what they are spent on."""

    load: float
    frames: float  # vision, with every question
    answers: float  # reading the questions and generating, each answer as long as it may be

    @property
    def total(self) -> float:
        return self.load + self.frames + self.answers


@dataclass(frozen=True)
class Estimates:
    """What was found of one model on this machine."""

    auto: WeightFormat | None  # the format that is taken when none is asked for; None: none fits
    formats: Mapping[WeightFormat, Estimate]

    def least(self, other: "Estimates | None") -> Self:
        """With the lesser of both numbers for each piece of work: other work on a machine only adds to it.

        But loading takes what it takes now: files come and go from memory, and weights are prepared or removed.
        """
        if other is None:
            return self
        formats = dict(self.formats)
        for kind, old in other.formats.items():
            new = formats.get(kind, old)
            lesser = {name: min(getattr(new, name), seconds) for name, seconds in asdict(old).items()}
            formats[kind] = Estimate(**lesser | {"load": new.load})
        return type(self)(self.auto, formats)


@dataclass(frozen=True)
class FormatOutlook:
    """A model in one format of its weights."""

    kind: WeightFormat
    bytes: int  # that it needs
    fits: bool
    estimate: Estimate | None  # None: it does not fit, or was not measured


@dataclass(frozen=True)
class Outlook:
    """A model on this machine."""

    device: str
    there: MemoryThere | None  # None: nobody tells
    auto: WeightFormat | None  # the format that is taken where none is asked for; None: none fits
    formats: tuple[FormatOutlook, ...]


def kept_estimates(model: Path) -> Estimates | None:
    """What was kept of a model, by its folder; None where nothing is known of it here."""
    found = read_kept(_KIND, _key(model))
    if found is None:
        return None
    auto, formats = found.get("auto"), found.get("formats")
    if not isinstance(formats, dict) or not (auto is None or auto in get_args(WeightFormat)):
        return None
    made = {kind: _estimate(values) for kind, values in cast("dict[Any, Any]", formats).items()}
    known = {kind: one for kind, one in made.items() if one is not None and kind in get_args(WeightFormat)}
    return Estimates(cast("WeightFormat | None", auto), cast("dict[WeightFormat, Estimate]", known))


def keep_estimates(model: Path, found: Estimates) -> None:
    """Writes what was found of a model into the cache directory; a folder that cannot be written is passed over."""
    keep(
        _KIND, _key(model), {"auto": found.auto, "formats": {kind: asdict(one) for kind, one in found.formats.items()}}
    )


def _estimate(values: Any) -> Estimate | None:
    names = {field.name for field in fields(Estimate)}
    if not isinstance(values, dict) or set(cast("dict[Any, Any]", values)) != names:
        return None
    numbers = cast("dict[str, Any]", values)
    if not all(type(value) is float and value >= 0 and isfinite(value) for value in numbers.values()):
        return None
    return Estimate(**numbers)


def _key(model: Path) -> dict[str, Any]:
    """A model by its configuration and the sizes of its files; the machine; this version, and how it measures."""
    try:
        digest = hashlib.sha256(read_bytes(model / "config.json")).hexdigest()[:32]
        size = sum(file.stat().st_size for pattern in _WEIGHTS for file in model.glob(pattern))
    except (OSError, ValueError):
        digest, size = "", 0
    return {**this_machine(), "version": __version__, "measured": "requests", "config": digest, "weights": size}
