"""Evidence on the command line, with the demo model and as a user runs it: rows of every format, archives, refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from archive_films import EDGE, picture, rows, run, write_film
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini
from evidence import brief_event
from output_rows import ROW
from PIL import Image

from llava_mini_cli.commands.terminal import _said
from llava_mini_cli.config import ModelOptions
from llava_mini_cli.demo import model_dir
from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import Scene, Thing
from llava_mini_cli.engine.load import load_engine

QUESTION = "What colour is the shape?"
ASK = (QUESTION, "-m", "demo", "-q", "--evidence")


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as stream:
            found: list[dict[str, Any]] = list(csv.DictReader(stream))
        return [row | {"evidence": json.loads(row["evidence"]) if row["evidence"] else None} for row in found]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pq.read_table(path).to_pylist()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows/"])
def test_every_format_holds_it_and_goes_on_where_it_stopped(films: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "none.mp4").write_text("no video")
    command = ("ask", films, tmp_path / "none.mp4", *ASK[:3], "--evidence", "2", "-o", f"{tmp_path}/{name}")
    assert run(*command, "--limit", "1").exit_code == 101
    assert run(*command).exit_code == 3
    assert "4 were there" in run(*command).stderr
    found = {row["file_name"]: row for row in read(tmp_path / name.rstrip("/"))}
    assert len(found) == 4
    failed = found.pop("none.mp4")
    assert [failed[column] or None for column in ("evidence", "p_answer", "p_blind")] == [None] * 3
    for film_name, row in found.items():
        parts = row["evidence"]
        assert len(parts) == 2
        assert [set(part) for part in parts] == [{"start", "end", "box", "weight"}] * 2
        assert [part["end"] - part["start"] for part in parts] == [1.0] * 2
        assert parts[0]["weight"] >= parts[1]["weight"]
        assert 0 < float(row["p_blind"]) < float(row["p_answer"]) <= 1, film_name
    again = run(*command[:-3], "3", "-o", f"{tmp_path}/{name}")
    assert (again.exit_code, "--evidence was 2, is 3" in again.stderr) == (2, True)
    none = run(*command[:-4], "-o", f"{tmp_path}/{name}")
    words = "other columns" if name == "rows.csv" else "--evidence was 2, is not set"
    assert (none.exit_code, words in none.stderr) == (2, True), none.stderr


def test_a_parquet_file_of_it_loads_in_datasets(films: Path, tmp_path: Path) -> None:
    from datasets import load_dataset  # type: ignore[import-untyped]

    assert run("ask", films, *ASK, "1", "-o", tmp_path / "a.parquet").exit_code == 0
    loaded: Any = load_dataset("parquet", data_files=f"{tmp_path}/a.parquet", cache_dir=f"{tmp_path}/cache")
    assert [len(row["evidence"]) for row in loaded["train"]] == [1, 1, 1]


def test_the_span_that_shows_the_thing_carries_the_answer(tmp_path: Path) -> None:
    """A red circle in one second of twelve, beside a square that stays."""
    square, circle = Thing("square", "blue", "large", 0.2, 0.2), Thing("circle", "red", "large", 0.7, 0.6)
    look = random_look(np.random.default_rng(1), "black")
    quiet, event = (
        render(Scene(things, "black"), look, EDGE, np.random.default_rng(1)) for things in ((square,), (square, circle))
    )
    write_film(tmp_path / "a.mp4", [*[quiet] * 8, event, *[quiet] * 3])
    command = ("ask", tmp_path / "a.mp4", "What appears briefly?", "-m", "demo", "-q", "--evidence", "12")
    (row,) = rows(run(*command))
    assert row["text"].startswith("red ")
    first, *others = row["evidence"]
    assert (first["start"], first["end"], len(others)) == (8.0, 9.0, 11)
    assert first["weight"] > 3 * max(abs(part["weight"]) for part in others)
    found = rows(run(*command, "--every", "6s", "--whole", "--evidence-spans", "4s"))
    spans = {row["segment"]: sorted((part["start"], part["end"]) for part in row["evidence"]) for row in found}
    assert spans == {
        None: [(0.0, 4.0), (4.0, 8.0), (8.0, 12.0)],
        1: [(0.0, 4.0), (4.0, 6.0)],
        2: [(6.0, 10.0), (10.0, 12.0)],
    }


def test_the_block_that_shows_the_thing_carries_the_answer(tmp_path: Path) -> None:
    pixels = picture("red circle")
    canvas = Image.new("RGB", (EDGE, EDGE), tuple(int(value) for value in pixels[2, 2]))
    small = Image.fromarray(pixels).crop((EDGE // 3, EDGE // 3, 2 * EDGE // 3, 2 * EDGE // 3))
    canvas.paste(small, (2 * EDGE // 3, 0))
    canvas.save(tmp_path / "a.png")
    (row,) = rows(run("ask", tmp_path / "a.png", *ASK, "9"))
    first, *others = row["evidence"]
    assert (row["text"], len(others)) == ("red", 8)
    assert first == {"start": None, "end": None, "box": [128, 0, 192, 64], "weight": first["weight"]}
    assert first["weight"] > max(part["weight"] for part in others)


def test_an_archive_gives_what_the_files_give(films: Path, archive: Path) -> None:
    expected = rows(run("ask", films, *ASK, "3", "--evidence-spans", "2s"))
    found = rows(run("ask", "--index", archive, QUESTION, "-q", "--evidence", "3", "--evidence-spans", "2s"))
    by_name = {row["file_name"]: row for row in found}
    assert len(by_name) == len(expected) == 3
    for row in expected:
        same = by_name[row["file_name"]]
        assert [part["start"] for part in same["evidence"]] == [part["start"] for part in row["evidence"]]
        assert same["p_blind"] == pytest.approx(row["p_blind"], rel=1e-3)


def test_the_demo_model_names_the_span_of_a_brief_event() -> None:
    """A few of the videos of benchmarks/evidence.py."""
    engine = load_engine(ModelOptions(str(model_dir()), device="cpu"))
    assert sum(brief_event(engine, 50_000 + number, 64).first for number in range(6)) >= 5


# Without a model


engines = pytest.fixture(echo_engines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--evidence", "0"], "--evidence must be from 1 to 256, not 0"),
        (["--evidence", "257"], "--evidence must be from 1 to 256, not 257"),
        (["--evidence", "some"], "Input should be a valid integer"),
        (["--evidence-spans", "2s"], "--evidence-spans goes with --evidence K"),
        (["--evidence-spans", "scenes"], "--evidence-spans goes with --evidence K"),
        (["--evidence-spans", "8"], "--evidence-spans goes with --evidence K"),
        (["--evidence", "2", "--evidence-spans", "soon"], "--evidence-spans: 'soon' is no number of spans such as 16"),
        (["--evidence", "2", "--evidence-spans", ""], "--evidence-spans: '' is no number of spans such as 16"),
        (["--evidence", "2", "--evidence-spans", "0s"], "--evidence-spans must be at least 0.001 s long, not 0 s"),
        (["--evidence", "2", "--evidence-spans", "0"], "--evidence-spans must be from 1 to 256 spans, not 0"),
        (["--evidence", "2", "--evidence-spans", "257"], "--evidence-spans must be from 1 to 256 spans, not 257"),
        (["--evidence", "2", "-f", "txt"], "--evidence has no place in --format txt, which holds answers alone"),
        (["--evidence", "2", "-f", "srt", "--every", "2s"], "--evidence has no place in --format srt"),
        (["--evidence", "2", "--scenes"], "--evidence-spans scenes leaves out whole scenes"),
        (["--evidence", "2", "--scenes", "--evidence-spans", "2s"], "--evidence-spans scenes leaves out whole scenes"),
        (["--evidence", "2", "--min-scene-len", "3s"], "--min-scene-len goes with --scenes or --evidence-spans scenes"),
        (
            ["--evidence", "2", "--evidence-spans", "scenes", "--end-column", "to"],
            "--evidence-spans scenes looks at all of a video, and --end-column at stretches alone",
        ),
        (["--scene-threshold", "3"], "--scene-threshold goes with --scenes or --evidence-spans scenes"),
        (["--evidence", "2", "--schema", "dark bool"], "--evidence is about one answer, and --schema asks for several"),
    ],
)
def test_what_cannot_be_done_is_one_line(engines: list[EchoEngine], arguments: list[str], words: str) -> None:
    done = llava_mini("ask", "a.mp4", "What?", *arguments)
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_a_terminal_shows_it_in_lines() -> None:
    span = {"start": 61.5, "end": 70.0, "box": None, "weight": 2.345}
    block = {"start": None, "end": None, "box": [0, 1, 20, 30], "weight": -0.001}
    row = ROW.__class__(**{**vars(ROW), "text": "a cat", "choice_probs": None, "kept": {
        "evidence": [span, block], "p_answer": 0.987654, "p_blind": 1.5e-7,
    }})  # fmt: skip
    assert _said(row) == (
        "a cat\n  1:01.5-1:10: 2.35\n  box 0, 1, 20, 30: -0.00\n  likelihood 0.988, without the medium 1.5e-07"
    )
    assert (
        _said(ROW.__class__(**{**vars(row), "kept": {"evidence": None, "p_answer": None, "p_blind": None}})) == "a cat"
    )
