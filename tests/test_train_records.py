"""LLaVA's data format: what is accepted, and that every fault is named with file and record number."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_mini_cli import train
from llava_mini_cli.errors import UsageError
from llava_mini_cli.train.records import Turn, read_records, usable

ASKED = {"from": "human", "value": "<image>\nWhat is it?"}
SAID = {"from": "gpt", "value": "A square."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 24), "red").save(tmp_path / "a.png")
    (tmp_path / "broken.mp4").write_bytes(b"this is no video at all" * 40)
    return tmp_path


def write(folder: Path, records: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(records))
    return path


def record(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "image": "a.png", "conversations": [ASKED, SAID]} | changes


def test_good_records(folder: Path) -> None:
    later = [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    text_only = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
    found = read_records(write(folder, [record(), record(conversations=[ASKED, SAID, *later]), text_only]))
    assert not found.bad
    first, second, third = found.good
    assert first.turns == (Turn("What is it?", "A square."),)
    assert [turn.answer for turn in second.turns] == ["A square.", "Yes."]
    assert (third.kind, third.path) == (None, None)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(image="gone.png"), "gone.png: no such file"),
        ({"video": "broken.mp4", "conversations": [ASKED, SAID]}, "broken.mp4: "),
        (record(conversations=[ASKED]), "no answer"),
        (record(conversations=[]), "no conversations"),
        (record(conversations=[ASKED, SAID | {"value": " "}]), "empty answer"),
        (record(conversations=[ASKED, ASKED, SAID]), "take turns"),
        (record(conversations=[{"from": "dog", "value": "Woof"}, SAID]), "'from'"),
        (record(video="a.png"), "both"),
        (record(image=7), "not a path"),
        (record(image="A" * 300), "not a path"),
        (record(image="a\0.png"), "no such file"),
        ("text", "not a JSON object"),
    ],
)
def test_bad_records_are_named_and_can_be_skipped(folder: Path, bad: Any, reason: str) -> None:
    path = write(folder, [record(), bad, record()])
    found = read_records(path)
    assert [one.number for one in found.bad] == [2]
    assert reason in found.bad[0].reason
    with pytest.raises(UsageError, match=r"data.json: record 2: .*--skip-bad"):
        usable(found, skip_bad=False, say=lambda _: None)
    said: list[str] = []
    assert len(usable(found, skip_bad=True, say=said.append)) == 2
    assert said[-1] == "skipped 1 of 3 records"


def test_a_json_error_is_named_by_record_and_line(folder: Path) -> None:
    path = folder / "data.json"
    path.write_text(f"[{json.dumps(record())},\n {json.dumps(record())},\n {{'id': 3}}]")
    with pytest.raises(UsageError, match=r"data\.json: record 3: not JSON at line 3, column 3"):
        read_records(path)


def test_one_bad_line_of_json_lines_is_one_bad_record(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_text(f"{json.dumps(record())}\n{{oops\n{json.dumps(record())}\n")
    found = read_records(path)
    assert [one.number for one in found.bad] == [2]
    assert "not JSON at column" in found.bad[0].reason


def test_lines_end_where_json_lines_do(folder: Path) -> None:
    """U+2028 and U+0085 may stand in a JSON text as they are, and end a line for `str.splitlines`."""
    said = {"from": "gpt", "value": "one\u2028two\u0085three"}
    path = folder / "data.jsonl"
    path.write_text("\r\n".join([json.dumps(record(conversations=[ASKED, said]), ensure_ascii=False)] * 2), "utf-8")
    found = read_records(path)
    assert (len(found.good), found.bad) == (2, ())
    assert found.good[0].turns[0].answer == said["value"]


def test_records_of_text_alone_are_bad_where_media_are_wanted(folder: Path) -> None:
    text_only = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
    found = read_records(write(folder, [text_only, record(), record(image="gone.png")])).with_media("text alone")
    assert [one.number for one in found.good] == [2]
    assert [(one.number, "text alone" in one.reason) for one in found.bad] == [(1, True), (3, False)]


def test_nothing_to_train_on(folder: Path) -> None:
    found = read_records(write(folder, [record(image="gone.png")]))
    with pytest.raises(UsageError, match="no record"):
        usable(found, skip_bad=True, say=lambda _: None)
    with pytest.raises(UsageError, match="no such file"):
        read_records(folder / "gone.json")
    with pytest.raises(UsageError, match="not a JSON array"):
        read_records(write(folder, {"a": 1}))


def test_what_trains_real_models_does_not_use_the_demos_recipe() -> None:
    files = sorted(Path(train.__file__).parent.glob("*.py"))
    assert len(files) >= 8
    for file in files:
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {f"{getattr(node, 'module', '')}.{name.name}" for node in nodes for name in node.names}
        assert not [name for name in names if "demo" in name], file.name
