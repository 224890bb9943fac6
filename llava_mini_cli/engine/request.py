"""What goes into the engine and what comes out: requests, answers, failures. No torch.

A request is one medium with all the questions about it, asked of each of its windows. The engine gives
exactly one `Answer` or one `Failure` for each window and prompt, in any order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.media.clip import FrameChunk, MediaKind

FinishReason = Literal["stop", "length", "repetition"]


class FrameSource(Protocol):
    """Frames of one medium; `media.clip.Clip` is one."""

    def __iter__(self) -> Iterator[FrameChunk]: ...

    def ready(self) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Window:
    """A span of a video that is answered for by itself: the frames with start <= time < end."""

    start: float = 0.0  # seconds from the beginning of the video
    end: float = inf


WHOLE = Window()


@dataclass(frozen=True)
class Request:
    """One medium and every question about it."""

    key: str  # the caller's name for it, unique among the requests in flight
    kind: MediaKind
    frames: FrameSource  # closed by the engine when the last frame was read or the request failed
    prompts: tuple[str, ...]  # questions as the user typed them
    generation: GenerationOptions
    windows: tuple[Window, ...] = (WHOLE,)


@dataclass(frozen=True)
class Answer:
    """The model's answer to one prompt of a request."""

    key: str
    prompt_index: int
    text: str
    token_ids: tuple[int, ...]  # new tokens only, without the one that ended generation
    finish_reason: FinishReason
    frame_count: int
    prompt_tokens: int  # text tokens of the prompt, vision excluded
    vision_tokens: int
    completion_tokens: int
    window_index: int = 0


@dataclass(frozen=True)
class Failure:
    """Why one prompt of a request has no answer."""

    key: str
    prompt_index: int
    stage: str  # decode, prompt or generate
    error_type: str  # `kind` of the ItemError, or "out_of_memory" / "internal"
    message: str  # one line
    window_index: int = 0
