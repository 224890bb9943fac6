"""`llava-mini when` with a double of the engine: rows, resume, tracks, pictures, and what is refused in one line.

The double says yes to every frame but those at 0, 3, 6, ... seconds, and a medium has as many frames as its file says.
"""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_runs
import pyarrow.parquet as pq
import pytest
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini
from PIL import Image

from llava_mini_cli.commands.reporter import Reporter
from llava_mini_cli.commands.terminal import EventWriter
from llava_mini_cli.formats.outputs import parquet_parts
from llava_mini_cli.formats.outputs.companion import Companion
from llava_mini_cli.formats.row import COLUMNS, Row
from llava_mini_cli.pipelines import answer_when
from llava_mini_cli.pipelines.tally import Tally

engines = pytest.fixture(autouse=True)(echo_engines)


@pytest.fixture
def media() -> list[str]:
    """Videos with an event, none, two, and a fault of three kinds."""
    for name, text in {"b": "1", "c": "7", "d": "broken", "e": "unopenable"}.items():
        Path(f"{name}.mp4").write_text(text)
    return [f"{name}.mp4" for name in "abcde"]


def rows(path: str) -> list[dict[str, Any]]:
    if path.endswith(".parquet"):
        return pq.read_table(path).to_pylist()
    if path.endswith(".csv"):
        with Path(path).open(newline="") as stream:
            return list(csv.DictReader(stream))
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def said(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


# Rows

SPANS = [
    ("a.mp4", 1, 1.0, 3.0),
    ("b.mp4", None, None, None),
    ("c.mp4", 1, 1.0, 3.0),
    ("c.mp4", 2, 4.0, 6.0),
    ("d.mp4", None, None, None),
    ("e.mp4", None, None, None),
]


def test_each_event_is_a_row_and_so_is_that_there_is_none(media: list[str]) -> None:
    done = llava_mini("when", *media, "Is it?")
    assert done.exit_code == 3
    found = {(row["file_name"], row["segment"]): row for row in said(done.stdout)}
    assert sorted((*key, row["start"], row["end"]) for key, row in found.items() if key[1]) == [
        span for span in SPANS if span[1]
    ]
    assert list(found["a.mp4", 1]) == [*(column.name for column in COLUMNS), "p_mean", "p_peak", "peak_at"]
    first, none = found["a.mp4", 1], found["b.mp4", None]
    assert (first["text"], first["frame_count"], first["p_mean"], first["p_peak"], first["peak_at"]) == (
        "yes", 2, pytest.approx(0.9), pytest.approx(0.9), 1.0,
    )  # fmt: skip
    assert (none["text"], none["frame_count"], none["start"], none["end"]) == ("no", 1, None, None)
    assert (none["p_mean"], none["p_peak"], none["peak_at"]) == (pytest.approx(0.1), pytest.approx(0.1), 0.0)
    assert first["warning"] == "read 4 frames"
    errors = {name: found[name, None] for name in ("d.mp4", "e.mp4")}
    assert [(row["error_type"], row["text"], row["p_mean"]) for row in errors.values()] == [
        ("corrupt", None, None), ("no_video", None, None),
    ]  # fmt: skip
    assert "3 media" not in done.stderr
    assert "3 answers, 3 events, 2 failed" in done.stderr


@pytest.mark.parametrize("output", ["rows.jsonl", "rows.parquet", "rows.csv", "rows/"])
def test_the_same_command_again_has_nothing_to_do(media: list[str], output: str, engines: list[EchoEngine]) -> None:
    command = ("when", *media, "-p", "one=Is it?", "-p", "Or not?", "-o", output)
    assert llava_mini(*command).exit_code == 3
    before = rows(output) if not output.endswith("/") else pq.read_table(output).to_pylist()
    assert len(before) == 2 * len(SPANS)
    keys = [row["fingerprint"] for row in before]
    assert len(set(keys)) == len(keys)
    assert sum("-1of2" in key for key in keys) == sum("-2of2" in key for key in keys) == 2
    loaded = len(engines)
    again = llava_mini(*command, "--summary-json", "-")
    assert (again.exit_code, len(engines)) == (3, loaded)
    assert json.loads(again.stdout)["rows_skipped"] == 10
    after = rows(output) if not output.endswith("/") else pq.read_table(output).to_pylist()
    assert after == before
    plan = json.loads(llava_mini(*command, "--dry-run").stdout)
    assert (plan["rows"], plan["rows_done"]) == (0, 10)


@pytest.mark.parametrize("output", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_a_file_that_changed_and_one_that_failed_are_done_again(media: list[str], output: str) -> None:
    command = ("when", *media, "Is it?", "-o", output)
    llava_mini(*command)
    Path("c.mp4").write_text("4")  # two events before, one now
    Path("a.mp4").write_text("7")  # one before, two now
    Path("d.mp4").write_text("5")
    assert llava_mini(*command, "--retry-errors").exit_code == 3
    found = [(row["file_name"], str(row["segment"] or "")) for row in rows(output)]
    assert sorted(found) == [
        ("a.mp4", "1"), ("a.mp4", "2"), ("b.mp4", ""), ("c.mp4", "1"), ("d.mp4", "1"), ("d.mp4", "2"), ("e.mp4", ""),
    ]  # fmt: skip


def test_a_file_that_was_moved_is_known_again(engines: list[EchoEngine]) -> None:
    Path("in").mkdir()
    Path("in/c.mp4").write_text("7")
    llava_mini("when", "in", "Is it?", "-o", "rows.jsonl")
    Path("in").rename("other")
    again = llava_mini("when", "other", "Is it?", "-o", "rows.jsonl")
    assert "1 were there (1 known by content)" in again.stderr
    assert (len(engines), len(rows("rows.jsonl"))) == (1, 2)


def test_other_thresholds_are_other_work_and_are_refused() -> None:
    llava_mini("when", "a.mp4", "Is it?", "-o", "rows.jsonl")
    for option, words in (("--on=0.7", "--on was 0.6, is 0.7"), ("--window=4s", "--window was")):
        done = llava_mini("when", "a.mp4", "Is it?", "-o", "rows.jsonl", option)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
    done = llava_mini("ask", "a.mp4", "Is it?", "-o", "rows.jsonl")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_a_window_is_asked_about_as_a_whole(engines: list[EchoEngine]) -> None:
    Path("c.mp4").write_text("7")
    found = said(llava_mini("when", "c.mp4", "Is it?", "--window", "2s", "--stride", "1s").stdout)
    assert [(one.start, one.end) for one in engines[-1].requests[0].windows][:2] == [(0.0, 2.0), (1.0, 3.0)]
    # Windows from 1 and 2 s hold frames 1 to 3, and are about the frames at 1 and 2 s.
    assert [(row["start"], row["end"]) for row in found] == [(1.0, 3.0), (4.0, 7.0)]


def test_questions_of_tables_and_files(media: list[str]) -> None:
    Path("films.csv").write_text("video,ask,tag\na.mp4,Is it?,x\nb.mp4,Or not?,y\n")
    done = llava_mini("when", "films.csv", "--prompt-column", "ask", "--keep-columns", "tag")
    assert [(row["file_name"], row["prompt"], row["tag"]) for row in said(done.stdout)] == [
        ("a.mp4", "Is it?", "x"), ("b.mp4", "Or not?", "y"),
    ]  # fmt: skip
    Path("questions").write_text("one=Is it?\ntwo=Or not?\n")
    done = llava_mini("when", "a.mp4", "--prompt-file", "questions")
    assert [row["prompt_name"] for row in said(done.stdout)] == ["one", "two"]


def test_the_same_question_twice_has_its_rows_twice() -> None:
    Path("c.mp4").write_text("7")
    command = ("when", "c.mp4", "c.mp4", "Is it?", "-o", "rows.jsonl")
    for _ in range(2):
        assert llava_mini(*command).exit_code == 0
        assert sorted(row["segment"] for row in rows("rows.jsonl")) == [1, 1, 2, 2]
    assert len({row["fingerprint"] for row in rows("rows.jsonl")}) == 4


def test_a_row_that_was_cut_off_takes_its_answer_with_it() -> None:
    """A run that is killed in the middle of a write leaves the first rows of an answer."""
    Path("c.mp4").write_text("7")
    command = ("when", "a.mp4", "c.mp4", "Is it?", "-o", "rows.jsonl")
    llava_mini(*command)
    whole = rows("rows.jsonl")
    lines = Path("rows.jsonl").read_text().splitlines(keepends=True)
    for left in ("".join(lines[:2]), "".join(lines[:2]) + lines[2][:40], lines[0], lines[0][:7]):
        Path("rows.jsonl").write_text(left)
        assert llava_mini(*command).exit_code == 0
        timeless = [{key: value for key, value in row.items() if key != "created_at"} for row in rows("rows.jsonl")]
        assert timeless == [{key: value for key, value in row.items() if key != "created_at"} for row in whole]


# Very many


def test_too_many_windows_are_one_error_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_when, "MOST_SPANS", 5)
    monkeypatch.setattr(answer_when, "MOST_ASKED", 8)
    Path("c.mp4").write_text("6")
    for questions, many in ((["Is it?"], 6), (["-p", "Is it?", "-p", "Or not?"], 5)):
        Path("b.mp4").write_text(f"{many - 1}")
        Path("c.mp4").write_text(f"{many}")
        found = {row["file_name"]: row for row in said(llava_mini("when", "b.mp4", "c.mp4", *questions).stdout)}
        assert (found["b.mp4"]["status"], found["c.mp4"]["error_type"]) == ("ok", "too_many")
        assert found["c.mp4"]["error"] == f"it has {many} frames or windows; at most {many - 1} are asked about"


@pytest.mark.parametrize("track", ["track.parquet", "track.csv"])
def test_a_long_track_is_written_in_pieces(track: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_when, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(parquet_parts, "FLUSH_ROWS", 2)
    Path("c.mp4").write_text("7")
    command = ("when", "a.mp4", "c.mp4", "-p", "Is it?", "-p", "Or not?", "-o", "rows.jsonl", "--track", track)
    llava_mini(*command)
    before = rows(track)
    assert [row["file_name"] for row in before] == ["a.mp4"] * 8 + ["c.mp4"] * 14
    assert "4 were there" in llava_mini(*command).stderr
    assert rows(track) == before


# Tracks


@pytest.mark.parametrize("track", ["track.parquet", "track.jsonl", "track.csv"])
def test_a_track_keeps_every_probability(media: list[str], track: str) -> None:
    command = ("when", *media, "Is it?", "-o", "rows.jsonl", "--track", track)
    assert llava_mini(*command).exit_code == 3
    found = [row for row in rows(track) if row["file_name"] == "c.mp4"]
    assert [int(row["segment"]) for row in found] == list(range(1, 8))
    assert [float(row["time"]) for row in found] == [float(row["start"]) for row in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [round(float(row["p_yes"]), 3) for row in found] == [0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.1]
    assert sorted({(row["file_name"], row["error_type"]) for row in rows(track) if row["status"] == "error"}) == [
        ("d.mp4", "corrupt"), ("e.mp4", "no_video"),
    ]  # fmt: skip
    before = rows(track)
    assert llava_mini(*command).exit_code == 3
    assert rows(track) == before


def test_a_track_that_is_gone_is_made_again(media: list[str], engines: list[EchoEngine]) -> None:
    command = ("when", "a.mp4", "c.mp4", "Is it?", "-o", "rows.jsonl", "--track", "track.jsonl")
    llava_mini(*command)
    whole = Path("track.jsonl").read_text().splitlines(keepends=True)
    Path("track.jsonl").write_text("".join(whole[:6]))  # a whole one of a.mp4, and a part of another
    assert llava_mini(*command).exit_code == 0
    assert [Path(request.frames._clip.info.path).name for request in engines[-1].requests] == ["c.mp4"]  # type: ignore[attr-defined]
    assert [row["segment"] for row in rows("track.jsonl")] == [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7]
    assert [row["segment"] for row in rows("rows.jsonl")] == [1, 1, 2]
    Path("rows.jsonl").unlink()
    assert llava_mini(*command).exit_code == 0
    assert sorted(row["segment"] for row in rows("track.jsonl")) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7]


def test_rows_on_standard_output_have_a_track_of_their_own() -> None:
    for _ in range(2):
        assert len(said(llava_mini("when", "a.mp4", "Is it?", "--track", "track.jsonl").stdout)) == 1
        assert len(rows("track.jsonl")) == 4


@pytest.mark.parametrize("mark", ["rows.jsonl", "track.parquet"])
def test_another_run_holds_an_output(mark: str) -> None:
    command = ("when", "a.mp4", "Is it?", "-o", "rows.jsonl", "--track", "track.parquet")
    companion = Companion(Path(mark))
    try:
        done = llava_mini(*command)
    finally:
        companion.release()
    assert (done.exit_code, done.stderr.count("\n")) == (75, 1)


# Killed


@pytest.mark.parametrize(("output", "track"), [("rows.parquet", "track.jsonl"), ("srt", "track.parquet")])
def test_killed_at_file_operations_each_event_is_there_once(tmp_path: Path, output: str, track: str) -> None:
    work = tmp_path / "killed"
    (work / "media").mkdir(parents=True)
    for name, text in {"a": "4", "b": "1", "c": "7", "d": "broken"}.items():
        (work / "media" / f"{name}.mp4").write_text(text)
    to = ("-o", output) if "." in output else ("-f", output, "-o", output)
    command = ("when", "media", "Is it?", "-m", "echo", *to, "--track", track)
    operations, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        operations += 6
        code = killed_runs.run(work, *command, kill_at=operations)
        assert code in (-signal.SIGKILL, 3), (work.parent / "stderr").read_text()
        assert killed_runs.run(work, *command) == 3, (work.parent / "stderr").read_text()
        if output == "srt":
            counted = {path.name: path.read_text().count("-->") for path in (work / "srt").glob("*.srt")}
            assert counted == {"a.srt": 1, "b.srt": 0, "c.srt": 2}, operations
        else:
            found = sorted((row["file_name"], row["segment"] or 0) for row in rows(str(work / output)))
            there = [("a.mp4", 1), ("b.mp4", 0), ("c.mp4", 1), ("c.mp4", 2), ("d.mp4", 0)]
            assert found == there, operations
        tracks = [row["file_name"] for row in rows(str(work / track))]
        assert [tracks.count(f"{name}.mp4") for name in "abcd"] == [4, 1, 7, 1], operations
        for path in work.iterdir():
            if path.name != "media":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert operations > 9


# Plots


def test_a_plot_is_drawn_of_each_question_about_each_video(media: list[str]) -> None:
    done = llava_mini(
        "when", *media, "-p", "one=Is it?", "-p", "Costs it $5 or $6?", "-o", "rows.jsonl", "--plot", "plots"
    )
    assert done.exit_code == 3
    names = sorted(path.name for path in Path("plots").glob("*.png"))
    assert names == [f"{name}.{part}.png" for name in "abc" for part in ("2", "one")]
    with Image.open("plots/c.one.png") as picture:
        assert picture.size == (1200, 360)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert (202, 232, 202) in colours or any(g > r + 20 and g > b + 20 for r, g, b in colours)


def test_a_picture_of_somebody_else_is_not_drawn_over() -> None:
    Path("plots").mkdir()
    command = ("when", "a.mp4", "Is it?", "--plot", "plots")
    for stranger in (b"", b"mine" * 1000):
        Path("plots/a.png").write_bytes(stranger)
        done = llava_mini(*command)
        assert (done.exit_code, Path("plots/a.png").read_bytes()) == (1, stranger)
        assert "'plots/a.png' was not drawn by llava-mini; name another folder with --plot" in done.stderr
    Path("plots/a.png").unlink()
    for _ in range(2):
        assert llava_mini(*command).exit_code == 0
    assert Path("plots/a.png").read_bytes().startswith(b"\x89PNG")


# At a terminal


def test_a_person_reads_when(media: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    llava_mini("when", "c.mp4", "b.mp4", "d.mp4", "-p", "one=Is it?", "-p", "Or not?", "-o", "rows.jsonl")
    columns = {column.name for column in COLUMNS}
    answers: dict[tuple[str, str], list[Row]] = {}
    for row in rows("rows.jsonl"):
        kept = {name: value for name, value in row.items() if name not in columns}
        made = Row(**{name: value for name, value in row.items() if name in columns}, kept=kept)
        answers.setdefault((row["file_name"], row["prompt"]), []).append(made)
    with Reporter(Tally(), 3, quiet=True, verbose=False) as reporter:
        capsys.readouterr()
        several = EventWriter(reporter, 2, single=False)
        for answer in answers.values():
            several.write_answer(answer)
        assert capsys.readouterr().out.splitlines() == [
            "c.mp4",
            "  one",
            "    0:01-0:03 (yes: 0.90, 0.90 at most)",
            "    0:04-0:06 (yes: 0.90, 0.90 at most)",
            "  Or not?",
            "    0:01-0:03 (yes: 0.90, 0.90 at most)",
            "    0:04-0:06 (yes: 0.90, 0.90 at most)",
            "b.mp4",
            "  one",
            "    never (yes: 0.10 at most at 0:00)",
            "  Or not?",
            "    never (yes: 0.10 at most at 0:00)",
        ]
        single = EventWriter(reporter, 1, single=True)
        single.write_answer(answers["c.mp4", "Is it?"])
        picture = answers["b.mp4", "Is it?"][0]
        single.write_answer([replace(picture, segment=1, kept={"p_mean": 0.8, "p_peak": 0.8, "peak_at": None})])
        assert capsys.readouterr().out.splitlines() == [
            "0:01-0:03 (yes: 0.90, 0.90 at most)",
            "0:04-0:06 (yes: 0.90, 0.90 at most)",
            "yes (yes: 0.80)",
        ]


# What is refused

LINES = [
    ("--on 0", "--on must be above 0 and at most 1, not 0"),
    ("--on soon", "Invalid value for '--on': Input should be a valid number"),
    ("--off 0.7", "--off must be above 0 and at most --on (0.6), not 0.7"),
    ("--min-length soon", "'soon' is not a time"),
    ("--min-length=-1", "'-1' is not a time"),
    ("--merge soon", "'soon' is not a time"),
    ("--window soon", "--window must be a time or the word frame: 'soon' is not a time"),
    ("--window 0", "--window must be at least 0.001 s, not 0"),
    ("--stride soon --window 4s", "'soon' is not a time"),
    ("--stride 2s", "--stride goes with --window"),
    ("--window 200s --stride 1s", "at most 100"),
    ("-f txt", "'txt' is not one of"),
    ("-o metadata.jsonl", "-o 'metadata.jsonl': the metadata of a folder hold no events"),
    ("-o out.srt", "the suffix must be one of"),
    ("-f edl --edl-rate 0", "--edl-rate must be 1 to 1000, not 0"),
    ("-f edl --edl-rate nan", "--edl-rate must be 1 to 1000, not nan"),
    ("-f edl --existing append", "--existing append is for --format txt"),
    ("--existing overwrite", "--existing overwrite is for"),
    ("-f srt --overwrite", "--overwrite is not for --format srt: --existing overwrite"),
    ("-f srt -o -", "--format srt needs a file or a folder"),
    ("--track x.txt", "--track: 'x.txt': the suffix must be one of"),
    ("--track -", "--track '-' is no file"),
    ("--track=", "--track '' is no file"),
    ("--track tracks/", "--track 'tracks/' is no file"),
    ("--track .", "--track '.' is no file"),
    ("--track metadata.jsonl", "--track 'metadata.jsonl' is no file"),
    ("--track rows.jsonl -o rows.jsonl", "--track 'rows.jsonl' is the output, too"),
    ("--track films.jsonl", "--track 'films.jsonl' is among the inputs, too"),
    ("--track x.jsonl -o out/ --shard 1/2", "--track: shards cannot share one file"),
    ("--plot films.jsonl", "--plot 'films.jsonl' is no folder"),
    ("--plot=", "--plot '' is no folder"),
    ("--plot rows/ -o rows/", "--plot 'rows/' is the output, too"),
    ("--plot media/plots media", "--plot 'media/plots' lies in 'media', whose pictures are asked about"),
    ("--plot media media", "--plot 'media' lies in 'media', whose pictures are asked about"),
    ("--start-column from", "--start-column names stretches to ask about, and when finds them"),
    ("--end-column to", "--end-column names stretches to ask about, and when finds them"),
    ("--column nowhere", "nowhere"),
    ("--keep-columns p_peak", "--keep-columns: the rows have a column 'p_peak' of their own"),
    ("--index x", "--index takes no MEDIA"),
    ("--path x", "--path goes with --index ARCHIVE"),
    ("--prompt-file nowhere", "nowhere"),
    ("--prompt-file choices.jsonl", "when asks for yes or no; a question has no choices here"),
    ("--every 2s", "No such option: --every"),
    ("--yes-no", "No such option: --yes-no"),
]


@pytest.mark.parametrize(("options", "words"), LINES, ids=[options for options, _ in LINES])
def test_what_cannot_be_is_one_line(options: str, words: str, engines: list[EchoEngine]) -> None:
    Path("films.jsonl").write_text('{"video": "a.mp4", "p_peak": 1}\n')
    Path("choices.jsonl").write_text('{"prompt": "Which?", "choices": ["a", "b"]}\n')
    Path("media").mkdir()
    before = {path: path.is_dir() or path.read_text() for path in Path().rglob("*")}
    question = [] if "--prompt-file" in options else ["-p", "Is it?"]
    done = llava_mini("when", "films.jsonl", *question, *options.split())
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert {path: path.is_dir() or path.read_text() for path in Path().rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "there is no question: llava-mini when MEDIA... QUESTION, or -p"),
        (["Is it?"], "there is no medium: llava-mini when MEDIA... QUESTION (got only 'Is it?')"),
        (["-p", "Is it?"], "there is no medium: llava-mini when MEDIA... QUESTION, or --files-from"),
        (["a.mp4"], "'a.mp4' is a file, not a question"),
    ],
)
def test_what_is_missing_is_one_line(arguments: list[str], words: str) -> None:
    done = llava_mini("when", *arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
