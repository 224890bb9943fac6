"""Requests, which go into the engine, and the answers and failures that come out. No torch.

A request is one medium with all the questions about it, asked of each of its windows. The engine gives
exactly one `Answer` or one `Failure` for each window and prompt, in any order. A request may also have a sink, which
is given what the model made of each frame; then it needs no prompts.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import Choices, GenerationOptions, Grammar
from llava_mini_cli.errors import ItemError
from llava_mini_cli.media.clip import FrameChunk, MediaKind

FinishReason = Literal["stop", "length", "repetition"]


@dataclass(frozen=True)
class FeatureChunk:
    """Consecutive frames of one medium whose vision features are known already."""

    features: NDArray[np.float16] | NDArray[np.float32]  # [n, parts, N, mm_hidden_size]
    times: NDArray[np.float64]  # [n] seconds from the beginning of the video
    embeddings: NDArray[np.float16] | None = None  # [n, shared] CLIP's own, of length 1; None: not known


AnyChunk = FrameChunk | FeatureChunk


class FrameSource(Protocol):
    """Frames of one medium; `media.clip.Clip` is one."""

    def __iter__(self) -> Iterator[AnyChunk]: ...

    def ready(self) -> bool: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class EncodedFrames:
    """The tokens, embeddings and features of some consecutive frames of one medium."""

    times: NDArray[np.float64]  # [n] seconds
    tokens: NDArray[np.float16]  # [n, C * C, hidden], the vision tokens that the language model reads
    embeddings: NDArray[np.float32] | None  # [n, shared] CLIP's own, of length 1; None: CLIP has no projection
    features: NDArray[np.float16] | NDArray[np.float32] | None  # [n, parts, N, mm_hidden_size], where wanted


@dataclass(frozen=True)
class FrameShapes:
    """The shapes of one frame's token, embedding and features."""

    token: tuple[int, int]  # C * C, hidden
    embedding: int | None  # CLIP's shared width; None: its projection is not there
    features: tuple[int, int, int]  # parts, patches, width


class FrameSink(Protocol):
    """Takes what becomes of a medium's frames, in order, then one `end` or one `fail`."""

    @property
    def features(self) -> Literal["float16", "float32"] | None:
        """The number format in which the vision tower's features are wanted; None: they are not."""
        ...

    def add(self, frames: EncodedFrames) -> None: ...

    def end(self) -> None: ...

    def fail(self, stage: str, error_type: str, message: str) -> None: ...


class FrameWatcher(Protocol):
    """Is shown a medium's frames in order, as the model was; the same once more where memory ran out on the way."""

    def saw(self, frames: FrameChunk) -> None:
        """Takes note of the next frames. The windows that begin at or before the last of them are known."""
        ...


@dataclass(frozen=True)
class Window:
    """A span of a video that is answered for by itself: the frames with start <= time < end."""

    start: float = 0.0  # seconds from the beginning of the video
    end: float = inf
    without: frozenset[int] = frozenset()  # prompts of the request, by their index, that are not asked of it


WHOLE = Window()


class GrowingWindows(Sequence[Window]):
    """Windows of which frames tell where they begin; until the next one is known, the last has no end.

    All that begin at or before a frame are known when the frame is added to them: from the frames' source, or from
    CLIP's embeddings of the frames, which the engine then hands over.
    """

    @property
    @abstractmethod
    def wants_embeddings(self) -> bool:
        """True if the frames' embeddings tell where windows begin."""

    @property
    @abstractmethod
    def is_growing(self) -> bool:
        """True until no more can come."""

    @property
    @abstractmethod
    def outcomes(self) -> int:
        """The answers and failures that the windows so far will have."""

    @abstractmethod
    def reached(self, time: float) -> None:
        """Takes note that the source has frames up to `time`, seconds; `inf`: all. Raises `MediaError`: too many."""

    @abstractmethod
    def saw(self, times: NDArray[np.float64], embeddings: NDArray[np.floating] | None) -> None:
        """Takes the next frames' times `[n]`, seconds, and embeddings `[n, shared]` of length 1.

        Raises:
            MediaError: there are none, as CLIP has no projection; or there are too many windows.
        """

    @abstractmethod
    def close(self) -> None:
        """Takes note that there will be no more frames."""


Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the upright picture


