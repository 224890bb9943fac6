"""What lmms-eval is given as `--model_args`, and as a task's generation options, checked: each error is one line."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from llava_mini_cli.config import PUBLISHED, ChoiceScore, GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.errors import UsageError

SeveralImages = Literal["error", "video", "middle"]  # what becomes of several pictures in one question
Failures = Literal["stop", "empty"]  # what becomes of a question that has no answer
_WORKERS = ("workers", "ray")  # options of the command line that somebody may look for here
SEPARATOR = "\n\n"  # lmms-eval has every task end its answers here that names no end of its own


@dataclass(frozen=True)
class EvaluationOptions:
    """How the questions of tasks are answered."""

    model: ModelOptions
    sampling: SamplingOptions
    max_new_tokens: int = 512  # of answers to tasks that say nothing of it
    choice_score: ChoiceScore = "sum"
    several_images: SeveralImages = "error"
    failures: Failures = "stop"


def read_arguments(given: Mapping[str, object], rank: int = 0, world_size: int = 1) -> EvaluationOptions:
    """The options that `--model_args` are.

    Args:
        given: by name, as lmms-eval reads them: numbers and truth values are such already.
        rank: of this process among `world_size`, each of which has a card of its own.

    Raises:
        UsageError: one is not known, or has a value that cannot be used.
    """
    for name in filter(given.__contains__, _WORKERS):
        raise UsageError(
            f"model_args: {name} cannot be had: a task's pictures are in this process alone. lmms-eval shares the rows "
            "of tasks among processes itself, each with a card: accelerate launch --num_processes N -m lmms_eval ..."
        )
    unknown = [name for name in given if name not in _READERS]
    if unknown:
        raise UsageError(f"model_args: there is no '{unknown[0]}'; there are {', '.join(_READERS)}")
    try:
        known = {name: _READERS[name](name, value) for name, value in given.items() if value is not None}
        device = str(known.get("device", "auto"))
        if world_size > 1 and device in ("auto", "cuda"):
            device = f"cuda:{rank}"
        model = ModelOptions(
            known.get("pretrained", PUBLISHED),
            device=device,
            **_among(known, "revision dtype quantize prompt_layout llm tensor_parallel gpu_memory"),
        )
        sampling = SamplingOptions(**_among(known, "fps max_frames fit decoder"))
        rest = _among(known, "max_new_tokens choice_score several_images failures")
        options = EvaluationOptions(model, sampling, **rest)
        GenerationOptions(options.max_new_tokens, choice_score=options.choice_score)
    except UsageError as error:
        raise UsageError(f"model_args: {_as_arguments(str(error))}") from None
    return options


@dataclass(frozen=True)
class Writing:
    """How the answers to a question are written."""

    generation: GenerationOptions
    ends: tuple[str, ...]  # texts before which an answer is cut off
    ignored: tuple[str, ...]  # names of options that have no effect here

    def cut(self, text: str) -> str:
        """An answer up to the first of its ends."""
        return text[: min((place for end in self.ends if (place := text.find(end)) >= 0), default=len(text))]


def read_writing(wanted: Mapping[str, object], options: EvaluationOptions, time: int = 0) -> Writing:
    """How a task wants its answers written.

    Args:
        wanted: the task's `generation_kwargs`.
        time: how often the same question came before; where tokens are sampled, each time has other ones.

    Raises:
        UsageError: it wants what the engine does not do.
    """
    beams = wanted.get("num_beams")
    if beams not in (None, 1):
        raise UsageError(f"the task wants num_beams={beams}; llava-mini does not search with beams")
    new = wanted.get("max_new_tokens", wanted.get("max_gen_toks"))
    temperature = wanted.get("temperature")
    if temperature is None:
        temperature = 1.0 if wanted.get("do_sample") else 0.0
    sampled = wanted.get("do_sample") is not False and _number("temperature", temperature) > 0
    ends = wanted.get("until") or ()
    ends = (ends,) if isinstance(ends, str) else tuple(cast("Sequence[str]", ends))
    try:
        generation = GenerationOptions(
            options.max_new_tokens if new is None else _whole("max_new_tokens", new),
            temperature=_number("temperature", temperature) if sampled else 0.0,
            top_p=_number("top_p", wanted.get("top_p") or 1.0) if sampled else 1.0,
            seed=time if sampled else 0,
            repetition_penalty=_number("repetition_penalty", wanted.get("repetition_penalty") or 1.0),
        )
    except UsageError as error:
        raise UsageError(f"generation_kwargs: {_as_arguments(str(error))}") from None
    ignored = tuple(name for name, value in wanted.items() if name not in _WRITING and value is not None)
    return Writing(generation, tuple(end for end in ends if end and end != SEPARATOR), ignored)


_WRITING = frozenset(
    ["max_new_tokens", "max_gen_toks", "temperature", "do_sample", "top_p", "repetition_penalty", "num_beams", "until"]
)


def _among(known: Mapping[str, Any], names: str) -> dict[str, Any]:
    return {name: known[name] for name in names.split() if name in known}


def _as_arguments(message: str) -> str:
    """An error about options of the command line, with the names that they have here."""
    return re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), message)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        raise UsageError(f"{name} must be a text, not {value}")
    return str(value)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, not '{value}'")
    return float(value)


def _whole(name: str, value: object) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise UsageError(f"{name} must be a whole number, not {value}")
    return int(number)


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False, not '{value}'")
    return value


def _one_of(values: tuple[str, ...]) -> Callable[[str, object], str]:
    def read(name: str, value: object) -> str:
        if value not in values:
            raise UsageError(f"{name} must be one of {', '.join(values)}, not '{value}'")
        return str(value)

    return read


_READERS: dict[str, Callable[[str, object], Any]] = {
    "pretrained": _text,
    "revision": _text,
    "device": _text,
    "dtype": _text,
    "quantize": _text,
    "llm": _text,
    "tensor_parallel": _whole,
    "gpu_memory": _number,
    "prompt_layout": _one_of(("trained", "reference")),
    "fps": _number,
    "max_frames": _whole,
    "fit": _truth,
    "decoder": _one_of(("auto", "decord", "ffmpeg")),
    "max_new_tokens": _whole,
    "choice_score": _one_of(get_args(ChoiceScore)),
    "several_images": _one_of(get_args(SeveralImages)),
    "failures": _one_of(get_args(Failures)),
}
