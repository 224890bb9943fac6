"""What a run is asked: one job is one medium with every question about it.

Knows nothing of how media are opened or answered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from llava_mini_cli.errors import UsageError

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """One question, with the name that its rows carry in `prompt_name`."""

    text: str
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UsageError("the prompt is empty" if self.name is None else f"the prompt '{self.name}' is empty")
        if not _encodes(self.text):
            raise UsageError("the prompt is not valid UTF-8")

    @classmethod
    def parse(cls, text: str) -> Self:
        """A prompt from `-p [NAME=]TEXT`; what stands before the first `=` is a name if it is a plain word."""
        named = _NAMED.fullmatch(text)
        return cls(text=named[2], name=named[1]) if named else cls(text=text)


@dataclass(frozen=True)
class Job:
    """One medium and all its prompts; they travel together so that the medium is decoded once."""

    path: str  # what is opened
    file_name: str  # relative to the folder that the user gave, or the base name of a file given by itself
    prompts: tuple[Prompt, ...]


def parse_prompts(texts: Sequence[str]) -> tuple[Prompt, ...]:
    """Prompts from the values of `-p`. Raises `UsageError` where two share a name or a text."""
    prompts = tuple(Prompt.parse(text) for text in texts)
    for position, prompt in enumerate(prompts):
        for earlier in prompts[:position]:
            if prompt.name is not None and prompt.name == earlier.name:
                raise UsageError(f"-p gives the name '{prompt.name}' twice")
            if (prompt.name, prompt.text) == (earlier.name, earlier.text):
                raise UsageError(f"-p asks the same question twice: {prompt.text}")
    return prompts


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
