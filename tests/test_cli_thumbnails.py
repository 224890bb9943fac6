"""`--thumbnails` on the command line: pictures in rows and folders, what goes on after an end, and what is refused.

A frame of the doubles has a grey that tells its second: 8 times the second, as far as that goes.
"""

import csv
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_runs
import numpy as np
import pyarrow.parquet as pq
import pytest
from archive_films import rows as said
from archive_films import run
from cli_doubles import EchoEngine, MadeClip
from configured_cli import echo_engines, llava_mini
from PIL import Image
from test_pipelines_scenes import SceneEngine

from llava_mini_cli.commands.main import app
from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.formats.outputs import thumbnail_folder
from llava_mini_cli.formats.outputs.thumbnail_folder import file_name
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.media.open import Opening

GREY = 8  # a second


class GreyClip(MadeClip):
    """A clip whose frames tell their second."""

    def __iter__(self) -> Iterator[FrameChunk]:
        for chunk in super().__iter__():
            yield FrameChunk(chunk.pixels + np.uint8(GREY * int(chunk.times[0]) % 256), chunk.times)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[EchoEngine]:
    loaded = echo_engines(monkeypatch, tmp_path)

    def open_grey(
        path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
    ) -> GreyClip:
        return GreyClip(path, Path(path).read_text())

    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_grey)
    Path("b.mp4").write_text("9")
    Path("c.mp4").write_text("broken")
    return loaded


def second(picture: bytes | str | None, folder: Path | str = ".") -> int | None:
    """The second that a picture shows, of its bytes or its path as seen from a folder."""
    if not picture:
        return None
    data = (Path(folder) / picture).read_bytes() if isinstance(picture, str) else picture
    shown = Image.open(io.BytesIO(data))
    assert (shown.format, shown.size) == ("JPEG", (64, 48))
    return round(float(np.asarray(shown).mean()) / GREY)


def read(path: str) -> list[dict[str, Any]]:
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    if path.endswith(".csv"):
        return list(csv.DictReader(Path(path).read_text().splitlines()))
    return pq.read_table(path).to_pylist()


ASK = ("ask", "a.mp4", "b.mp4", "c.mp4")
SHOWN = {("a.mp4", "What?"): 2, ("a.mp4", "Why?"): 2, ("b.mp4", "What?"): 4, ("b.mp4", "Why?"): 4}
PLACES = [("rows.jsonl", "pics"), ("rows.csv", "deep/er/pics"), ("rows.parquet", "column"), ("rows/", "column")]


@pytest.mark.parametrize(("output", "place"), PLACES)
def test_every_format_holds_the_frame_in_the_middle(engines: list[EchoEngine], output: str, place: str) -> None:
    Path("d.mp4").write_text("unopenable")
    command = (*ASK, "d.mp4", "-p", "What?", "-p", "Why?", "-o", output, "--thumbnails", place)
    assert llava_mini(*command).exit_code == 3
    found = read(output)
    assert {
        (row["file_name"], row["prompt"]): second(row["thumbnail"]) for row in found if row["status"] == "ok"
    } == SHOWN
    # Of a video that breaks off behind its first frame the error row shows that one; of one that never opens none.
    assert [second(row["thumbnail"]) for row in found if row["file_name"] == "c.mp4"] == [0, 0]
    assert [row["thumbnail"] or None for row in found if row["file_name"] == "d.mp4"] == [None, None]
    before = {path: path.stat().st_ino for path in Path().rglob("*.jpg")}
    assert len(before) == (0 if place == "column" else 3)  # two questions about one frame share its file
    if output.endswith(("jsonl", "csv")):
        assert {Path(row["thumbnail"]).parent.as_posix() for row in found if row["thumbnail"]} == {place}
    # Nothing is left to do; then failures are tried again, of which one can be answered now.
    assert llava_mini(*command).exit_code == 3
    assert len(engines) == 1
    Path("c.mp4").write_text("7")
    os.utime("c.mp4", ns=(1, 1))
    assert llava_mini(*command, "--retry-errors").exit_code == 3
    again = {
        (row["file_name"], row["prompt"]): second(row["thumbnail"]) for row in read(output) if row["status"] == "ok"
    }
    assert again == SHOWN | {("c.mp4", "What?"): 3, ("c.mp4", "Why?"): 3}
    assert {path: path.stat().st_ino for path in before} == before  # what was there is not written again
    other = llava_mini(*command[:-2])
    words = (
        "other columns"
        if output == "rows.csv"
        else f"--thumbnails was {'column' if place == 'column' else 'folder'}, is not set"
    )
    assert (other.exit_code, words in other.stderr) == (2, True), other.stderr


