"""What the two processes tell each other. Knows neither vLLM nor questions."""

import io
import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

PENALTY, GRAMMAR = "llava_mini_penalty", "llava_mini_grammar"  # in the extra arguments of vLLM's requests

# too_long: there is no room for the prompt, or for the answer behind it; refused: vLLM did not take the request;
# lost: it gave the request up.
Finish = Literal["stop", "length", "too_long", "refused", "lost"]


@dataclass(frozen=True)
class Start:
    """The engine that is wanted."""

    checkpoint: str  # directory with the weights
    config: str  # the language model's configuration, as JSON
    dtype: str
    on_cuda: bool
    card: int  # the first, of those that this program sees
    tensor_parallel: int  # cards that share each layer
    sequences: int  # answered at once
    cache_bytes: int | None  # of the keys and values that a card has; None: what is left of `memory_share`
    memory_share: float  # of a card, for weights, keys and values
    layout: str  # of prompts, for grammars
    end_ids: tuple[int, ...]
    quantization: str | None = None  # of plain weights while they are loaded, by vLLM's name for it


@dataclass(frozen=True)
class Ready:
    """The engine is there."""

    positions: int  # that one prompt and its answer may take
    version: str  # of vLLM


@dataclass(frozen=True)
class Unit:
    """A piece of work behind a prefix: some tokens to be written, or the likelihoods of some next tokens."""

    number: int
    tail: Tensor  # [S, hidden]
    new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    penalty: float = 1.0
    grammar: tuple[str, str] | None = None  # kind and text
    wanted: tuple[int, ...] = ()  # tokens whose log-probabilities as the first new one are told
    is_watched: bool = False  # tokens are told as they come, since it may have to be stopped
    is_scored: bool = False  # the wanted tokens are what counts, and the likeliest one, be it an end


@dataclass(frozen=True)
class Group:
    """Units behind one prefix."""

    prefix: Tensor  # [P, hidden]
    units: tuple[Unit, ...]


Groups = tuple[Group, ...]  # that are handed over together, so that they begin together


@dataclass(frozen=True)
class Drop:
    """Units that are wanted no more."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Said:
    """What is new of a unit."""

    number: int
    tokens: tuple[int, ...] = ()  # without the one that ended it
    scores: dict[int, float] = field(default_factory=dict[int, float])  # log-probabilities of the wanted tokens
    is_finite: bool = True  # False where the model gave scores that are no numbers
    finish: Finish | None = None
    message: str = ""  # why it is too long or was refused


@dataclass(frozen=True)
class Counted:
    """Positions since the engine was started."""

    asked: int  # of prompts
    known: int  # of them, taken from the prefix cache


class _Pickler(pickle.Pickler):
    """Writes tensors, which are on the CPU, as their numbers: several times quicker than torch's own way."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor:
            return NotImplemented
        numbers = obj.contiguous().view(-1).view(torch.uint8).numpy().data
        return _tensor, (pickle.PickleBuffer(numbers), obj.dtype, tuple(obj.shape))


def _tensor(numbers: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(numbers, dtype=dtype).view(shape) if numbers else torch.empty(shape, dtype=dtype)


def to_bytes(message: object) -> memoryview:
    """A message as bytes."""
    into = io.BytesIO()
    _Pickler(into, protocol=5).dump(message)
    return into.getbuffer()


def from_bytes(data: bytes) -> Any:
    """A message; the other side is a process of the same user that this program started."""
    return pickle.loads(data)
