"""Prompts from the command line: `-p [NAME=]TEXT`. Names are unique, texts are neither empty nor broken."""

import re
from collections.abc import Sequence

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Prompt

_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)=(.*)", re.DOTALL)


def checked_prompt(text: str, name: str | None = None) -> Prompt:
    """A prompt that can be asked. Raises `UsageError`."""
    if not text.strip():
        raise UsageError("the prompt is empty" if name is None else f"the prompt '{name}' is empty")
    if not encodes(text):
        raise UsageError("the prompt is not valid UTF-8")
    return Prompt(text, name)


def parse_prompt(text: str) -> Prompt:
    """A prompt from `-p [NAME=]TEXT`; what stands before the first `=` is a name if it is a plain word."""
    named = _NAMED.fullmatch(text)
    return checked_prompt(named[2], named[1]) if named else checked_prompt(text)


def parse_prompts(texts: Sequence[str]) -> tuple[Prompt, ...]:
    """Prompts from the values of `-p`. Raises `UsageError` where two share a name or a text."""
    prompts = tuple(parse_prompt(text) for text in texts)
    for position, prompt in enumerate(prompts):
        for earlier in prompts[:position]:
            if prompt.name is not None and prompt.name == earlier.name:
                raise UsageError(f"-p gives the name '{prompt.name}' twice")
            if prompt == earlier:
                raise UsageError(f"-p asks the same question twice: {prompt.text}")
    return prompts


def encodes(text: str) -> bool:
    """Whether a text is valid Unicode, without the half characters that stand for broken bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
