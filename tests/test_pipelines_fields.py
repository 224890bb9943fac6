"""Rows of a schema: the questions behind them, their answers put together, errors, spans, and the columns they have."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine, open_made_clip

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions, SpanOptions
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.formats.answer_schema import AnswerSchema
from llava_mini_cli.formats.job import Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.schema.read_schema import answer_schema
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.question_parts import Assembly, QuestionParts
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.settings import RunOptions

SCHEMA = answer_schema("shape circle|square: Which?, n int 0..20: How many?, note str?: What?")
OPTIONS = RunOptions(ModelOptions("double"), SamplingOptions(), GenerationOptions(), schema=SCHEMA)


class HeldEngine(EchoEngine):
    """Says what it was told to where an answer is held to a grammar: by a word of the question, with how it ended."""

    def __init__(self, said: Mapping[str, tuple[str, Any]]) -> None:
        super().__init__(ModelOptions("double"))
        self.said = said

    def _answer(self, request: Request, index: int, number: int, times: Sequence[float]) -> Answer | Failure:
        found = super()._answer(request, index, number, times)
        word = next((word for word in self.said if word in request.prompts[index]), None)
        if request.grammar_of(index) is None or isinstance(found, Failure) or word is None:
            return found
        text, reason = self.said[word]
        return replace(found, text=text, finish_reason=reason)

    def step(self) -> list[Answer | Failure]:
        """The answers in another order than they were asked for."""
        return super().step()[::-1]


SAID: dict[str, tuple[str, Any]] = {"How many?": ("7", "stop"), "What?": ("none", "stop")}


def job_about(folder: Path, *prompts: str, frames: str = "4", **of: Any) -> Job:
    (folder / "v.mp4").write_text(frames)
    path = str(folder / "v.mp4")
    return Job(path, "v.mp4", tuple(Question(Prompt(text), path) for text in prompts), **of)


def rows_of(job: Job, engine: EchoEngine, options: RunOptions = OPTIONS) -> list[Row]:
    return list(answer([job], engine, options, RunParts(open_made_clip)))


def test_a_row_is_made_of_the_answers_to_its_fields(tmp_path: Path) -> None:
    engine = HeldEngine(SAID)
    options = replace(OPTIONS, prefix="<", suffix=">")
    rows = rows_of(job_about(tmp_path, "", "The left one:"), engine, options)
    (request,) = engine.requests
    assert request.prompts == (
        "Which?", "How many?", "What?", "The left one: Which?", "The left one: How many?", "The left one: What?",
    )  # fmt: skip
    assert request.choices == (("circle", "square"), None, None) * 2
    assert [grammar and grammar.kind for grammar in request.grammars] == [None, "regex", "regex"] * 2
    assert sorted(row.prompt for row in rows) == ["", "The left one:"]
    fields = {"shape": "circle", "n": 7, "note": None}
    for row in rows:
        assert (row.json, row.text) == (json.dumps(fields, separators=(",", ":")), f"<{row.json}>")
        assert row.more == {"fields": fields, "field_probs": {"shape": {"circle": 0.5, "square": 0.5}}}
        assert (row.status, row.finish_reason, row.choice, row.choice_probs) == ("ok", "stop", None, None)
        assert (row.frame_count, row.vision_tokens, row.prompt_tokens, row.completion_tokens) == (4, 4, 15, 5)


def test_an_answer_that_is_not_completed_is_an_error_with_what_was_said(tmp_path: Path) -> None:
    (row,) = rows_of(job_about(tmp_path, ""), HeldEngine(SAID | {"What?": ("a red\n c", "length")}))
    assert (row.status, row.error_type, row.error_stage, row.json) == ("error", "invalid_json", "generate", None)
    assert row.text == "shape: circle\nn: 7\nnote: a red\n c"
    assert row.error is not None
    assert row.error.startswith("the field 'note' was ")
    assert (row.finish_reason, row.completion_tokens) == ("length", 5)
    assert row.more == {"fields": None, "field_probs": None}


def test_a_field_that_cannot_be_asked_fails_its_row_alone(tmp_path: Path) -> None:
    rows = rows_of(job_about(tmp_path, "", "This is too long:"), HeldEngine(SAID))
    assert {(row.prompt, row.error_type) for row in rows} == {("", None), ("This is too long:", "too_long")}
    assert len(rows) == 2
    broken = rows_of(job_about(tmp_path, "", "a:", frames="broken"), HeldEngine(SAID))
    assert [(row.error_type, dict(row.more)) for row in broken] == [
        ("corrupt", {"fields": None, "field_probs": None})
    ] * 2
    (gone,) = rows_of(job_about(tmp_path, "", frames="unopenable"), HeldEngine(SAID))
    assert (gone.error_type, dict(gone.more)) == ("no_video", {"fields": None, "field_probs": None})


def test_one_text_is_read_as_json(tmp_path: Path) -> None:
    schema = answer_schema({"type": "object", "properties": {"a": {"type": "object", "properties": {}}}})
    assert schema.way == "json"
    options = replace(OPTIONS, schema=schema)
    (row,) = rows_of(job_about(tmp_path, "Look."), HeldEngine({"Look.": ('{"a":{"b":1}}', "stop")}), options)
    assert (row.json, row.status) == ('{"a":{"b":1}}', "ok")
    assert row.more == {"fields": {"a": '{"b": 1}'}}
    (row,) = rows_of(job_about(tmp_path, "Look."), HeldEngine({"Look.": ('{"a":{"b":1', "length")}), options)
    assert (row.text, row.error_type) == ('{"a":{"b":1', "invalid_json")


def test_spans_have_a_row_each(tmp_path: Path) -> None:
    spans = replace(OPTIONS, spans=SpanOptions(every=2.0, whole=True))
    rows = rows_of(job_about(tmp_path, "", "b:", frames="6"), HeldEngine(SAID), spans)
    assert sorted((row.segment or 0, row.prompt) for row in rows) == [(n, p) for n in range(4) for p in ("", "b:")]
    assert {(row.json, row.status) for row in rows} == {('{"shape":"circle","n":7,"note":null}', "ok")}
    assert {row.frame_count for row in rows} == {2, 6}


def test_rows_of_a_table_have_their_own_stretches(tmp_path: Path) -> None:
    job = job_about(tmp_path, "", "b:", frames="6")
    stretches = (TimeSpan(1, 0.0, 2.0, ""), TimeSpan(1, 2.0, 6.0, ""))
    questions = tuple(one._replace(span=span) for one, span in zip(job.questions, stretches, strict=True))
    engine = HeldEngine(SAID)
    rows = rows_of(job._replace(questions=questions), engine)
    assert sorted((row.prompt, row.frame_count) for row in rows) == [("", 2), ("b:", 4)]
    assert [window.without for window in engine.requests[0].windows] == [frozenset({3, 4, 5}), frozenset({0, 1, 2})]


def test_parts_of_prompts() -> None:
    assert QuestionParts.of([Prompt("a"), Prompt("b")]).each == 1
    parts = QuestionParts.of([Prompt("a"), Prompt("b")], SCHEMA)
    assert (parts.each, len(parts.texts)) == (3, 6)
    labels = QuestionParts.of([Prompt("")], answer_schema("a x|y"))
    assert (labels.choices, labels.grammars) == ((("x", "y"),), ())
    assembly = Assembly(2)
    results = [Answer("k", index, str(index), (), "stop", 1, 1, 1, 1, window) for window in (0, 1) for index in (3, 2)]
    found = [assembly.take(one) for one in (results[0], results[2], results[1], results[3])]
    assert [one and (one[0], [part.text for part in one[1] if isinstance(part, Answer)]) for one in found] == [
        None, None, (1, ["2", "3"]), (1, ["2", "3"]),
    ]  # fmt: skip


def test_the_schema_is_a_setting_of_the_rows() -> None:
    def key(schema: AnswerSchema | None) -> tuple[object, ...]:
        return tuple(replace(OPTIONS, schema=schema).answer_settings().items())

    plain = key(None)
    assert "schema" not in dict(plain)
    others = [answer_schema("a x|y"), answer_schema("a x|z"), answer_schema("a x|y", "json"), SCHEMA]
    assert len({plain, *map(key, others)}) == 5
    assert key(answer_schema("a x|y")) == key(others[0])


# Outputs


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows"])
def test_every_format_has_the_columns(tmp_path: Path, name: str) -> None:
    good = job_about(tmp_path, "")
    rows = [*rows_of(good, HeldEngine(SAID)), *rows_of(good, HeldEngine({"How many?": ("7", "length")}))]
    where = OutputOptions.parse(output=f"{tmp_path}/{name}", format="parquet" if name == "rows" else None)
    with open_output(where, OPTIONS.run_info()) as output:
        for number, row in enumerate(rows):
            output.write(replace(row, fingerprint=f"{number}" * 32))
    probs = {"circle": 0.5, "square": 0.5}
    if name.endswith("jsonl"):
        records = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    elif name.endswith("csv"):
        with (tmp_path / name).open() as stream:
            records = list(csv.DictReader(stream))
        assert records[1]["fields"] == records[1]["field_probs"] == ""
        records = [{**records[0], **{key: json.loads(records[0][key]) for key in ("fields", "field_probs")}}]
    else:
        table = pq.read_table(tmp_path / name)
        assert str(table.schema.field("fields").type) == "struct<shape: string, n: int64, note: string>"
        records = table.to_pylist()
        assert records[1]["fields"] is records[1]["field_probs"] is None
        probs = [{"choice": choice, "probability": 0.5} for choice in probs]
    assert records[0]["fields"] == {"shape": "circle", "n": 7, "note": None}
    assert records[0]["field_probs"] == {"shape": probs}
    assert records[0]["json"] == '{"shape":"circle","n":7,"note":null}'


def test_readers_that_guess_types_get_those_that_every_row_shows(tmp_path: Path) -> None:
    job = job_about(tmp_path, "")
    (tmp_path / "metadata.jsonl").touch()
    where = OutputOptions.parse(output=f"{tmp_path}/metadata.jsonl", format="hf", overwrite=True)
    with open_output(where, OPTIONS.run_info()) as output:
        for number, row in enumerate(rows_of(job, HeldEngine(SAID))):
            output.write(replace(row, fingerprint=f"{number}" * 32))
    (record,) = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert json.loads(record["json"]) == {"shape": "circle", "n": 7, "note": None}
    assert "fields" not in record
    probs = [{"choice": "circle", "probability": 0.5}, {"choice": "square", "probability": 0.5}]
    assert record["field_probs"] == {"shape": probs}
