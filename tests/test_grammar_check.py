"""Grammars that llguidance refuses, and those that would take the process down with them: words, in time."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from grammar_oracle import schema

from llava_mini_cli import needs, trial_process
from llava_mini_cli.config import Grammar
from llava_mini_cli.engine import grammar_check
from llava_mini_cli.engine.grammar_check import refusals, refused_by, source
from llava_mini_cli.errors import LlavaMiniError, UsageError


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "_known", {})


def chain(length: int) -> dict[str, Any]:
    """A schema that is a reference to a reference, and so on."""
    steps = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(length)}
    return {"$defs": {**steps, f"d{length}": {"type": "string"}}, "$ref": "#/$defs/d0"}


ENDLESS = schema({"allOf": [{"type": "string", "pattern": f"a{number}"} for number in range(3000)]})
OVERFLOWING = schema(chain(15_000))
WIDE = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(600)}}
REFUSED = {
    "not supported": (schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
    "told to pass over it": (
        schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}),
        'Unimplemented keys: ["uniqueItems"]',
    ),
    "on several lines": (
        schema({"type": "string", "pattern": "a(b"}),
        "regex parse error: a(b ^ error: unclosed group",
    ),
    "never true": (
        schema({"type": "integer", "minimum": 3, "maximum": 2}),
        "Unsatisfiable schema: minimum (3) is greater than maximum (2)",
    ),
    "a reference to itself": (schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), "NoExtensionBias"),
    "another's file": (schema({"$ref": "http://localhost:9/x"}), "Resource 'http://localhost:9/x' is not present"),
    "too many at once": (schema(WIDE), "Parser Error: Current row has"),
    "no object": (Grammar("json_schema", "[1]"), "Expecting object schema"),
    "no JSON": (Grammar("json_schema", "{"), "EOF while parsing"),
    "half of a character": (Grammar("json_schema", '{"const": "\ud800"}'), "Value is not JSON serializable"),
    "half of a letter": (Grammar("regex", "\ud800"), "'utf-8' codec can't encode"),
    "an expression": (Grammar("regex", "a(?=b)"), 'at 1(8): invalid regex "a(?=b)"'),
    "two halves": (Grammar("regex", "a)|(b"), 'at 1(8): invalid regex "a)|(b"'),
    "as deep as the stack": (OVERFLOWING, "it is too deep or too large for llguidance"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_with_words(name: str) -> None:
    grammar, words = REFUSED[name]
    found = refused_by(grammar)
    assert found is not None
    assert found.startswith(words)
    assert "\n" not in found
    assert len(found) <= 310


@pytest.mark.parametrize(
    "grammar",
    [
        schema({"type": "object", "properties": {"a": {"type": "string"}}}),
        schema({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        schema({"type": "string", "format": "date-time"}),
        schema(chain(20)),
        schema({"enum": [f"value {number}" for number in range(5000)]}),
        Grammar("regex", "-?[0-9]{1,15}(\\.[0-9]{1,6})?"),
        Grammar("regex", ""),
    ],
)
def test_what_is_taken_has_no_words(grammar: Grammar) -> None:
    assert refused_by(grammar) is None


def test_grammars_behind_one_that_ends_the_process_are_tried_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = grammar_check._run  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(grammar_check, "_run", lambda sources: (runs.append(len(sources)), run(sources))[1])
    good, bad = Grammar("regex", "a"), Grammar("regex", "(")
    broken = Grammar("json_schema", "{")
    found = refusals([good, OVERFLOWING, bad, broken, good, Grammar("regex", "b")])
    assert [words and words[:12] for words in found] == [
        None,
        "it is too de",
        "at 1(8): inv",
        "EOF while pa",
        None,
        None,
    ]
    assert runs == [3, 1, 1]
    assert refused_by(bad) == found[2]
    assert refusals([]) == []
    assert len(runs) == 3  # what is known is not tried again


def test_a_grammar_that_is_never_compiled_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "TRIAL_SECONDS", 3.0)
    begun = time.monotonic()
    assert refusals([Grammar("regex", "a"), ENDLESS]) == [None, "llguidance takes too long over it"]
    assert time.monotonic() - begun < 30


def test_the_process_bounds_itself() -> None:
    """What it may use is less than it has, so that it ends before others have to."""
    code = (
        "import resource; from llava_mini_cli.trial_process import bound\n"
        "bound(1); print(resource.getrlimit(resource.RLIMIT_AS)[0], flush=True)\n"
        "while True: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == str(trial_process.MEMORY_BYTES)
    assert done.returncode == -24  # SIGXCPU


def test_processor_time_that_is_used_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], -24, b'""\n', b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert refusals([Grammar("regex", "a"), Grammar("regex", "b")]) == [None, "llguidance takes too long over it"]


def test_no_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", none)
    with pytest.raises(LlavaMiniError, match=r"no process to try the schema in: .*temporarily unavailable"):
        refused_by(Grammar("regex", "a"))


def test_without_llguidance_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "is_installed", lambda name: name != "llguidance")
    with pytest.raises(UsageError, match=r"--schema needs llguidance: pip install 'llava-mini-cli\[schema\]'"):
        refused_by(Grammar("regex", "a"))


def test_what_is_known_is_forgotten_when_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "MOST_KNOWN", 2)
    every = [Grammar("regex", letter) for letter in "abc"]
    assert refusals(every) == [None] * 3
    assert len(grammar_check._known) <= 2  # pyright: ignore[reportPrivateUsage]
    assert refusals(every) == [None] * 3


def test_a_schema_cannot_ask_for_white_space() -> None:
    """llguidance reads options from the schema itself."""
    asked = {"type": "array", "x-guidance": {"whitespace_pattern": " {9}", "item_separator": ";", "lenient": True}}
    (body,) = json.loads(source(schema(asked)))["grammars"]
    options = body["json_schema"]["x-guidance"]
    assert (options["whitespace_flexible"], options["whitespace_pattern"]) == (False, None)
    assert (options["item_separator"], options["key_separator"], options["lenient"]) == (",", ":", False)
