"""A schema as the model is asked for it: the questions behind one row, and the JSON that their answers make.

Field by field each is a question of its own, and the JSON is written here; as one text the model writes it. Knows
nothing of how a schema is given, nor of how questions are asked.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from llava_mini_cli.config import Choices, Grammar, SchemaWay
from llava_mini_cli.formats.column_types import RowFields, as_type

NONE = "none"  # what the model says where a field may be null, and JSON's own word does not have to stand
Reading = Literal["label", "text", "number", "json", "constant"]


_MOST_DIGITS = 300  # of an integer, which readers may take for a float
_CUT = "was cut at --max-new-tokens, before it was whole"


class Part(NamedTuple):
    """One question to the model, and what its answer is held to."""

    text: str
    choices: Choices | None = None
    grammar: Grammar | None = None


class Said(NamedTuple):
    """What the model said to one part."""

    text: str
    finish_reason: str
    probs: Mapping[str, float] | None = None


class Filled(NamedTuple):
    """The content of a row."""

    json: str
    columns: dict[str, Any]  # `fields`, values by name, and `field_probs`, by name and label; None where there are none


class InvalidAnswer(Exception):
    """An answer that is no value of its schema, most often because it was cut."""


@dataclass(frozen=True)
class FlatField:
    """A field that is asked for by itself."""

    name: str
    question: str
    reading: Reading
    choices: Choices | None = None
    values: tuple[Any, ...] = ()  # what each of the choices stands for; of a constant its value
    grammar: Grammar | None = None
    may_be_null: bool = False
    shortest: int = 0  # characters of a text

    def value(self, said: Said) -> Any:
        """The value that an answer is. Raises `InvalidAnswer`."""
        if self.reading == "label":
            assert self.choices is not None
            return self.values[self.choices.index(said.text)]
        if said.finish_reason != "stop":
            raise InvalidAnswer(f"the field '{self.name}' {_CUT}")
        if self.may_be_null and self.reading != "json" and said.text.lower() == NONE:
            return None
        if self.reading == "text":
            return self._text(said.text)
        try:
            value = read_json(said.text)
        except ValueError as error:
            raise InvalidAnswer(f"the field '{self.name}' {error}") from None
        return 0.0 if self.reading == "number" and value == 0 and "-" in said.text else value

    def _text(self, said: str) -> str:
        """The text with single spaces for runs of white space."""
        text = " ".join(said.split())
        if len(text) < self.shortest:
            raise InvalidAnswer(f"the field '{self.name}' is too short without its runs of white space")
        return text

    def probs(self, said: Said) -> dict[str, float] | None:
        """The probability of each value by its name; None without labels."""
        if said.probs is None or self.choices is None:
            return None
        return {name_of(value): said.probs[choice] for choice, value in zip(self.choices, self.values, strict=True)}


@dataclass(frozen=True, eq=False)
class AnswerSchema:
    """What each question of a run is asked to fill."""

    way: SchemaWay
    digest: str  # of the schema and the way, by which rows are told from others
    columns: RowFields
    fields: tuple[FlatField, ...] = ()  # asked one by one
    instruction: str = ""  # asked for the JSON as one text
    grammar: Grammar | None = None  # of that text
    asked: tuple[FlatField, ...] = field(init=False)  # the fields that there is a question about

    def __post_init__(self) -> None:
        object.__setattr__(self, "asked", tuple(one for one in self.fields if one.reading != "constant"))

    @property
    def grammars(self) -> tuple[tuple[str | None, Grammar], ...]:
        """What the model is held to, with the name of the field, if it is of one."""
        if self.grammar is not None:
            return ((None, self.grammar),)
        return tuple((one.name, one.grammar) for one in self.asked if one.grammar is not None)

    @property
    def part_count(self) -> int:
        """The number of questions behind one row."""
        return 1 if self.way == "json" else len(self.asked)

    def parts(self, question: str) -> tuple[Part, ...]:
        """The questions behind one row; `question` is put in front of each of them."""
        before = f"{question.strip()} " if question.strip() else ""
        if self.way == "json":
            return (Part(f"{before}{self.instruction}".strip(), None, self.grammar),)
        return tuple(Part(f"{before}{one.question}", one.choices, one.grammar) for one in self.asked)

    def fill(self, said: Sequence[Said]) -> Filled:
        """What the answers make, one for each part. Raises `InvalidAnswer`."""
        if self.way == "json":
            return self._read(said[0])
        answers = iter(said)
        values: dict[str, Any] = {}
        probs: dict[str, dict[str, float]] = {}
        for one in self.fields:
            if one.reading == "constant":
                values[one.name] = one.values[0]
                continue
            answer = next(answers)
            values[one.name] = one.value(answer)
            found = one.probs(answer)
            if found is not None:
                probs[one.name] = found
        return self._filled(json.dumps(values, ensure_ascii=False, separators=(",", ":")), values, probs)

    def _read(self, said: Said) -> Filled:
        if said.finish_reason != "stop":
            raise InvalidAnswer(f"the JSON {_CUT}")
        try:
            value = read_json(said.text)
        except ValueError as error:
            raise InvalidAnswer(f"the JSON {error}") from None
        return self._filled(said.text, value, {})

    def _filled(self, text: str, value: Any, probs: dict[str, dict[str, float]]) -> Filled:
        fields = None if self.columns.types is None else as_type(value, self.columns.types)
        return Filled(text, {"fields": fields, "field_probs": probs or None})

    def told(self, said: Sequence[Said]) -> str:
        """What was said, for a row that it makes no JSON for."""
        if self.way == "json":
            return said[0].text
        return "\n".join(f"{one.name}: {answer.text}" for one, answer in zip(self.asked, said, strict=True))


def name_of(value: Any) -> str:
    """A value as its probability is called: as JSON has it, but for the quotation marks of texts."""
    return value if isinstance(value, str) else json.dumps(value)


def read_json(text: str) -> Any:
    """What an answer in JSON holds. Raises `ValueError` whose text goes on from what the answer is."""

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError("holds a number that is too large")
        return value

    def integer(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise ValueError("holds a number that is too large")
        return int(digits)

    def constant(word: str) -> float:
        raise ValueError(f"holds {word}, which JSON has no form of")

    try:
        value = json.loads(text, parse_float=number, parse_int=integer, parse_constant=constant)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise ValueError("is no whole JSON") from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a character") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None
    return value
