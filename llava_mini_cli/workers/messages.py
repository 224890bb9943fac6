"""What the command and its workers say to each other, as bytes. They are of one version, which is looked at first."""

import copyreg
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.formats.outputs.output import PartsPlace
from llava_mini_cli.formats.source import FetchOptions
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.of_media import Loaded, Task
from llava_mini_cli.pipelines.open_job import OpenClip
from llava_mini_cli.pipelines.run_parts import AnswerEngine


@dataclass(frozen=True)
class Work:
    """All that a worker is told before it gets media."""

    task: Task[Any]
    load_engine: Callable[[ModelOptions], AnswerEngine]
    model: ModelOptions
    open_clip: OpenClip
    fetching: FetchOptions
    folder: str  # the command's working directory, which relative paths start from
    beside: int  # workers that share a machine's memory
    place: PartsPlace | None = None  # where rows may be written


class Piece(NamedTuple):
    """Something that came of a medium which is not over."""

    number: int
    item: Any


class Made(NamedTuple):
    """All that came of a medium; it is over."""

    number: int
    items: list[tuple[Any, bool]]  # each with whether it is the medium's first failure
    video_s: float


class Prepared(NamedTuple):
    """A part that holds all that came of some media, which are over."""

    name: str
    media: list[tuple[int, float]]  # each with its seconds of video
    rows: int


class NoDisk(NamedTuple):
    """The worker does not see where it might prepare parts; it sends rows."""


class Ended(NamedTuple):
    """The worker cannot go on."""

    why: str
    could_begin: bool  # false: the model could not be loaded, which would not be otherwise a second time


Message = Loaded | Piece | Made | Prepared | NoDisk | Ended


@dataclass
class Batch:
    """What a worker has to say since it was last asked."""

    messages: list[Message] = field(default_factory=list[Message])
    frames: int = 0  # that were read
    opened: list[ClipInfo] = field(default_factory=list[ClipInfo])
    silent_s: float = 0.0  # seconds since it last got on with its work, where it has some


def to_bytes(told: object) -> bytes:
    """Anything that is said, to be sent."""
    return pickle.dumps(told, pickle.HIGHEST_PROTOCOL)


def from_bytes(sent: bytes) -> Any:
    """What was said. Only from processes of the same run: it may be anything, and runs code."""
    return pickle.loads(sent)


def _mapping(values: dict[str, object]) -> Mapping[str, object]:
    return MappingProxyType(values)


def _reduced(mapping: MappingProxyType[str, object]) -> tuple[Any, ...]:
    return _mapping, (dict(mapping),)


copyreg.pickle(MappingProxyType, _reduced)  # of columns that a row carries; Python itself cannot
