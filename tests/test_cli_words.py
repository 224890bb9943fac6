"""What is said: the end of a run, the summary, the dry run, answers at a terminal, and lines on stderr."""

import io
import json
import logging
import os
import sys
import warnings
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from output_rows import FAILED, ROW

from llava_mini_cli import __version__
from llava_mini_cli.commands import dry_run, stderr, summary
from llava_mini_cli.commands.reporter import Reporter
from llava_mini_cli.commands.run import exit_code
from llava_mini_cli.commands.summary import SummaryFile
from llava_mini_cli.commands.terminal import BlockWriter, PlainWriter
from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.errors import OutputError, UsageError
from llava_mini_cli.formats.archive.newest import Damage
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.forecast import Forecast, Longest, RunTime
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import FailedMedium, Tally

CLIP = ClipInfo("in/a.mp4", "video", 64, 48, 4.25, 17, 1.0, "h264")


class Screen(io.TextIOWrapper):
    """A terminal that remembers what was written to it."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding, write_through=True, newline="")

    def isatty(self) -> bool:
        return True

    def getvalue(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


# The end


CUT = Damage(1, "media/part-000001.parquet", "cut")


def test_words_of_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally(media=3, answered=4, failed=2, frames=7)
    summary.say_counts(tally, 1.25, None)
    tally.skipped, tally.errors_skipped, tally.stopped_by = 5, 1, "max_failures"
    summary.say_counts(tally, 61.0, Path("out.jsonl"))
    tally.errors_skipped = 0
    summary.say_counts(tally, 61.0, None)
    there = "5 were there (1 failed; --retry-errors tries them again)"
    counts = "llava-mini: 3 media, 7 frames, 4 answers, 2 failed"
    assert said(capsys) == [
        f"{counts}, 1.2 s",
        f"{counts}, {there}, 61.0 s, stopped by --max-failures, written to out.jsonl",
        f"{counts}, 5 were there, 61.0 s, stopped by --max-failures",
    ]


def test_failed_media_are_listed_and_the_others_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [FailedMedium("a\nb.mp4", "timeout", "too\nslow"), FailedMedium("c.mp4", "corrupt", "bad")]
    summary.say_failures(Tally(media_failed=2, listed=listed))
    assert said(capsys) == ["llava-mini: error: a b.mp4: too slow", "llava-mini: error: c.mp4: bad"]
    summary.say_failures(Tally(media_failed=5, listed=listed[1:]))
    assert said(capsys) == ["llava-mini: error: c.mp4: bad", "llava-mini: error: and 4 more failed"]
    monkeypatch.setattr(sys, "stderr", Screen())
    summary.say_failures(Tally(media_failed=1, listed=listed[1:]))
    assert sys.stderr.getvalue() == "llava-mini: error: c.mp4: bad\n"  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "stderr", Screen())
    summary.say_failures(Tally(media_failed=2, listed=listed))
    table = [line.split() for line in sys.stderr.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert table == [["failed", "why"], ["a", "b.mp4", "timeout", "too", "slow"], ["c.mp4", "corrupt", "bad"]]


@pytest.mark.parametrize(
    ("tally", "codes"),
    [
        (Tally(), (0, 0, 0)),
        (Tally(answered=1), (0, 0, 0)),
        (Tally(answered=1, failed=1), (3, 0, 0)),
        (Tally(failed=1), (3, 3, 0)),
        (Tally(skipped=2, errors_skipped=2), (3, 3, 0)),
        (Tally(skipped=2, errors_skipped=1), (3, 0, 0)),
        (Tally(answered=1, damage=[CUT]), (3, 0, 0)),
        (Tally(damage=[CUT]), (3, 3, 0)),
        (Tally(answered=1, stopped_by="limit"), (101, 101, 101)),
    ],
)
def test_the_exit_code(tally: Tally, codes: tuple[int, int, int]) -> None:
    assert (exit_code(tally, "any"), exit_code(tally, "all"), exit_code(tally, "never")) == codes


# The summary


OPTIONS = RunOptions(ModelOptions("m"), SamplingOptions(), GenerationOptions(), RunLimits(media=2))


def test_the_summary_of_a_run() -> None:
    counts = {"media": 1, "media_failed": 2, "media_skipped": 3, "answered": 4, "failed": 5, "skipped": 6}
    counts |= {"errors_skipped": 7, "known_by_content": 9, "frames": 8}
    failed = [FailedMedium("a", "timeout", "slow")]
    tally = Tally(**counts, video_s=1.23456, failures=Counter(corrupt=1, timeout=4), listed=failed, stopped_by="limit")
    tally.weight_format = "int8"
    began = datetime.now(UTC) - timedelta(seconds=5)
    told = summary.summary(tally, OPTIONS, Path("out"), began, exit_code=101, error="two\nlines")
    assert 5 <= told.pop("seconds") < 60
    settings = told.pop("settings")
    assert told == {
        "version": __version__, "exit_code": 101, "error": "two lines", "stopped_by": "limit",
        "weight_format": "int8",
        "began_at": began.isoformat(timespec="seconds"), "media": 1, "media_failed": 2, "media_skipped": 3,
        "rows_answered": 4, "rows_failed": 5, "rows_skipped": 6, "errors_skipped": 7, "known_by_content": 9,
        "rows_failed_in_passing": 0, "frames": 8, "video_seconds": 1.235, "failures": {"timeout": 4, "corrupt": 1},
        "failed": [{"id": "a", "error_type": "timeout", "error": "slow"}], "output": "out",
    }  # fmt: skip
    assert list(told["failures"]) == ["timeout", "corrupt"]
    assert settings["limits"] == {"media": 2, "failures": None}
    assert (settings["model"]["model"], settings["frames"]["fps"], settings["answer"]["seed"]) == ("m", 1.0, 0)
    nothing = summary.summary(Tally(), OPTIONS, None, began, exit_code=0, error=None)
    assert (nothing["output"], nothing["error"], nothing["failed"]) == (None, None, [])


def test_where_a_summary_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    assert SummaryFile.parse(None, rows_on_stdout=True) is None
    assert SummaryFile.parse("-", rows_on_stdout=False) == SummaryFile("-")
    name = str(tmp_path / "s.json")
    assert SummaryFile.parse(name, rows_on_stdout=True) == SummaryFile(name)
    for target, message in {
        "-": "--summary-json -: standard output holds the rows; name a file, or give -o FILE",
        str(tmp_path): f"--summary-json '{tmp_path}' is a folder; name a file",
        f"{tmp_path}/gone/s": f"--summary-json '{tmp_path}/gone/s': its folder cannot be written to",
    }.items():
        with pytest.raises(UsageError) as refused:
            SummaryFile.parse(target, rows_on_stdout=True)
        assert str(refused.value) == message


def test_a_pipe_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert SummaryFile.parse(str(tmp_path / "pipe"), rows_on_stdout=True) == SummaryFile(str(tmp_path / "pipe"))
    monkeypatch.setattr(os, "access", lambda path, mode: (str(path), mode) != (str(tmp_path / "pipe"), os.W_OK))
    with pytest.raises(UsageError, match=r"pipe' cannot be written to$"):
        SummaryFile.parse(str(tmp_path / "pipe"), rows_on_stdout=True)


def test_a_summary_is_written_whole_behind_a_link_and_into_a_descriptor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '{\n  "a": "é \\\\xff"\n}\n'
    told = {"a": "é \udcff"}
    (tmp_path / "real").write_text("old and long" * 9)
    (tmp_path / "link").symlink_to("real")
    SummaryFile(str(tmp_path / "link")).write(told)
    assert (tmp_path / "real").read_text() == text
    assert (tmp_path / "link").is_symlink()
    with (tmp_path / "log").open("wb", buffering=0) as log:
        log.write(b"before\n")
        SummaryFile(f"/proc/self/fd/{log.fileno()}").write(told)
    assert (tmp_path / "log").read_text() == f"before\n{text}"
    SummaryFile("-").write(told)
    assert capsys.readouterr() == (text, "")
    with pytest.raises(OutputError, match="gone"):
        SummaryFile(str(tmp_path / "gone" / "s")).write(told)


# The dry run


FOUND = Forecast(
    media=1200, images=3, videos=1100, not_looked_at=97, unknown_length=2, unreadable=Counter(corrupt=1, timeout=2000),
    too_long=4, frames_fit=4500, video_s=9000.12345, frames=5000, vision_tokens=6000, weights_bytes=3 << 29,
    rows=7000, rows_done=8000,
    longest=Longest("a.mp4", 4000, 4100, 5 << 19),
    time=RunTime(5.0, 12000.12345, 3600.0, 15605.12345, "bfloat16", 512),
)  # fmt: skip


def test_the_forecast_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    dry_run.show(FOUND)
    assert json.loads(capsys.readouterr().out) == {
        "media": 1200, "images": 3, "videos": 1100, "not_looked_at": 97, "unknown_length": 2,
        "unreadable": {"timeout": 2000, "corrupt": 1}, "too_long": 4, "frames_fit": 4500,
        "video_s": 9000.123, "frames": 5000,
        "vision_tokens": 6000, "weights_bytes": 1610612736, "rows": 7000, "unknown_scenes": 0, "rows_done": 8000,
        "longest": {"path": "a.mp4", "frames": 4000, "vision_tokens": 4100, "memory_bytes": 2621440},
        "time": {
            "load": 5.0, "frames": 12000.123, "answers": 3600.0, "total": 15605.123, "format": "bfloat16",
            "new_tokens": 512,
        },
        "evidence": False,
    }  # fmt: skip
    assert dry_run.as_json(Forecast())["longest"] is None


def table(found: Forecast, monkeypatch: pytest.MonkeyPatch, model: str = "m") -> list[str]:
    """The words of the table at a terminal."""
    monkeypatch.setattr(sys, "stdout", Screen())
    dry_run.show(found, model)
    return sys.stdout.getvalue().split()  # type: ignore[attr-defined]


def words(lines: list[str]) -> list[str]:
    return " ".join(lines).split()


def test_the_forecast_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table(FOUND, monkeypatch) == words(
        [
            "media 1,200 (3 images, 1,100 videos, 97 remote, not looked at)",
            "rows to do 7,000",
            "rows already done 8,000",
            "hours of video 2.50, and 2 videos of unknown length",
            "frames 5,000",
            "vision tokens 6,000",
            "memory of the model 1.5 GiB",
            "memory of the longest 2.5 MiB (frames: 4,000, a.mp4)",
            "too long 4 media exceed the model's context; with --fit 4,500 frames in all",
            "unreadable 2,000 timeout, 1 corrupt",
            "time at most 4 h 20 min in bfloat16: loading 5.0 s, frames 3 h 20 min, answers 1 h if each has 512",
            "tokens, without what is remote",
        ]
    )
    explained = " ".join(table(replace(FOUND, evidence=True), monkeypatch))
    assert explained.endswith("if each has 512 tokens, without the evidence, without what is remote")
    scenes = " ".join(table(replace(FOUND, unknown_scenes=1100, time=None), monkeypatch))
    assert "rows to do at least 7,000; only decoding tells how many scenes 1,100 videos have" in scenes
    assert "time not known; it depends on how many scenes there are" in scenes
    assert table(Forecast(media=1, images=1, rows=1, longest=Longest("a", 1, None, None)), monkeypatch) == words([
        "media 1 (1 images, 0 videos)", "rows to do 1", "rows already done 0", "hours of video 0.00", "frames 0",
        "vision tokens the model is not here", "time the model is not here",
    ])  # fmt: skip
    unknown = table(Forecast(weights_bytes=1 << 30, vision_tokens=1), monkeypatch, "demo")
    time = words(["time not known; llava-mini doctor -m demo measures the model on this machine"])
    assert unknown[-len(time) :] == time
    assert unknown[-6 - len(time) : -len(time)] == ["memory", "of", "the", "model", "1.0", "GiB"]
    assert FOUND.time is not None
    chosen = table(replace(FOUND, not_looked_at=0, time=FOUND.time._replace(new_tokens=0)), monkeypatch)
    assert chosen[-3:] == ["answers", "1", "h"]  # none of them is generated


def test_tables_do_not_colour_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setattr(sys, "stderr", Screen())
    dry_run.show(Forecast(media=1))
    summary.say_failures(Tally(media_failed=2, listed=[FailedMedium("1.mp4", "", "2")] * 2))
    assert "1 (0 images" in sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "1.mp4" in sys.stderr.getvalue()  # type: ignore[attr-defined]


# Answers at a terminal


def test_an_answer_says_how_likely_yes_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 1, quiet=False, verbose=False) as progress, PlainWriter(progress) as writer:
        assert len(writer.done) == 0
        writer.write(replace(ROW, text="Yes.", p_yes=0.875))
        writer.write(replace(ROW, text="<yes>", choice="yes"))
        writer.write(replace(ROW, text="no", choice="no", p_yes=0.25))
        writer.write(replace(ROW, text=None))
        writer.write(FAILED)
        writer.release()
    assert capsys.readouterr().out == "Yes. (yes: 0.88)\n<yes> (0.75)\nno (0.25) (yes: 0.25)\n\n"


def test_blocks_of_one_question_need_no_question(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 2, quiet=False, verbose=False) as progress, BlockWriter(progress, 1) as writer:
        for name, text in (("a", "one\ntwo"), ("a", ""), ("b", "three")):
            writer.write(replace(ROW, id=name, text=text))
        writer.write(FAILED)
        writer.release()
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == ["a", "  one", "  two", "", "", "b", "  three"]


def test_blocks_of_several_questions_name_each(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(Tally(), 1, quiet=False, verbose=False) as progress, BlockWriter(progress, 2) as writer:
        writer.write(replace(ROW, id="a", prompt="Who?", prompt_name="who", text="Ann"))
        writer.write(replace(ROW, id="a", prompt="Why?", prompt_name=None, text="so"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip() for line in lines] == ["a", "  who", "    Ann", "  Why?", "    so"]


# Lines on stderr


def test_lines_hold_no_passwords(capsys: pytest.CaptureFixture[str]) -> None:
    stderr.say_warning("https://user:secret@host/a  b")
    stderr.say_error("plain")
    assert said(capsys) == ["llava-mini: warning: https://host/a b", "llava-mini: error: plain"]


def test_libraries_are_hushed_unless_v_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "TRANSFORMERS_VERBOSITY", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "HF_HUB_VERBOSITY",
        "HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM",
    )  # fmt: skip
    for name in names:
        monkeypatch.setenv(name, "mine")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "mine")
    root, noisy = logging.getLogger(), logging.getLogger("torch.utils._pytree")
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(noisy, "level", logging.NOTSET)
    monkeypatch.setattr(sys, "warnoptions", [])
    before = len(root.handlers)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        stderr.hush_libraries(verbose=True)
        assert (len(root.handlers), noisy.level, warnings.filters) == (before, logging.NOTSET, [])
        assert [os.environ.get(name) for name in names] == [None, None, "mine", None, None]
        monkeypatch.setattr(sys, "warnoptions", ["error"])
        stderr.hush_libraries(verbose=False)
        assert warnings.filters == []
        monkeypatch.setattr(sys, "warnoptions", [])
        stderr.hush_libraries(verbose=False)
        assert [each[0] for each in warnings.filters] == ["ignore"]
    assert [os.environ.get(name) for name in names] == ["error", "1", "mine", "1", "false"]
    assert noisy.level == logging.ERROR
    assert isinstance(root.handlers[-1], logging.NullHandler)
