"""The answers that questions may have, from --choices, and which questions they are for.

A list is `a,b,c`, or a JSON list of texts where one of them holds a comma. Knows nothing of what is made of them.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from llava_mini_cli.config import Choices
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs.named_text import NAMED, encodes
from llava_mini_cli.formats.job import Job, Question

MOST_CHOICES = 10_000  # of one question
_MOST_SHOWN = 40  # characters of a value in a message


@dataclass(frozen=True)
class ChoicesGiven:
    """The values of --choices."""

    by_name: Mapping[str, Choices]  # of the questions with these names
    others: Choices | None  # of all other questions that have none of their own

    @classmethod
    def parse(cls, values: Sequence[str]) -> Self:
        """From `[NAME=]a,b,c`, once for each name and once without. Raises `UsageError`."""
        found: dict[str | None, Choices] = {}
        for value in values:
            named = NAMED.fullmatch(value)
            name, text = (named[1], named[2]) if named else (None, value)
            try:
                if name in found:
                    raise UsageError("given twice for " + (f"'{name}'" if name else "all questions"))
                found[name] = parse_choices(text)
            except UsageError as error:
                raise UsageError(f"--choices '{_short(value)}': {error}") from None
        others = found.pop(None, None)
        return cls({name: choices for name, choices in found.items() if name is not None}, others)

    def check_names(self, names: Iterable[str | None]) -> None:
        """Raises `UsageError` for a name that no question has."""
        there = [name for name in names if name is not None]
        for name in self.by_name:
            if name not in there:
                known = f"names are {', '.join(there)}" if there else "-p NAME=TEXT gives one a name"
                hint = "a choice with = in it is written in a JSON list"
                raise UsageError(f"--choices '{_short(name)}=...': no question has this name; {known}; {hint}")

    def put(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """The jobs with the choices of their questions."""
        for job in jobs:
            yield job._replace(questions=tuple(map(self._with_choices, job.questions)))

    def _with_choices(self, question: Question) -> Question:
        prompt = question.prompt
        choices = self.by_name.get(prompt.name or "", prompt.choices or self.others)
        return question if choices is prompt.choices else question._replace(prompt=prompt._replace(choices=choices))


def parse_choices(text: str) -> Choices:
    """From `a,b,c`, or from a JSON list of texts, which begins with a bracket. Raises `UsageError`."""
    if not text.lstrip().startswith("["):
        return checked_choices(text.split(","))
    try:
        listed: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError('not a JSON list such as ["red, green", "blue"]') from None
    return checked_choices(listed)


def checked_choices(given: Any) -> Choices:
    """Choices from a list, each without the white space around it. Raises `UsageError` where they are none."""
    listed = cast("list[object]", given) if isinstance(given, list) else [None]
    texts = [one for one in listed if isinstance(one, str)]
    if len(texts) < len(listed):
        raise UsageError("choices are a list of texts")
    choices = tuple(text.strip() for text in texts)
    seen = set[str]()
    for choice in choices:
        if not choice:
            raise UsageError("a choice is empty")
        if choice in seen:
            raise UsageError(f"the choice '{_short(choice)}' is there twice")
        if not encodes(choice):
            raise UsageError("a choice is not valid UTF-8")
        seen.add(choice)
    if len(choices) < 2:
        there = f"only '{_short(choices[0])}'" if choices else "none"
        raise UsageError(f"there must be two choices at least, with commas between them, and there is {there}")
    if len(choices) > MOST_CHOICES:
        raise UsageError(f"{len(choices):,} choices are more than {MOST_CHOICES:,}")
    return choices


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
