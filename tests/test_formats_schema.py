"""--schema without a model: the short form, JSON Schema within bounds, what is asked, and what answers make."""

import json
import re
import time
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.answer_schema import AnswerSchema, InvalidAnswer, Said
from llava_mini_cli.formats.column_types import ListOf, StructOf, as_type
from llava_mini_cli.formats.schema.bounded_schema import SINGLE_SPACES, bounded
from llava_mini_cli.formats.schema.number_patterns import decimals, integers
from llava_mini_cli.formats.schema.read_schema import answer_schema, read_schema
from llava_mini_cli.formats.schema.short_form import from_short_form

SHORT = "shape circle|square|cross, count int 0..20, dark bool, note str(80), plate str?, tags str[]"


def properties(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


def said(*texts: str) -> list[Said]:
    return [Said(text, "stop") for text in texts]


# The short form


def test_the_short_form_is_a_json_schema() -> None:
    assert from_short_form(SHORT) == {
        "type": "object",
        "properties": {
            "shape": {"type": "string", "enum": ["circle", "square", "cross"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 20},
            "dark": {"type": "boolean"},
            "note": {"type": "string", "minLength": 1, "maxLength": 80},
            "plate": {"type": ["string", "null"], "minLength": 1, "maxLength": 200},
            "tags": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 200}, "maxItems": 20},
        },
        "required": ["shape", "count", "dark", "note", "plate", "tags"],
        "additionalProperties": False,
    }
    jsonschema.Draft202012Validator.check_schema(from_short_form(SHORT))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name", {"type": "string", "minLength": 1, "maxLength": 200}),
        ("a\tint", {"type": "integer"}),
        ("a int 3..", {"type": "integer", "minimum": 3}),
        ("a int -5 .. -1", {"type": "integer", "minimum": -5, "maximum": -1}),
        ("a float ..0.5", {"type": "number", "maximum": 0.5}),
        ("a float", {"type": "number"}),
        ("a top left|top right?", {"enum": ["top left", "top right", None]}),
        ("a x|y[]?", {"type": ["array", "null"], "items": {"type": "string", "enum": ["x", "y"]}, "maxItems": 20}),
    ],
)
def test_types_of_the_short_form(text: str, expected: dict[str, Any]) -> None:
    assert from_short_form(text)["properties"].popitem()[1] == expected