def test_a_parquet_file_says_that_it_is_binary_and_loads_in_datasets(engines: list[EchoEngine], tmp_path: Path) -> None:
    from datasets import load_dataset  # type: ignore[import-untyped]

    assert llava_mini("caption", "a.mp4", "-o", "rows.parquet", "--thumbnails", "column").exit_code == 0
    assert str(pq.read_schema("rows.parquet").field("thumbnail").type) == "binary"
    loaded: Any = load_dataset("parquet", data_files="rows.parquet", cache_dir=f"{tmp_path}/cache")
    assert second(loaded["train"][0]["thumbnail"]) == 2


def test_the_paths_begin_at_the_folder_of_the_output(engines: list[EchoEngine]) -> None:
    """Wherever that is, also behind a link; on standard output at the working directory."""
    Path("far/away").mkdir(parents=True)
    Path("near").symlink_to("far/away")
    Path("linked.jsonl").symlink_to("far/file.jsonl")
    for output, place, folder in (
        ("near/rows.jsonl", "far/pics", "near"),
        ("far/away/two.jsonl", "near/pics", "far/away"),
        ("linked.jsonl", "pics", "far"),
        ("far/three.jsonl", str(Path("pics").absolute()), "far"),
    ):
        assert llava_mini("caption", "a.mp4", "-o", output, "--thumbnails", place).exit_code == 0
        (row,) = read(output)
        assert second(row["thumbnail"], folder) == 2, row["thumbnail"]
        assert not Path(row["thumbnail"]).is_absolute()
    for stream in ((), ("-o", "-"), ("-f", "jsonl")):
        (row,) = said(llava_mini("caption", "a.mp4", "--thumbnails", "pics", *stream))
        assert (second(row["thumbnail"]), row["thumbnail"].startswith("pics/")) == (2, True)


@pytest.mark.parametrize("name", ["..", "../../up", "a\nb", "a/../../x", "=cmd()", "%2e%2e", "\u202egpj", "x" * 250])
def test_no_name_leads_out_of_the_folder(engines: list[EchoEngine], name: str) -> None:
    """A table may name its media as it likes; the file is in the folder, and its name is a plain one."""
    made = file_name(name, b"1")
    assert Path(made).name == made == made.strip()
    assert len(made.encode()) <= 126
    assert all(one.isalnum() or one in "._-" for one in made)


def test_two_pictures_of_one_name_do_not_collide(engines: list[EchoEngine]) -> None:
    for folder, text in (("one", "5"), ("two", "9")):
        Path(folder).mkdir()
        Path(folder, "a.mp4").write_text(text)
    assert llava_mini("caption", "one/a.mp4", "two/a.mp4", "-o", "r.jsonl", "--thumbnails", "pics").exit_code == 0
    assert [second(row["thumbnail"]) for row in read("r.jsonl")] == [2, 4]
    assert len(set(os.listdir("pics"))) == 2


def test_a_link_that_somebody_left_is_not_followed(engines: list[EchoEngine]) -> None:
    assert llava_mini("caption", "a.mp4", "-o", "r.jsonl", "--thumbnails", "pics").exit_code == 0
    (name,) = os.listdir("pics")
    Path("precious").write_text("precious")
    Path("pics", name).unlink()
    Path("pics", name).symlink_to("../precious")
    result = llava_mini("caption", "a.mp4", "-o", "s.jsonl", "--thumbnails", "pics")
    assert (result.exit_code, "it is a link" in result.stderr) == (1, True)
    assert Path("precious").read_text() == "precious"
    assert not Path("s.jsonl").exists()  # a row does not name a picture that is not there


