"""Prompts from the command line and from files. Names are unique, texts are neither empty nor broken."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.choices import checked_choices
from llava_mini_cli.formats.inputs.named_text import NAMED, encodes
from llava_mini_cli.formats.job import Prompt

CaptionStyle = Literal["brief", "detailed", "tags"]

CAPTION_PROMPT = Prompt("Please describe what is shown in detail.", name="caption")
STYLES: dict[CaptionStyle, Prompt] = {
    "brief": Prompt("Describe what is shown concisely, in one sentence.", name="brief"),
    "detailed": Prompt(
        "Describe what is shown in detail: the people and objects, what they look like, what they do, where they are, "
        "and how they relate to each other.",
        name="detailed",
    ),
    "tags": Prompt(
        "List what is shown as short tags in lower case, separated by commas, the most important first: subjects, "
        "actions, place, colours, style. Write the tags alone.",
        name="tags",
    ),
}

_LARGEST_FILE = 16 << 20  # bytes, of questions


def checked_prompt(text: str, name: str | None = None) -> Prompt:
    """A prompt that can be asked. Raises `UsageError`."""
    if not text.strip():
        raise UsageError("the prompt is empty" if name is None else f"the prompt '{name}' is empty")
    if not encodes(text):
        raise UsageError("the prompt is not valid UTF-8")
    return Prompt(text, name)


def parse_prompt(text: str) -> Prompt:
    """A prompt from `-p [NAME=]TEXT`; what stands before the first `=` is a name if it is a plain word."""
    named = NAMED.fullmatch(text)
    return checked_prompt(named[2], named[1]) if named else checked_prompt(text)


def parse_prompts(texts: Sequence[str]) -> tuple[Prompt, ...]:
    """Prompts from the values of `-p`. Raises `UsageError` where two share a name or a text."""
    return unique_prompts([parse_prompt(text) for text in texts])


def unique_prompts(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts of a run, in order. Raises `UsageError` where two share a name, or are the same."""
    names: set[str] = set()
    texts: set[str] = set()  # of those without a name
    for prompt in prompts:
        if prompt.name in names:
            raise UsageError(f"two prompts have the name '{prompt.name}'")
        if prompt.name is not None:
            names.add(prompt.name)
        elif prompt.text in texts:
            raise UsageError(f"the same question is asked twice: {prompt.text}")
        else:
            texts.add(prompt.text)
    return tuple(prompts)


def read_prompt_file(path: str) -> tuple[Prompt, ...]:
    """Prompts from a file: a line each, as `-p` takes them, or with the suffix .jsonl an object each.

    Blank lines are skipped; nothing is a comment, as a question may begin with any sign.

    Raises:
        UsageError: the file cannot be read, holds no prompt, or a line of it is none; the text names file and line.
    """
    try:
        text = _text(path)
    except (OSError, ValueError) as error:
        reason = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None)
        raise UsageError(f"--prompt-file cannot read '{path}': {(reason or str(error)).lower()}") from None
    prompts = unique_prompts(list(_prompts(text, path)))
    if not prompts:
        raise UsageError(f"--prompt-file '{path}' holds no prompt")
    return prompts


def _text(path: str) -> str:
    """The text of a file, or of a pipe such as `<(...)`. Raises `OSError`, `ValueError` where there is too much."""
    with Path(path).open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"larger than {_LARGEST_FILE >> 20} MiB")
    return content.decode("utf-8-sig")


def _prompts(text: str, path: str) -> Iterator[Prompt]:
    is_jsonl = path.lower().endswith((".jsonl", ".ndjson"))
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield _from_json(line) if is_jsonl else parse_prompt(line.strip())
            except UsageError as error:
                raise UsageError(f"--prompt-file '{path}', line {number}: {error}") from None


def _from_json(line: str) -> Prompt:
    try:
        record: Any = json.loads(line)
        text, name, choices = record["prompt"], record.get("name"), record.get("choices")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError('not an object such as {"name": "topic", "prompt": "What is taught?"}') from None
    if not isinstance(text, str) or not isinstance(name, str | None):
        raise UsageError("prompt and name must be text")
    prompt = checked_prompt(text, name or None)
    return prompt if choices is None else prompt._replace(choices=checked_choices(choices))