def test_a_question_of_several_lines_goes_to_the_end_of_its_line() -> None:
    found = from_short_form("dark bool: Is it dark, or grey?\nn int 0..9,\nname: What is it called?")["properties"]
    assert [one.get("description") for one in found.values()] == ["Is it dark, or grey?", None, "What is it called?"]
    assert from_short_form("n int: How many?, b bool")["properties"]["n"]["description"] == "How many?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has no field"),
        ("a,,b", "a field is empty"),
        ("a, ", "a field is empty"),
        ("a string", "the field 'a': 'string' is no type; types are str, str(80)"),
        ("a str, a int", "the field 'a' is there twice"),
        ("a|b", "'a|b' is no name"),
        ("a x||y", "a label of 'x||y' is empty"),
        ("a x|y|x", "the label 'x' is there twice"),
        ("a int 1.5..2", "'1.5' is no integer"),
        ("a int 3..2", "'3..2' begins above its end"),
        ("a str(0)", "a text of 0 characters"),
        ("a \x1b[1m", r"'\x1b[1m' is no type"),
    ],
)
def test_what_the_short_form_does_not_take(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        answer_schema(text)


# What is asked


def test_a_flat_schema_is_asked_field_by_field() -> None:
    schema = answer_schema(SHORT)
    assert schema.way == "fields"
    asked = {field.name: part for field, part in zip(schema.asked, schema.parts("Look at the car. "), strict=True)}
    assert asked["shape"][:2] == (
        "Look at the car. Which shape: circle, square or cross?",
        ("circle", "square", "cross"),
    )
    assert asked["dark"].choices == ("yes", "no")
    assert asked["count"].text == "Look at the car. What is the count? Answer with a number."
    assert asked["plate"].text == "Look at the car. What is the plate? If there is none, say none."
    grammars = {name: part.grammar for name, part in asked.items()}
    assert grammars["shape"] is grammars["dark"] is None
    assert [grammar and grammar.kind for grammar in grammars.values()] == [
        None,
        "regex",
        None,
        "regex",
        "regex",
        "json_schema",
    ]
    count, plate = grammars["count"], grammars["plate"]
    assert count is not None
    assert plate is not None
    assert [text for text in ("0", "20", "7", "21", "-1", "007", "") if re.fullmatch(count.text, text)] == [
        "0",
        "20",
        "7",
    ]
    told = ("none", "B 7", "x" * 200, "x" * 201, " x", "x ", "", "a\nb")
    assert [text for text in told if re.fullmatch(plate.text, text)] == ["none", "B 7", "x" * 200]


def test_descriptions_are_the_questions() -> None:
    schema = answer_schema(
        properties(aB_c={"type": "boolean", "description": " Is it dark? "}, isOpen={"type": "boolean"})
    )
    assert [part.text for part in schema.parts("")] == ["Is it dark?", "Is Open: yes or no?"]


@pytest.mark.parametrize(
    "schema",
    [
        properties(a={"type": "object", "properties": {"b": {"type": "string"}}}),
        properties(a={"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
        properties(a={"type": "array"}),
        properties(a={}),
        properties(a=True),
        properties(a={"enum": [[1], "x"]}),
        properties(a={"$ref": "#"}),
        properties(a={"anyOf": [{"$ref": "#/properties/a"}, {"type": "string"}, {"type": "integer"}]}),
        properties(a={"type": "string"}) | {"minProperties": 1},
        properties(a={"type": "string"}) | {"required": ["b"]},
        properties(a={"const": 1}),
        {"type": "array", "items": {"type": "string"}},
        {},
    ],
)
def test_what_is_not_flat_is_asked_as_json(schema: dict[str, Any]) -> None:
    found = answer_schema(schema)
    assert (found.way, found.part_count, found.columns.labelled) == ("json", 1, ())
    assert [grammar.kind for _, grammar in found.grammars] == ["json_schema"]
    with pytest.raises(UsageError, match="leave --schema-by fields out, or give json"):
        answer_schema(schema, "fields")


def test_a_flat_schema_may_be_asked_as_json() -> None:
    schema = answer_schema(properties(a={"type": "string", "description": "the name"}, b={"type": "integer"}), "json")
    assert schema.parts("Look.")[0].text == "Look. Answer as JSON: a (the name), b."
    assert schema.digest != answer_schema(properties(a={"type": "string"}, b={"type": "integer"})).digest
    described = answer_schema(properties(a={"type": "string"}) | {"description": "Say it."}, "json")
    assert described.parts("")[0].text == "Say it."


def test_words_beside_a_reference_that_narrow_it_are_not_lost() -> None:
    small = {"$ref": "#/$defs/small"}
    root = {"$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 9}}}
    followed = answer_schema(properties(a={**small, "description": "How many?"}) | root)
    assert (followed.way, followed.parts("")[0].text) == ("fields", "How many?")
    assert answer_schema(properties(a={"anyOf": [small, {"type": "null"}]}) | root).asked[0].may_be_null
    narrowed = answer_schema(properties(a={**small, "minimum": -5}) | root)
    assert narrowed.way == "json"


def test_labels_that_other_words_narrow_are_held_to_them_all() -> None:
    (part,) = answer_schema(properties(a={"enum": ["x", "long"], "maxLength": 2})).parts("")
    assert part.choices is None
    assert part.grammar is not None
    assert json.loads(part.grammar.text) == {"enum": ["x", "long"], "maxLength": 2}


def test_a_list_of_what_is_defined_elsewhere() -> None:
    root = {"$defs": {"kind": {"enum": ["x", "y"]}}}
    tags = {"type": "array", "items": {"$ref": "#/$defs/kind"}}
    (part,) = answer_schema(properties(a=tags) | root).parts("")
    assert part.grammar is not None
    assert json.loads(part.grammar.text) == {**tags, "maxItems": 20, **root}
    beside = {"type": "array", "items": {"$ref": "#/properties/b"}}
    assert answer_schema(properties(a=beside, b={"type": "string"})).way == "json"


# What the answers make


def test_answers_make_json_that_the_schema_allows() -> None:
    schema = answer_schema(SHORT)
    probs = {"circle": 0.1, "square": 0.7, "cross": 0.2}
    answers = [
        Said("square", "stop", probs),
        Said("7", "stop"),
        Said("no", "stop", {"yes": 0.4, "no": 0.6}),
        Said("a  red\u00a0 \u2003car", "stop"),
        Said("None", "stop"),
        Said('["a", "b"]', "stop"),
    ]
    filled = schema.fill(answers)
    expected = {"shape": "square", "count": 7, "dark": False, "note": "a red car", "plate": None, "tags": ["a", "b"]}
    assert json.loads(filled.json) == expected
    assert filled.json == json.dumps(expected, separators=(",", ":"))
    assert filled.columns == {
        "fields": expected,
        "field_probs": {"shape": probs, "dark": {"true": 0.4, "false": 0.6}},
    }
    jsonschema.validate(json.loads(filled.json), from_short_form(SHORT))


@pytest.mark.parametrize(
    ("schema", "answer", "words"),
    [
        ("a str", Said("x", "length"), "the field 'a' was cut at --max-new-tokens, before it was whole"),
        ("a int", Said("1", "length"), "the field 'a' was cut"),
        ("a int", Said("", "stop"), "the field 'a' is no whole JSON"),
        ("a str[]", Said('["\\ud800"]', "stop"), "the field 'a' holds half of a character"),
        (properties(a={"type": "string", "minLength": 4}), Said("a   b", "stop"), "too short without its runs"),
        ({"type": "array"}, Said("[1", "length"), "the JSON was cut"),
        ({"type": "array"}, Said("[1e999]", "stop"), "the JSON holds a number that is too large"),
        ({"type": "array"}, Said("[" + "9" * 400 + "]", "stop"), "the JSON holds a number that is too large"),
        ({"type": "array"}, Said("[NaN]", "stop"), "the JSON holds NaN"),
        ({"type": "array"}, Said("[" * 100_000, "stop"), "the JSON is"),
    ],
)
def test_an_answer_that_is_no_value(schema: Any, answer: Said, words: str) -> None:
    found = answer_schema(schema)
    with pytest.raises(InvalidAnswer, match=re.escape(words)):
        found.fill([answer])
    assert answer.text in found.told([answer])


def test_constants_are_not_asked_and_null_is_a_label() -> None:
    schema = answer_schema(properties(v={"const": 2}, a={"enum": ["x", 1, None]}, b={"type": ["boolean", "null"]}))
    assert [part.choices for part in schema.parts("")] == [("x", "1", "none"), ("yes", "no", "none")]
    probs = [{"x": 0.1, "1": 0.2, "none": 0.7}, {"yes": 0.5, "no": 0.3, "none": 0.2}]
    filled = schema.fill([Said("1", "stop", probs[0]), Said("none", "stop", probs[1])])
    assert json.loads(filled.json) == {"v": 2, "a": 1, "b": None}
    assert filled.columns["field_probs"] == {
        "a": {"x": 0.1, "1": 0.2, "null": 0.7},
        "b": {"true": 0.5, "false": 0.3, "null": 0.2},
    }


def test_a_constant_is_the_one_of_its_values_that_counts() -> None:
    schema = answer_schema(properties(v={"enum": ["x", "y", "z"], "const": "y"}, a={"type": "boolean"}))
    assert [part.choices for part in schema.parts("")] == [("yes", "no")]
    assert schema.fill([Said("no", "stop", {"yes": 0.1, "no": 0.9})]).json == '{"v":"y","a":false}'


def test_negative_zero_is_zero() -> None:
    assert answer_schema("a float -1..1").fill(said("-0.0")).json == '{"a":0.0}'


# Columns


def test_the_types_of_columns() -> None:
    schema = properties(
        i={"type": "integer"}, n={"type": ["number", "null"]}, s={"type": "string"}, b={"type": "boolean"},
        e={"enum": [1, 2.5]}, m={"enum": [1, "x"]}, big={"type": "integer", "maximum": 2**63},
        l={"type": "array", "items": {"type": "integer"}}, any={},
        o={"type": "object", "properties": {"x": {"type": "string"}}},
    )  # fmt: skip
    types = answer_schema(schema).columns.types
    assert types == StructOf(
        (("i", "int64"), ("n", "float64"), ("s", "string"), ("b", "bool"), ("e", "float64"), ("m", "string"),
         ("big", "string"), ("l", ListOf("int64")), ("any", "string"), ("o", StructOf((("x", "string"),))))
    )  # fmt: skip
    value = {
        "i": 1.0,
        "n": None,
        "s": "x",
        "b": True,
        "e": 1,
        "m": 1,
        "big": 2**70,
        "l": [1, 2**63],
        "o": 5,
        "extra": 1,
    }
    assert as_type(value, types) == {
        "i": 1, "n": None, "s": "x", "b": True, "e": 1.0, "m": "1", "big": str(2**70), "l": [1, None], "o": None,
        "any": None,
    }  # fmt: skip
    assert as_type(1, "bool") is as_type(True, "int64") is as_type("1", "float64") is as_type(1.5, "int64") is None
    assert answer_schema({"type": "array"}).columns.names == ()
    assert answer_schema("a int").columns.names == ("fields",)
    assert answer_schema("a bool").columns.names == ("fields", "field_probs")


# Numbers


@given(st.integers(-3000, 3000), st.integers(0, 4000))
def test_patterns_of_integers(least: int, width: int) -> None:
    pattern = re.compile(integers(least, least + width))
    tried = {least - 1, least, least + width, least + width + 1, 0, 5, -5, 10, 99, 100, -10, 1000, -1000}
    assert [n for n in tried if pattern.fullmatch(str(n))] == [n for n in tried if least <= n <= least + width]
    assert not any(pattern.fullmatch(text) for text in ("00", "-0", "01", "", "-", "+1", "1.0"))


CENTS = st.integers(-3000, 3000).map(lambda number: Decimal(number) / 100)


@given(CENTS, CENTS, st.lists(CENTS, max_size=20), st.booleans())
def test_patterns_of_decimals(one: Decimal, other: Decimal, tried: list[Decimal], has_zeros: bool) -> None:
    least, most = sorted((one, other))
    pattern = re.compile(decimals(least, most))
    for number in (*tried, least, most, (least + most) / 2):
        text = f"{number:.6f}" if has_zeros else f"{number.normalize():f}"
        assert bool(pattern.fullmatch(text)) == (least <= number <= most), text


# Bounds


def test_what_a_bounded_schema_allows_the_schema_allows() -> None:
    schema = properties(
        a={"type": "string"}, b={"type": "array", "items": {"type": "string", "minLength": 300}},
        c={"type": "integer", "maximum": -2**60}, d={"enum": ["x  y"]}, j=True, g={"type": "string", "pattern": "^x+$"},
        e={"properties": {"f": {"type": "integer", "minimum": 3}}},
        h={"allOf": [{"type": "object", "properties": {"i": {"type": "string"}}}, {"type": "object"}]},
    ) | {"x-guidance": {"whitespace_flexible": True}, "title": "A car", "readOnly": True}  # fmt: skip
    before = json.dumps(schema)
    found = bounded(schema)
    assert json.dumps(schema) == before
    own = found["properties"]
    assert found.keys() == {"type", "properties", "additionalProperties"}
    assert found["additionalProperties"] is False
    assert own["a"] == {"type": "string", "maxLength": 200, "pattern": SINGLE_SPACES}
    assert own["b"]["maxItems"] == 20
    assert own["b"]["items"]["maxLength"] == 300
    assert (own["c"]["minimum"], own["c"]["maximum"]) == (-(2**60), -(2**60))
    assert (own["d"], own["g"], own["j"]) == ({"enum": ["x  y"]}, {"type": "string", "pattern": "^x+$"}, True)
    assert own["e"]["type"] == "object"
    assert own["e"]["additionalProperties"] is False
    assert own["e"]["properties"]["f"] == {"type": "integer", "minimum": 3, "maximum": 2**53 - 1}
    assert "additionalProperties" not in own["h"]["allOf"][0]
    accepted = [text for text in ("", "a", "a b", "a  b", " a", "a ", "a\tb") if re.fullmatch(SINGLE_SPACES, text)]
    assert accepted == ["", "a", "a b"]


# Strangers' schemas


def _deep(levels: int) -> str:
    return '{"items":' * levels + "{}" + "}" * levels


def _of(**fields: Any) -> str:
    return json.dumps(properties(**fields))


HOSTILE: dict[str, tuple[str, str]] = {
    "deep": (_deep(50_000), "it is nested deeper than 100 levels"),
    "just too deep": (_deep(101), "it is nested deeper than 100 levels"),
    "deep value": ('{"enum":[' + "[" * 200 + "]" * 200 + "]}", "it is nested deeper than 100 levels"),
    "many fields": (
        _of(**{f"f{n}": {"type": "boolean"} for n in range(2001)}),
        "it has 2,001 fields; at most 200",
    ),
    "many labels": (
        _of(a={"enum": [f"l{n}" for n in range(30_000)]}),
        "30,000 labels, which are more than 10,000",
    ),
    "large": ("{" + " " * (1 << 20) + "}", "it is larger than 1 MiB"),
    "branching": (
        _of(**{f"f{n}": {"$ref": "#"} for n in range(100)}),
        "are more than 2,000 columns",
    ),
    "twice": ('{"type":"object","type":"object"}', "'type' is there twice"),
    "no JSON": ('{"type":', "it is no JSON: Expecting value in line 1, column 9"),
    "digits": ('{"maximum":' + "9" * 5000 + "}", "it holds a number of too many digits"),
    "large number": ('{"maximum":1e400}', "the number 1e400 is too large"),
    "large bound": ('{"maximum":1e40}', "'maximum' must be a number of at most 30 digits"),
    "misspelt": (_of(a={"maxlength": 5}), "properties.a: 'maxlength' is no word of JSON Schema"),
    "wrong kind": ('{"properties":[]}', "'properties' must be an object of schemas"),
    "no schema": (_of(a=5), "properties.a: is no schema"),
    "old draft": ('{"exclusiveMinimum":true}', "'exclusiveMinimum' must be a number"),
    "empty name": (_of(**{" ": {}}), "' ' is no name of a field"),
    "control": (_of(**{"a\x1b[1m": {}}), r"'a\x1b[1m' is no name of a field"),
    "half a character": ('{"title":"\\ud800"}', "it is not valid Unicode"),
    "no values": (_of(a={"enum": []}), "'enum' must be a list of values"),
    "none of its type": (
        _of(a={"type": "integer", "enum": ["x"]}),
        "none of its values is of its type",
    ),
    "alike": (_of(a={"enum": ["1", 1]}), "two of its values are said alike, '1'"),
    "empty range": (
        _of(a={"type": "integer", "minimum": 5, "maximum": 4}),
        "no integer lies between",
    ),
    "long text": (_of(a={"type": "string", "minLength": 10**6}), "longer than an answer can be"),
    "true": ("[true]", "is no schema, which is an object"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_one_line_and_quick(name: str) -> None:
    text, words = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        read_schema(text)
    assert time.process_time() - began < 2
    line = str(caught.value)
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 400


def test_a_schema_is_read_from_a_file(tmp_path: Any) -> None:
    file = tmp_path / "car.json"
    file.write_text("\ufeff" + json.dumps(properties(a={"type": "boolean"})))
    assert read_schema(str(file)).digest == answer_schema(properties(a={"type": "boolean"})).digest
    (tmp_path / "car.txt").write_text("a bool: Is it dark, or grey?\nb bool\n")
    assert [field.name for field in read_schema(str(tmp_path / "car.txt")).fields] == ["a", "b"]
    (tmp_path / "bad.json").write_bytes(b"\xff{}")
    (tmp_path / "large.json").write_bytes(b" " * (1 << 20) + b"{}")
    for value, words in {
        str(tmp_path): "it is no file",
        f"{tmp_path}/gone.json": "there is no such file",
        f"{tmp_path}/bad.json": "it is not valid UTF-8",
        f"{tmp_path}/large.json": "it is larger than 1 MiB",
    }.items():
        with pytest.raises(UsageError, match=words):
            read_schema(value)


def test_every_field_of_a_schema_has_its_own_digest() -> None:
    digests = {answer_schema(text).digest for text in ("a int", "a str", "b int", "a int, b int", "a int: How?")}
    assert len(digests) == 5


def test_an_answer_schema_tells_its_parts() -> None:
    assert isinstance(answer_schema(SHORT), AnswerSchema)
    assert answer_schema(SHORT).part_count == 6