class Cut(Protocol):
    """Cuts each window of a medium into pieces; where these are told as frames come, as `GrowingWindows` are."""

    @property
    def wants_embeddings(self) -> bool:
        """True if the frames' embeddings tell where pieces begin."""
        ...

    @property
    def is_growing(self) -> bool:
        """True if the last bound may move, and more may follow, while frames come."""
        ...

    def bounds(self, start: float, end: float) -> tuple[float, ...]:
        """The times between which the pieces of a window lie, as far as they are known; none where it has no pieces.

        Args:
            start, end: of the window, seconds.
        """
        ...

    def saw(self, times: NDArray[np.float64], embeddings: NDArray[np.floating] | None) -> None:
        """Takes the next frames' times `[n]`, seconds, and embeddings `[n, shared]` of length 1.

        Raises:
            MediaError: there are none, as CLIP has no projection.
        """
        ...


@dataclass(frozen=True)
class LeftOut:
    """A part of a medium, and how likely an answer is without it."""

    score: float  # log-likelihood
    start: float | None = None  # seconds, of a piece of a video
    end: float | None = None
    box: Box | None = None  # of a block of a picture


@dataclass(frozen=True)
class Evidence:
    """The likelihood of an answer, and what becomes of it where a part of the medium is left out.

    Log-likelihoods are natural, of all tokens of the answer and of its end, if it came to one.
    """

    seen: float  # log-likelihood of the answer about the whole window
    blind: float  # and to the same prompt with no medium
    parts: tuple[LeftOut, ...]  # one for each part that holds something, in order of time, or row by row


class Likelihood(NamedTuple):
    """How likely the model is to answer with a given text, and with nothing behind it."""

    score: float  # natural logarithm of the probability; of a choice, as `GenerationOptions` wants it
    is_greedy: bool  # True if each token is the likeliest where it stands, and an end behind the last one


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
    p_yes: float | None = None  # of yes against no, as the answer's first word; None: not asked for
    choice_probs: Mapping[str, float] | None = None  # of each choice, in their order; None: the question has none
    evidence: Evidence | None = None  # None: not asked for
    choice_scores: Mapping[str, Likelihood] | None = None  # of each choice; the probabilities are the softmax of these


@dataclass(frozen=True)
class Failure:
    """The reason why one prompt of a request has no answer."""

    key: str
    prompt_index: int
    stage: str  # decode, prompt or generate
    error_type: str  # `kind` of the ItemError, or "out_of_memory" / "internal"
    message: str  # one line
    window_index: int = 0


Outcome = Answer | Failure


@dataclass(frozen=True)
class Request:
    """One medium and every question about it."""

    key: str  # the caller's name for it, unique among the requests in flight
    kind: MediaKind
    frames: FrameSource  # closed by the engine when the last frame was read or the request failed
    prompts: tuple[str, ...]  # questions as the user typed them
    generation: GenerationOptions
    # Ordered by their starts; each is looked at once its first frame came, and those that grow again with each chunk.
    windows: Sequence[Window] = (WHOLE,)
    sink: FrameSink | None = None
    frame_count: int | None = None  # frames that `frames` will give; None: only reading them tells
    choices: tuple[
        Choices | None, ...
    ] = ()  # of each prompt, one of which is its answer; None: any text. (): no prompt's
    grammars: tuple[Grammar | None, ...] = ()  # of each prompt, which its answer is held to; None: any text
    cut: Cut | None = None  # cuts each window into pieces, of which each is left out for evidence; None: none is
    size: tuple[int, int] | None = None  # width and height of a picture whose blocks are left out; None: none is
    watcher: FrameWatcher | None = None  # is shown the frames that come as pixels

    def choices_of(self, prompt: int) -> Choices | None:
        """The answers that a prompt may have, by its index; None where the model writes one."""
        return self.choices[prompt] if self.choices else None

    def grammar_of(self, prompt: int) -> Grammar | None:
        """What the answer to a prompt, by its index, is held to while it is written; None: nothing."""
        return self.grammars[prompt] if self.grammars else None

    def failure(self, prompt: int, window: int, error: ItemError, stage: str | None = None) -> Failure:
        """The failure of one prompt for one window; `stage`: the error's own if None."""
        return Failure(self.key, prompt, stage or error.stage, error.kind, str(error), window)

    def failures(self, prompt: int, error: ItemError, stage: str | None = None, first: int = 0) -> list[Failure]:
        """The failures of one prompt for all windows from the `first` on that it is asked of."""
        windows = range(first, len(self.windows))
        return [
            self.failure(prompt, window, error, stage)
            for window in windows
            if prompt not in self.windows[window].without
        ]
