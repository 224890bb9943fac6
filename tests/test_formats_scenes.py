"""Lists of scenes as PySceneDetect writes them: what is read, what is refused, and the rows that they make."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from archive_films import rows, run
from cli_doubles import EchoEngine
from configured_cli import echo_engines, llava_mini

from llava_mini_cli.config import SpanOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.inputs import scenes
from llava_mini_cli.formats.inputs.read import Inputs
from llava_mini_cli.formats.inputs.scenes import read_scenes, with_scenes
from llava_mini_cli.formats.job import Job, Prompt, Question, TimeSpan

HEADER = (
    "Scene Number,Start Frame,Start Timecode,Start Time (seconds),End Frame,End Timecode,End Time (seconds),"
    "Length (frames),Length (timecode),Length (seconds)\n"
)
CUTS = "Timecode List:,00:00:02.000,00:00:03.000\n"


def line(number: int, start: float, end: float) -> str:
    return f"{number},1,00:00:00.000,{start:.3f},60,00:00:02.000,{end:.3f},60,00:00:02.000,{end - start:.3f}\n"


def listed(path: Path, *spans: tuple[float, float], cuts: bool = True) -> Path:
    made = "".join(line(number, *span) for number, span in enumerate(spans, start=1))
    path.write_text(f"{CUTS if cuts else ''}{HEADER}{made}")
    return path


@pytest.mark.parametrize("cuts", [True, False])
def test_scenes_are_read_with_and_without_the_line_of_cuts(tmp_path: Path, cuts: bool) -> None:
    path = listed(tmp_path / "a.csv", (2, 3.5), (0, 2), cuts=cuts)
    assert read_scenes(path) == (TimeSpan(1, 0.0, 2.0, ""), TimeSpan(2, 2.0, 3.5, ""))
    path.write_text("\ufeff" + path.read_text() + "\n\n")
    assert len(read_scenes(path)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "its first two lines have no columns 'Start Time (seconds)'"),
        ("a,b\n1,2\n3,4\n" + HEADER, "its first two lines have no columns"),
        (HEADER, "lists 0 scenes"),
        (HEADER + "1,1\n", "line 2 has no start and end in seconds"),
        (CUTS + HEADER + line(1, 0, 1).replace("1.000", "x"), "line 3 has no start and end in seconds"),
        (HEADER + line(1, 2, 2), "line 2: a scene from 2 to 2 s"),
        (HEADER + line(1, 0, 1) + line(2, float("nan"), 2), "line 3: a scene from nan to 2 s"),
        (HEADER + line(1, 0, float("inf")), "line 2: a scene from 0 to inf s"),
        (HEADER + '1,"', "no CSV"),
    ],
)
def test_what_is_no_list_says_so(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        read_scenes(path)


def test_a_list_has_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = listed(tmp_path / "a.csv", *((n, n + 1) for n in range(3)))
    monkeypatch.setattr(scenes, "MOST_SCENES", 2)
    with pytest.raises(ValueError, match="lists 3 scenes; it takes 1 to 2"):
        read_scenes(path)
    monkeypatch.setattr(scenes, "_MOST_BYTES", 1)
    with pytest.raises(ValueError, match="larger than"):
        read_scenes(path)


def inputs(*names: str) -> Inputs:
    made: Iterator[Job] = (Job(f"/v/{name}", name, (Question(Prompt("What?"), name),)) for name in names)
    return Inputs(made, (), len(names))


def test_a_list_is_that_of_one_video_and_a_folder_has_one_for_each(tmp_path: Path) -> None:
    path = listed(tmp_path / "a-Scenes.csv", (0, 2), (2, 4))
    (job,) = with_scenes(inputs("x.mp4"), str(path)).jobs
    assert [(span.start, span.end) for span in job.spans] == [(0, 2), (2, 4)]
    with pytest.raises(UsageError, match="lists the scenes of one video; for several name a folder"):
        with_scenes(inputs("x.mp4", "y.mp4"), str(path))
    with pytest.raises(UsageError, match="one video"):
        with_scenes(replace(inputs("x.mp4"), total=None), str(path))
    with pytest.raises(UsageError, match="no such file"):
        with_scenes(inputs("x.mp4"), str(tmp_path / "gone.csv"))
    (tmp_path / "c-Scenes.csv").write_text("x")
    first, second, third = with_scenes(inputs("in/a.mp4", "b.mp4", "c.mp4"), str(tmp_path)).jobs
    assert len(first.spans) == 2
    assert second.fault is not None
    assert (second.fault.kind, "b-Scenes.csv': no such file" in second.fault.message) == ("no_scenes", True)
    assert third.fault is not None


def test_scenes_and_other_stretches_exclude_each_other() -> None:
    for other in ({"every": 2.0}, {"window": 2.0, "stride": 1.0}):
        with pytest.raises(UsageError, match="--scenes-from has stretches of its own"):
            SpanOptions(scenes_from="a.csv", **other)
    with pytest.raises(UsageError, match="--scenes-from is empty"):
        SpanOptions(scenes_from="")


# Runs

engines = pytest.fixture(echo_engines)


def test_each_scene_has_a_row_and_a_changed_list_is_new_work(engines: list[EchoEngine], tmp_path: Path) -> None:
    path = listed(tmp_path / "a.csv", (0, 1), (1, 3), (7, 9))
    command = ("ask", "a.mp4", "What?", "--scenes-from", str(path), "--whole", "-o", "rows.jsonl")
    assert llava_mini(*command).exit_code == 3
    made = [json.loads(one) for one in Path("rows.jsonl").read_text().splitlines()]
    found = sorted((one["segment"] or 0, one["start"], one["end"], one["text"], one["error_type"]) for one in made)
    assert found == [
        (0, None, None, "What? [4]", None), (1, 0, 1, "What? [1]", None), (2, 1, 3, "What? [2]", None),
        (3, 7, 9, None, "empty"),
    ]  # fmt: skip
    assert "4 were there" in llava_mini(*command).stderr
    assert len(engines) == 1
    listed(path, (0, 2), (2, 4))
    done = llava_mini(*command)
    assert (done.exit_code, "2 answers" in done.stderr, "1 were there" in done.stderr) == (0, True, True)
    refused = llava_mini("ask", "a.mp4", "What?", "--every", "1s", "-o", "rows.jsonl")
    assert "--every was not set, is 1" in refused.stderr
    assert llava_mini("ask", "a.mp4", "What?", "--scenes-from", "gone.csv").exit_code == 2


def test_scenes_of_an_archive_are_those_of_the_files(films: Path, archive: Path, tmp_path: Path) -> None:
    for name in ("red", "green", "yellow"):
        listed(tmp_path / f"{name}-Scenes.csv", (0, 2), (2, 4))
    spans = ("What colour is the shape?", "--scenes-from", tmp_path, "-q")
    files = rows(run("ask", films, "-m", "demo", *spans))
    stored = rows(run("ask", "--index", archive, *spans))
    key = ("file_name", "segment", "start", "end", "text", "frame_count")
    assert sorted([one[k] for k in key] for one in files) == sorted([one[k] for k in key] for one in stored)
    said = {(one["file_name"], one["segment"]): one["text"] for one in files}
    assert (said["red.mp4", 1], said["red.mp4", 2], said["green.mp4", 1], len(said)) == ("red", "blue", "green", 6)


def test_no_model_is_loaded_for_a_list_that_is_none(engines: list[EchoEngine]) -> None:
    done = llava_mini("ask", "a.mp4", "What?", "--scenes-from", "a.mp4")
    assert (done.exit_code, done.stdout, engines) == (2, "", [])
    assert "--scenes-from 'a.mp4': no list of scenes" in done.stderr
