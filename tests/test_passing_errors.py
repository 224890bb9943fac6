"""Errors whose reason lay in the moment: the next run does their rows again by itself, whatever the output is."""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_doubles import EchoEngine, open_made_clip
from engine_doubles import ArrayFrames
from output_rows import FAILED, FILES, RUN, key, opened, row, texts, write
from test_engine_track import pixels, track_of
from test_formats_archive import header
from typer.testing import CliRunner, Result

from llava_mini_cli.commands.main import app
from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import PASSING_KINDS, MediaError
from llava_mini_cli.formats.archive.writer import open_for_writing
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.outputs.done import ANSWER, ERROR, PASSING, Done, end_of, parse_key, standing_answers
from llava_mini_cli.formats.outputs.open_output import OutputOptions, open_output
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.clip import Clip, FrameChunk
from llava_mini_cli.media.open import UNWATCHED
from llava_mini_cli.pipelines.open_job import open_or_fault


def passing(work: int, kind: str = "decoder_killed") -> Row:
    return replace(FAILED, id=f"{work}", error_type=kind, fingerprint=key(work))


def test_the_end_of_a_row_is_told_by_its_columns() -> None:
    assert end_of("ok", None) == ANSWER
    assert {kind: end_of("error", kind) for kind in ("truncated", "timeout", "not_found", "refused")} == dict.fromkeys(
        ("truncated", "timeout", "not_found", "refused"), ERROR
    )
    assert end_of("error", None) == ERROR  # of an output that says no kind
    assert {end_of("error", kind) for kind in PASSING_KINDS} == {PASSING}


def test_only_an_answer_or_a_lasting_error_is_finished_work() -> None:
    done = Done()
    done.add([(key(1), ANSWER), (key(2), ERROR), (key(3), PASSING), (key(4), ANSWER), (key(4), PASSING)])
    assert [done.claim(*parse_key(key(number))) for number in (1, 2, 3, 4)] == [None, None, key(3), None]
    assert (done.rows_left, done.errors_left) == (3, 1)
    assert done.replaced == 2  # the answer stands for the error behind it, and the third is to have another row
    assert [*standing_answers([(key(1), ANSWER), (key(3), PASSING), (key(2), ERROR)])] == [1, 0, 0]


def test_a_passing_error_of_a_file_that_moved_is_tried_again() -> None:
    done = Done()
    done.add([(key(3), PASSING), (key(2), ERROR)])
    done.read_digests = lambda: [(key(3), f"7-{'a' * 20}-{'b' * 20}"), (key(2), f"7-{'c' * 20}-{'b' * 20}")]
    passed, lasting = (done.alike(b"0" * 10, f"7-{letter * 20}-{'b' * 20}") for letter in "ac")
    assert passed is not None
    assert lasting is not None
    assert not done.leave(passed)
    assert done.leave(lasting)


@pytest.mark.parametrize("name", [*FILES, "metadata.jsonl", "metadata.parquet"])
def test_every_output_gives_them_to_the_next_run(name: str, tmp_path: Path) -> None:
    output = f"{tmp_path}/{name}"
    options: dict[str, Any] = {"format": "hf"} if name.startswith("metadata") else {}
    media = {number: f"{tmp_path}/{number}.jpg" for number in range(1, 7)}
    kinds = sorted(PASSING_KINDS)

    def placed(each: Row) -> Row:
        return replace(each, source=media[int(each.id)])

    before = [row(1), row(2, None), *(passing(number, kind) for number, kind in enumerate(kinds, 3))]
    write_as(output, options, *map(placed, before))
    with opened_as(output, options) as again:
        claims = [again.done.claim(*parse_key(key(number))) for number in range(1, 7)]
        assert claims == [None, None, key(3), key(4), key(5), key(6)]
        for number in (3, 4, 5):
            again.write(placed(row(number, "now")))
        again.write(placed(passing(6)))
    with opened_as(output, options) as third:
        assert [third.done.claim(*parse_key(key(number))) for number in range(1, 7)] == [None] * 5 + [key(6)]
        third.write(placed(row(6, "at last")))
    if not options:
        after = [("1", "yes"), ("2", None), *((f"{number}", "now") for number in (3, 4, 5)), ("6", "at last")]
        assert texts(output) == after