def test_only_the_last_names_are_remembered(engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnail_folder, "REMEMBERED", 2)
    assert llava_mini("ask", "b.mp4", "?", "--every", "1s", "-o", "r.jsonl", "--thumbnails", "p").exit_code == 0
    assert [second(row["thumbnail"]) for row in read("r.jsonl")] == list(range(9))


# Spans, scenes, fields and events


def test_every_span_has_its_own(engines: list[EchoEngine]) -> None:
    result = llava_mini("ask", "b.mp4", "?", "--every", "3s", "--whole", "-o", "r.parquet", "--thumbnails", "column")
    assert result.exit_code == 0
    found = {row["segment"]: second(row["thumbnail"]) for row in read("r.parquet")}
    assert found in ({None: 4, 1: middle, 2: 4, 3: 7} for middle in (1, 2))


def test_scenes_have_theirs_though_their_ends_come_late(
    engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WatchedScenes(SceneEngine):
        def step(self) -> list[Answer | Failure]:
            request = self._waiting[0]
            inner = request.frames.__class__.__iter__

            class Watched:
                def __iter__(self) -> Iterator[Any]:
                    for chunk in inner(request.frames):  # pyright: ignore[reportArgumentType]
                        assert request.watcher is not None
                        request.watcher.saw(chunk)  # pyright: ignore[reportArgumentType]
                        yield chunk

                def close(self) -> None:
                    request.frames.close()

            self._waiting[0] = replace(request, frames=Watched())  # pyright: ignore[reportArgumentType]
            return super().step()

    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", lambda options, **_: WatchedScenes(options))
    Path("d.mp4").write_text("31/6/20")
    command = ("ask", "d.mp4", "?", "--scenes", "-o", "r.parquet", "--thumbnails", "column")
    assert llava_mini(*command).exit_code == 0
    shown = {row["segment"]: second(row["thumbnail"]) for row in read("r.parquet")}
    for number, (start, end) in enumerate(((0, 6), (6, 20), (20, 31)), 1):
        at = shown[number]
        assert at is not None
        assert start + (end - start) / 3 - 1 <= at <= end - (end - start) / 3 + 1, shown


def test_rows_of_a_schema_have_one(engines: list[EchoEngine]) -> None:
    result = llava_mini("ask", "a.mp4", "--schema", "dark bool, day a|b", "-f", "jsonl", "--thumbnails", "p")
    (row,) = said(result)
    assert second(row["thumbnail"]) == 2


def test_events_and_videos_without_one(engines: list[EchoEngine]) -> None:
    """The double says yes but at 0, 3, 6, ... seconds. The track has no pictures."""
    Path("d.mp4").write_text("1")
    command = ("when", "a.mp4", "d.mp4", "b.mp4", "c.mp4", "Is it?")
    assert llava_mini(*command, "-o", "r.parquet", "--thumbnails", "column", "--track", "t.parquet").exit_code == 3
    found = [(row["file_name"], row["start"], row["end"], second(row["thumbnail"])) for row in read("r.parquet")]
    assert [one[:3] for one in found] == [
        ("a.mp4", 1, 3),
        ("d.mp4", None, None),
        ("b.mp4", 1, 3),
        ("b.mp4", 4, 6),
        ("b.mp4", 7, 9),
        ("c.mp4", None, None),
    ]
    for _, start, end, shown in found[2:5]:
        assert start <= shown < end
    assert [found[1][3], found[5][3]] == [0, None]
    assert "thumbnail" not in pq.read_schema("t.parquet").names
    assert (
        llava_mini(*command, "-o", "r.jsonl", "--thumbnails", "pics", "--window", "3s", "--stride", "3s").exit_code == 3
    )
    assert all(Path(row["thumbnail"]).is_file() for row in read("r.jsonl") if row["status"] == "ok")


# Frames that were decoded for the model


def test_no_medium_is_decoded_twice_and_no_frame_more(engines: list[EchoEngine], tmp_path: Path) -> None:
    counts: list[tuple[int, list[str]]] = []
    for extra in ((), ("--thumbnails", "pics")):
        del MadeClip.opened[:]
        assert llava_mini(*ASK[:3], "?", "--every", "2s", "--overwrite", "-o", "r.jsonl", *extra).exit_code == 0
        read_frames = sorted(warning for clip in MadeClip.opened_in(tmp_path) for warning in clip.warnings)
        counts.append((len(MadeClip.opened_in(tmp_path)), read_frames))
    assert counts[0] == counts[1] == (2, ["read 4 frames", "read 9 frames"])


def test_the_demo_model_of_films_and_an_archive(films: Path, archive: Path, tmp_path: Path) -> None:
    """Through the real engine and decoders: the square of the second half, and none from stored features."""
    Image.new("RGB", (640, 320), "red").save(tmp_path / "wide.png")
    command = ("ask", films / "red.mp4", tmp_path / "wide.png", "What?", "-m", "demo", "-q")
    result = run(*command, "--every", "2s", "-o", tmp_path / "r.parquet", "--thumbnails", "column")
    assert result.exit_code == 0, result.stderr
    pictures = [
        np.asarray(Image.open(io.BytesIO(row["thumbnail"]))).astype(int)
        for row in pq.read_table(tmp_path / "r.parquet").sort_by("start").to_pylist()
    ]
    assert [one.shape for one in pictures] == [(192, 192, 3), (192, 192, 3), (192, 192, 3), (72, 72, 3)]
    centres = [one[len(one) // 2, len(one) // 2] for one in pictures]
    assert [int(centre.argmax()) for centre in centres] == [0, 2, 2, 0]  # red, blue, blue, red
    refused = run("ask", "--index", archive, "What?", "-q", "--thumbnails", tmp_path / "p", "-f", "jsonl")
    words = "llava-mini: error: --thumbnails: the archive answers from stored features, and no frame is decoded\n"
    assert (refused.exit_code, refused.stderr) == (2, words)


def test_spans_that_carried_the_answer_have_theirs(films: Path, tmp_path: Path) -> None:
    """In the evidence of a video, in Parquet and as files; blocks of a picture have none."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    ask = ("ask", films / "red.mp4", tmp_path / "a.png", "What colour is it?", "-m", "demo", "-q", "--evidence", "5")
    assert run(*ask, "-o", tmp_path / "r.parquet", "--thumbnails", "column").exit_code == 0
    assert run(*ask, "-o", tmp_path / "r.jsonl", "--thumbnails", tmp_path / "pics").exit_code == 0
    for name in ("r.parquet", "r.jsonl"):
        found = {row["file_name"]: row["evidence"] for row in read(str(tmp_path / name))}
        assert [part["thumbnail"] for part in found["a.png"]] == [None] * len(found["a.png"])
        assert len(found["red.mp4"]) == 5
        for part in found["red.mp4"]:
            shown = part["thumbnail"] if name == "r.parquet" else (tmp_path / part["thumbnail"]).read_bytes()
            pixels = np.asarray(Image.open(io.BytesIO(shown))).astype(int)
            colour = int(pixels[len(pixels) // 2, len(pixels) // 2].argmax())
            assert colour == (0 if part["start"] < 2 else 2), part["start"]  # red for two seconds, then blue


@pytest.mark.parametrize("options", [(), ("--thumbnails", "p")])
def test_a_column_of_the_input_does_not_take_its_place(engines: list[EchoEngine], options: tuple[str, ...]) -> None:
    Path("t.csv").write_text("path,thumbnail,evidence\na.mp4,1,[2]\n")
    command = ("ask", "t.csv", "?", "--column", "path", "--keep-columns", "thumbnail,evidence", "-f", "jsonl")
    (row,) = said(llava_mini(*command, *options))
    assert (row["input_thumbnail"], row["input_evidence"], "evidence" in row) == ("1", "[2]", False)
    assert second(row.get("thumbnail")) == (2 if options else None)


# Runs that are killed


def test_a_killed_run_leaves_no_half_picture_and_goes_on(tmp_path: Path) -> None:
    """Killed at file operations all along: what is there is whole, and the next run names pictures that are there."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name, text in {"a": "3", "b": "5", "c": "7"}.items():
        (folder / f"{name}.mp4").write_text(text)
    command = ("ask", "a.mp4", "b.mp4", "c.mp4", "?", "--every", "1s", "-o", "r.jsonl", "--thumbnails", "pics")
    whole = 0
    for number in range(3, 60, 7):
        code = killed_runs.run(folder, *command, kill_at=number)
        assert code in (-signal.SIGKILL, 0)
        for path in (folder / "pics").glob("[!.]*.jpg"):
            Image.open(path).load()
            whole += 1
    assert whole > 0
    assert killed_runs.run(folder, *command) == 0, (tmp_path / "stderr").read_text()
    found = [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]
    assert len(found) == 15
    assert all((folder / row["thumbnail"]).is_file() for row in found)
    assert not list((folder / "pics").glob(".*"))


# What is refused

REFUSED = {
    ("-o", "r.parquet", "--thumbnails", "pics"): "--thumbnails 'pics': Parquet holds pictures itself: --thumbnails "
    "column",
    ("-o", "r.jsonl", "--thumbnails", "column"): "--thumbnails column puts pictures into Parquet, and jsonl output "
    "holds their paths; name a folder, such as --thumbnails thumbnails",
    ("-f", "txt", "--thumbnails", "p"): "--thumbnails has no place in --format txt, which holds answers alone",
    ("-f", "srt", "--thumbnails", "p"): "--thumbnails has no place in --format srt, which holds answers alone",
    ("-f", "jsonl", "--thumbnails", ""): "--thumbnails is empty",
    ("-o", "r.jsonl", "--thumbnails", "./r.jsonl"): "--thumbnails 'r.jsonl' is the output, too; name another folder",
    ("-f", "jsonl", "--thumbnails", "a.mp4"): "cannot write 'a.mp4': 'a.mp4' is not a folder",
    ("-f", "jsonl", "--thumbnails", "a.mp4/x"): "cannot write 'a.mp4/x': '.*a.mp4' is not a folder",
}  # fmt: skip


@pytest.mark.parametrize("options", REFUSED)
@pytest.mark.parametrize("command", ["ask", "when"])
def test_what_cannot_be_is_refused_in_one_line(
    engines: list[EchoEngine], command: str, options: tuple[str, ...]
) -> None:
    if command == "when" and "txt" in options:
        pytest.skip("when has no such format")
    result = llava_mini(command, "a.mp4", "?", *options)
    assert re.fullmatch(f"llava-mini: error: {REFUSED[options]}\n", result.stderr), result.stderr
    assert (result.exit_code in (1, 2), result.stdout, engines) == (True, "", [])


@pytest.mark.parametrize("option", [("--thumbnails",), ("--plot",)])
def test_pictures_are_not_put_among_the_media(engines: list[EchoEngine], option: tuple[str]) -> None:
    """The next run would ask about them."""
    Path("in").mkdir()
    Path("in/a.mp4").write_text("3")
    result = llava_mini("when", "in", "?", "-f", "jsonl", *option, "in/pics")
    words = "'in/pics' lies in 'in', whose pictures are asked about; name another folder"
    assert (result.exit_code, result.stderr) == (2, f"llava-mini: error: {option[0]} {words}\n")


def test_text_at_a_terminal_has_no_place_for_them(engines: list[EchoEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setattr(sys, "argv", ["llava-mini"])
    with pytest.raises(SystemExit) as end:
        app(["ask", "a.mp4", "?", "--thumbnails", "p"])
    assert end.value.code == 2
