"""Strangers' texts on their way to a terminal, CSV, text files and a web page: no control character is left."""

import csv
import html
import io
import json
import logging
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_mini_cli.commands import dry_run, search, show_config
from llava_mini_cli.commands.reporter import Reporter, shortened
from llava_mini_cli.commands.stderr import hush_libraries, say, say_trace, terminal_line
from llava_mini_cli.commands.summary import SummaryFile, say_failures
from llava_mini_cli.commands.terminal import BlockWriter, PlainWriter
from llava_mini_cli.formats.archive.moments import Moment, write_moments
from llava_mini_cli.formats.outputs.csv import CsvRecords
from llava_mini_cli.formats.outputs.jsonl import JsonLines
from llava_mini_cli.formats.row import KeptColumn, Row
from llava_mini_cli.formats.shown_text import for_json, for_terminal, safe_cell, without_controls
from llava_mini_cli.pipelines.forecast import Forecast
from llava_mini_cli.pipelines.tally import FailedMedium, Tally
from llava_mini_cli.view.media import file_url, link
from llava_mini_cli.view.moments_page import moments_page

EVIL = "\x1b]0;owned\x07 \x9b31m red \x7f [red]x[/red] \u202etxt.exe\u2066 \r over \x00 \x0c é 日本 👩\u200d🚀 \udc80"
ROW = Row(
    id="a", file_name="a", prompt="?", text="t", status="ok", model="m",
    fingerprint="0" * 32, created_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip
MOMENT = Moment(
    rank=1, score=0.5, path="/a", file_name="a", media="image", time=None, start=None, end=None, frames=1,
    duration_s=None, caption=None,
)  # fmt: skip
TEXTS = st.text(st.characters() | st.sampled_from("\x1b\x9b\r\n\t\x85\u202e\u2069\udc80=+-@'\"<>&"), max_size=60)
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_plain(text: str) -> bool:
    """True if nothing in a text does anything on a terminal but begin a line, go to the next tab, or show itself."""
    left = text.replace("\r\n", "\n").replace("\n", "").replace("\t", "")
    return not any(
        unicodedata.category(char) in ("Cc", "Cs") or unicodedata.bidirectional(char) in BIDI for char in left
    )


@given(TEXTS)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    assert is_plain(for_terminal(text))
    assert is_plain(terminal_line(text))
    assert "\n" not in terminal_line(text)
    assert for_terminal(for_terminal(text)) == for_terminal(text)
    if is_plain(text):
        assert for_terminal(text) == text


@given(TEXTS)
def test_json_says_the_same_without_control_characters(text: str) -> None:
    written = for_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert is_plain(written)
    assert json.loads(written) == {text: [text]}


@given(TEXTS)
def test_files_hold_no_control_characters_but_line_ends_and_tabs(text: str) -> None:
    written = without_controls(text)
    assert not [char for char in written if unicodedata.category(char) in ("Cc", "Cs") and char not in "\r\n\t"]
    if not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", text):
        assert written == text


def test_what_is_escaped_and_how() -> None:
    assert for_terminal("\x1b[31m \x9b \x7f \u202e \udc80") == r"\x1b[31m \x9b \x7f \u202e \udc80"
    assert for_terminal("a\rb\r\nc\td") == "a\\rb\r\nc\td"
    assert without_controls("a\rb\r\n\u202e\x1b") == "a\rb\r\n\u202e\\x1b"
    kept = "é 日本 👩\u200d🚀 می\u200cخواهم \u200f \xa0 \u2028"
    assert for_terminal(kept) == without_controls(kept) == for_json(kept) == kept


@pytest.mark.parametrize(
    ("text", "is_formula"),
    [
        ("=1+1", True), ("+cmd|' /C calc'!A0", True), ("-2+3", True), ("@SUM(A1)", True), ("\t=1", True), ("\tx", True),
        ("\r=1", True), ("\rx", True), ("\n=1", True), (" =1", True), ("\ufeff=1", True), ("\xa0-x", True),
        ("\uff1d1", True), ("\uff0b1", True), ("\uff0d1", True), ("\uff201", True), ("-", True), ("+1.5.2", True),
        ("-1.5", False), ("+2", False), ("-.5e-3", False), ("-3.", False), ("", False), ("a=1", False),
        ("'=1", False), ("1-2", False), ("\n x", False), ("-١", True),
    ],
)  # fmt: skip
def test_cells_that_are_formulas(text: str, is_formula: bool) -> None:
    assert safe_cell(text) == (f"'{text}" if is_formula else text)


def csv_fields(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


def test_csv_of_rows_is_safe_where_it_is_asked_for() -> None:
    kept = (KeptColumn("=name", "string"), KeptColumn("number", "double"))
    row = replace(ROW, text="=1+1\x1b", p_yes=-1.5, choice_probs={"\x9b": -0.5}, kept={"=name": "@x", "number": -2.5})
    for safe in (False, True):
        form = CsvRecords(kept, safe=safe)
        for again in (form, form.like(form.header)):
            header, fields = csv_fields(again.header + again.encode(row))
            found = dict(zip(header, fields, strict=True))
            front = "'" if safe else ""
            assert header[-2:] == [f"{front}=name", "number"]
            assert (found["text"], found["p_yes"]) == (f"{front}=1+1\\x1b", "-1.5")
            assert fields[-2:] == [f"{front}@x", "-2.5"]
            assert (json.loads(found["choice_probs"]), "\x9b" in found["choice_probs"]) == ({"\x9b": -0.5}, False)
            assert again.mark(again.encode(row)) == ("0" * 32, False)


def test_csv_of_moments_is_safe_where_it_is_asked_for(tmp_path: Path) -> None:
    moment = replace(MOMENT, score=-0.5, path="\x1b", caption="=1")
    for safe in (False, True):
        write_moments([moment], tmp_path / "a.csv", "csv", csv_safe=safe)
        _, fields = csv_fields((tmp_path / "a.csv").read_bytes())
        assert (fields[1], fields[2], fields[10]) == ("-0.5", "\\x1b", "'=1" if safe else "=1")


@given(TEXTS)
@settings(max_examples=50)
def test_whole_rows_as_lines_and_records(text: str) -> None:
    given_text = text.encode("utf-8", "replace").decode()  # rows are valid UTF-8
    row = replace(ROW, text=given_text, prompt=given_text, kept={"x": given_text})
    line = JsonLines().encode(row).decode()
    assert is_plain(line)
    assert json.loads(line)["text"] == given_text
    record = CsvRecords((KeptColumn("x", "string"),), safe=True).encode(row).decode()
    assert not [char for char in record if unicodedata.category(char) == "Cc" and char not in "\r\n\t"]


class _Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.flush()
        raw = self.buffer
        assert isinstance(raw, io.BytesIO)
        return raw.getvalue().decode()


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    """Standard output and standard error, on a terminal without colours, since those are control characters, too.

    No fixture, since pytest replaces both streams when a test begins.
    """
    shown = _Terminal()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, shown)
    return shown


def _answers(text: str, writer: Callable[[Reporter], PlainWriter | BlockWriter]) -> None:
    reporter = Reporter(Tally(), 1, quiet=True, verbose=False)
    writer(reporter).write(replace(ROW, id=text, text=text, prompt=text))


def _found(text: str, paths_only: bool) -> None:
    moment = replace(MOMENT, path=f"/{text}".replace("\0", ""), caption=text)
    flags = search.FoundFlags(paths_only=paths_only, null=paths_only)
    search._write([moment], flags, None, "jsonl")  # pyright: ignore[reportPrivateUsage]


def _failures(text: str) -> None:
    say_failures(Tally(media_failed=2, listed=[FailedMedium(text, "unreadable", text)] * 2))


def _config(text: str) -> None:
    origin = show_config.Origin(text, "file", text)
    show_config._show([("x", ("ask",), origin)])  # pyright: ignore[reportPrivateUsage]


def _summary(text: str) -> None:
    SummaryFile("-").write({"path": text})


def _forecast(text: str) -> None:
    found = Forecast()
    found.unreadable[text] += 1
    dry_run._show_table(found)  # pyright: ignore[reportPrivateUsage]


ROADS: dict[str, Callable[[str], None]] = {
    "one answer": lambda text: _answers(text, PlainWriter),
    "answers": lambda text: _answers(text, lambda reporter: BlockWriter(reporter, 2)),
    "moments": lambda text: _found(text, False),
    "paths": lambda text: _found(text, True),
    "failures": _failures,
    "config": _config,
    "summary": _summary,
    "dry run": _forecast,
    "message": say,
    "bar": lambda text: say(shortened(text)),
    "trace": lambda text: say_trace(ValueError(text)),
}


@pytest.mark.parametrize("road", ROADS)
def test_no_road_to_a_terminal_takes_control_characters(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    ROADS[road](EVIL)
    shown = terminal.shown().replace("\0", "" if road == "paths" else "\0")  # -0 asks for it
    assert is_plain(shown), shown
    assert "x1b" in shown.lower() or "u001b" in shown.lower() or road == "bar"
    assert "[red]x[/red]" in shown or road == "bar"  # no markup


def test_what_libraries_log_is_plain() -> None:
    factory = logging.getLogRecordFactory()
    try:
        hush_libraries(verbose=True)
        record = logging.getLogRecordFactory()("x", logging.WARNING, "x", 1, "file %s", ("\x1b[31m",), None)
    finally:
        logging.setLogRecordFactory(factory)
    assert record.getMessage() == "file \\x1b[31m"


def test_paths_that_go_to_a_program_are_as_they_are(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    _found("\x1b é", True)
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == "/\x1b é\0".encode()


def test_a_fault_of_ours_is_shown_plainly_with_v(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from llava_mini_cli import __main__\n"
        "def fail(): raise LookupError('\\x1b[31m')\n"
        "__main__.app = fail\n"
        "__main__.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("LookupError: \\x1b[31m\n")


class _Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def links(self) -> list[str | None]:
        return [attributes["href"] for tag, attributes in self.tags if tag == "a"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("javascript://%0aalert(1)", None), ("JavaScript://x", None), ("data://text/html,x", None), (" http://x", None),
        ("vbscript://x", None), ("s3://bucket/a.jpg", None), ("java\nscript://x", None), ("blob://x", None),
        ("javascript:alert(1)", None), ("data:text/html,x", None), ("/a", None),
        ('http://x/"onclick="y', "http://x/%22onclick=%22y"), ("HTTPS://x/a?b=c&d=%20#e", "HTTPS://x/a?b=c&d=%20#e"),
    ],
)  # fmt: skip
def test_links_are_made_for_the_web_alone(path: str, expected: str | None) -> None:
    assert link(path) == expected
    text = moments_page([replace(MOMENT, path=path, file_name='<b>"x"</b>')], [b"x"], "q").decode()
    row = json.loads(text.split("llavaMini.chunk(0, [\n")[1].splitlines()[0])
    assert row.get("link") == expected
    assert "source" not in row  # no file has such a name
    assert not any(name.startswith("on") for _, attributes in _Page(text).tags for name in attributes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("javascript:alert(1)", "file:///here/javascript%3Aalert%281%29"),
        ("/a \"b\" onclick='x'.jpg", "file:///a%20%22b%22%20onclick%3D%27x%27.jpg"),
        ("/\udc80#t=1", "file:///%80%23t%3D1"),
    ],
)
def test_the_address_of_a_file_is_that_of_a_file_whatever_its_name(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/here")
    assert file_url(Path(name)) == expected


@given(TEXTS, TEXTS)
@settings(max_examples=50)
def test_a_page_holds_no_tag_of_a_stranger(text: str, path: str) -> None:
    moment = replace(MOMENT, path=path.replace("\0", ""), file_name=text, caption=text, start=1.0, end=2.0, time=1.5)
    usual = _Page(moments_page([replace(moment, path="/a", file_name="a", caption="b")], [None], "q").decode())
    written = moments_page([moment], [None], text).decode()
    shown = _Page(written)
    assert is_plain(written)
    assert [tag for tag, _ in shown.tags] == [tag for tag, _ in usual.tags]
    assert [one for one in shown.tags if one[0] == "link"] == [one for one in usual.tags if one[0] == "link"]
    encoded = for_terminal(text).encode("utf-8", "replace").decode().replace("\r\n", "\n")
    assert html.unescape(encoded).strip() in shown.text.replace("\r\n", "\n") or "&" in text


def test_no_script_but_our_own_may_run_in_a_page() -> None:
    shown = _Page(moments_page([MOMENT], [None], "q").decode())
    metas: list[dict[str, Any]] = [attributes for tag, attributes in shown.tags if tag == "meta"]
    (policy,) = [meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert len(rules["script-src"].split()) == sum(tag == "script" for tag, _ in shown.tags) == 4
    assert all(one.startswith("'sha256-") for one in (rules["script-src"] + " " + rules["style-src"]).split())
    assert "connect-src" not in rules
    assert "http" not in policy
