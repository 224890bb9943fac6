"""Grammars that llguidance takes, told from those that it refuses. Needs no model and no torch."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from llava_mini_cli.config import Grammar
from llava_mini_cli.engine import grammar_trial
from llava_mini_cli.errors import LlavaMiniError, first_line
from llava_mini_cli.needs import SCHEMA
from llava_mini_cli.trial_process import run_trial

TRIAL_SECONDS = 60.0  # of a machine that does much else
MOST_KNOWN = 1024
_MOST_WORDS = 300  # characters of llguidance's words
_TOO_MUCH = "llguidance takes too long over it"
# What a schema's own `x-guidance` could ask for otherwise: JSON without white space, and nothing that is passed over.
_OPTIONS = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": None,
}
_NEWER = {"json_allow_general_unicode_escapes": False}  # llguidance 1.7 does not know it, nor could a schema ask for it
_known: dict[Grammar, str | None] = {}


def refused_by(grammar: Grammar) -> str | None:
    """Why llguidance refuses a grammar, as `refusals` has it; None where it takes it."""
    return refusals([grammar])[0]


def refusals(grammars: Iterable[Grammar]) -> list[str | None]:
    """Why llguidance refuses each of some grammars, in its words on one line; None for those that it takes.

    They are tried in a process with bounds on time and memory, and what came of it is remembered.

    Raises:
        UsageError: llguidance is not installed, or cannot be imported.
        LlavaMiniError: there is no process to try them in.
    """
    asked = list(grammars)
    llguidance()
    left = list(dict.fromkeys(one for one in asked if one not in _known))
    found = {one: _known[one] for one in asked if one in _known}
    while left:
        tried = _tried(left[:MOST_KNOWN])
        found |= zip(left, tried, strict=False)
        left = left[len(tried) :]
    if len(_known) + len(found) > MOST_KNOWN:
        _known.clear()
    _known.update(list(found.items())[:MOST_KNOWN])
    return [found[one] for one in asked]


def llguidance() -> Any:
    """The library. Raises `UsageError` where it is not installed, or cannot be imported."""
    return SCHEMA.load("--schema", "llguidance")


def source(grammar: Grammar, gap: str = "") -> str:
    """A grammar as llguidance reads it, with `gap` in front of every text.

    Raises:
        ValueError: a schema that is no object of JSON, or is nested too deep.
    """
    matcher = llguidance().LLMatcher
    if grammar.kind == "regex":
        whole = matcher.grammar_from_regex(grammar.text)
    else:
        whole = matcher.grammar_from_json_schema(grammar.text, overrides=_options())
    if not gap:
        return whole
    body = json.loads(whole)["grammars"][0]
    first = {"lark_grammar": f"start: {json.dumps(gap)} @body"}
    return json.dumps({"grammars": [first, {**body, "name": "body"}]})


@cache
def _options() -> dict[str, Any]:
    """What no schema may change, as far as this llguidance knows of it."""
    matcher = llguidance().LLMatcher
    refused = matcher.validate_grammar(matcher.grammar_from_json_schema("{}", overrides=_NEWER))
    return _OPTIONS if "unknown field" in refused else _OPTIONS | _NEWER


def one_line(words: str) -> str:
    """A library's words on one line of bounded length."""
    line = " ".join(words.split())
    return line if len(line) <= _MOST_WORDS else f"{line[:_MOST_WORDS]}..."


def _tried(grammars: list[Grammar]) -> list[str | None]:
    """What is known of the first of some grammars, of at least one: those behind one that ends the process are not."""
    sources = list[str]()
    for one in grammars:
        try:
            sources.append(source(one))
        except ValueError as error:
            if not sources:
                return [one_line(str(error))]
            break
    said, how = _run(sources)
    found = [one_line(words) or None for words in said]
    return found if len(found) == len(sources) else [*found, how]


def _run(sources: list[str]) -> tuple[list[str], str]:
    """What the process said of the first of some grammars, and of the next, if it did not come to the end."""
    try:
        trial = run_trial(grammar_trial.__file__, sources, TRIAL_SECONDS)
    except OSError as error:
        raise LlavaMiniError(f"no process to try the schema in: {first_line(error)}") from error
    return trial.said, _TOO_MUCH if trial.is_endless else "it is too deep or too large for llguidance"