def opened_as(output: str, options: dict[str, Any]) -> Any:
    parsed = OutputOptions.parse(output, options.get("format"))
    parsed.check()
    return open_output(parsed, RUN)


def write_as(output: str, options: dict[str, Any], *rows: Row) -> None:
    with opened_as(output, options) as open_one:
        for each in rows:
            open_one.write(each)


def test_words_of_an_answer_are_not_taken_for_a_kind(tmp_path: Path) -> None:
    text = '", "status": "error", "error_type": "out_of_memory", "x": "'
    write(tmp_path / "a.jsonl", replace(row(1, text), kept={"error_type": "out_of_memory"}))
    with opened(tmp_path / "a.jsonl") as output:
        assert output.done.claim(*parse_key(key(1))) is None


def test_an_archive_gives_them_to_the_next_run(tmp_path: Path) -> None:
    with open_for_writing(tmp_path) as writer:
        writer.start(header())
        for path, kind in (("/x", "corrupt"), ("/y", "no_resources")):
            failed = {"path": path, "file_name": path[1:], "size": 1, "mtime": 2, "digest": f"1-{kind}"}
            writer.finish(writer.begin(), failed | {"status": "error", "error": "bad", "error_type": kind})
        assert writer.holds(("/x", 1, 2))
        assert not writer.holds(("/y", 1, 2))
    with open_for_writing(tmp_path) as writer:
        assert writer.holds(("/x", 1, 2))
        assert not writer.holds(("/y", 1, 2))
        assert writer.recall(("/z/x", 1, 3), "x", "1-corrupt", retry_errors=False) == "/x"
        assert writer.recall(("/z/y", 1, 3), "y", "1-no_resources", retry_errors=False) is None


class Short:
    """Opens clips; the first attempt at each path fails as the machine does, and says how often each was tried."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.tried: list[str] = []

    def __call__(self, path: str, options: SamplingOptions, **rest: Any) -> Clip:
        self.tried.append(path)
        if path != "good.mp4" and self.tried.count(path) == 1:
            raise self.error
        return open_made_clip(path, options, **rest)


def llava_mini(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MediaError("decoder_killed", "killed twice"), "decoder_killed"),
        (MemoryError(), "out_of_memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "no_resources"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "unreachable"),
        (RuntimeError("can't start new thread"), "no_resources"),
    ],
)
@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_the_same_command_again_does_what_the_machine_had_failed(
    error: BaseException, kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Short(error)
    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", EchoEngine)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", short)
    monkeypatch.chdir(tmp_path)
    for medium in ("bad.mp4", "good.mp4"):
        (tmp_path / medium).write_text("2")
    command = "ask", "bad.mp4", "good.mp4", "-p", "What?", "-o", name, "-m", "echo", "--summary-json", "told.json"
    first = llava_mini(*command)
    told = json.loads((tmp_path / "told.json").read_text())
    assert (first.exit_code, told["failures"], told["rows_failed_in_passing"]) == (3, {kind: 1}, 1)
    assert "1 answers, 1 failed (1 will be tried again by the next run), " in first.stderr
    assert short.tried.count("bad.mp4") == 1  # the run does not try it for ever
    again = llava_mini(*command)
    assert (again.exit_code, short.tried.count("bad.mp4"), short.tried.count("good.mp4")) == (0, 2, 1)
    assert "1 answers, 0 failed, 1 were there, " in again.stderr
    assert [text is not None for _, text in texts(tmp_path / name)] == [True, True]
    third = llava_mini(*command)
    assert (third.exit_code, len(short.tried)) == (0, 3)


def test_other_mistakes_of_opening_are_raised() -> None:
    with pytest.raises(RuntimeError, match="a mistake"):
        open_or_fault(Short(RuntimeError("a mistake")), Job("a", "a", ()), SamplingOptions(), 336, UNWATCHED)


def test_a_clip_that_the_machine_ends_has_that_kind() -> None:
    class Stale(ArrayFrames):
        def __iter__(self) -> Iterator[FrameChunk]:
            yield from super().__iter__()
            raise OSError(errno.ESTALE, "Stale file handle")

    track = track_of(Stale(pixels(1)))
    assert track.take(9) is not None
    with pytest.raises(MediaError, match="stale file handle") as caught:
        track.take(9)
    assert caught.value.kind == "unreachable"
