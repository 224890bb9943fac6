"""The loop of a run, alone and with an output around it, with doubles of the engine and of clips."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

import pytest
from cli_doubles import EchoEngine, MadeClip, ProgressLog, open_made_clip, read_jobs
from PIL import Image

from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.engine.request import Answer, Failure
from llava_mini_cli.errors import FetchError, ModelNotFound, OutputError, UsageError
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job, Prompt, Question, TimeSpan
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.row import Row
from llava_mini_cli.formats.source import FetchOptions, Source
from llava_mini_cli.media.clip import Clip
from llava_mini_cli.media.open import Opening, is_media_path
from llava_mini_cli.pipelines.ahead import AHEAD
from llava_mini_cli.pipelines.answer import answer, answer_into, load_and_answer
from llava_mini_cli.pipelines.interrupt import Interrupted, Interrupts
from llava_mini_cli.pipelines.question_parts import QuestionParts
from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally

PROMPTS = (Prompt("What?", "what"), Prompt("Why is this too long?"))
OPTIONS = RunOptions(ModelOptions("echo"), SamplingOptions(start=1.0), GenerationOptions())


class RowList:
    """A writer that keeps its rows; `broken` fails at the first."""

    def __init__(self, *, broken: bool = False) -> None:
        self.done = Done()
        self.rows: list[Row] = []
        self.open = False
        self.broken = broken

    def write(self, row: Row) -> None:
        assert self.open
        if self.broken:
            raise OutputError("disk full")
        self.rows.append(row)

    def take_in(self, name: str) -> None:
        raise AssertionError(name)  # nobody prepares parts of it

    def __enter__(self) -> Self:
        self.open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open = False


@dataclass(eq=False)
class Stored:
    """A source of a few bytes."""

    text: str
    name: str
    suffix: str = ".mp4"

    def write_to(self, path: Path, options: FetchOptions, stopped: threading.Event) -> None:
        if self.text == "unfetchable":
            raise FetchError("not_found", "no such file on the server")
        path.write_text(self.text)


def asked(path: str, *questions: str, source: Source | None = None) -> Job:
    """A job with these questions; its rows have the path as their id."""
    return Job(path, path, tuple(Question(Prompt(text), path) for text in questions), source=source)


@pytest.fixture(autouse=True)
def no_clip_stays_open(tmp_path: Path) -> Iterator[None]:
    yield
    assert all(clip.closed for clip in MadeClip.opened_in(tmp_path))


def write_media(folder: Path, **contents: str) -> list[str]:
    for name, text in contents.items():
        (folder / f"{name}.mp4").write_text(text)
    return [str(folder / f"{name}.mp4") for name in contents]


def run(
    jobs: Iterator[Job],
    writer: RowList,
    progress: ProgressLog | None = None,
    engine: AnswerEngine | None = None,
    options: RunOptions = OPTIONS,
) -> Tally:
    def load(options: ModelOptions) -> AnswerEngine:
        return engine or EchoEngine(options)

    with Interrupts() as interrupts:
        parts = RunParts(open_made_clip, progress=progress or ProgressLog(), interrupts=interrupts)
        answer_into(lambda: writer, jobs, load, options, parts)
    return parts.tally


def test_every_prompt_of_every_medium_gets_one_row(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="4", b="broken", c="unopenable", d="", e="2")
    media.insert(2, str(tmp_path / "gone.mp4"))
    writer = RowList()
    tally = run(read_jobs(media, PROMPTS, is_media_path), writer)
    assert (tally.media, tally.media_failed, tally.answered, tally.failed) == (6, 6, 2, 10)
    assert tally.failures == {"too_long": 2, "corrupt": 2, "no_video": 2, "empty": 2, "not_found": 2}
    assert sorted(failed.error_type for failed in tally.listed if failed.error_type != "too_long") == [
        "corrupt", "empty", "no_video", "not_found",
    ]  # fmt: skip
    got = {(row.file_name, row.prompt): (row.status, row.error_stage, row.error_type) for row in writer.rows}
    assert len(writer.rows) == len(got) == 12
    faults = {"b": ("decode", "corrupt"), "c": ("decode", "no_video"), "d": ("decode", "empty")}
    for name, fault in (faults | {"gone": ("decode", "not_found")}).items():
        for prompt in PROMPTS:
            assert got[f"{name}.mp4", prompt.text] == ("error", *fault)
    for name in ("a", "e"):
        assert got[f"{name}.mp4", PROMPTS[0].text] == ("ok", None, None)
        assert got[f"{name}.mp4", PROMPTS[1].text] == ("error", "prompt", "too_long")


def test_an_answered_row_says_all_that_is_known(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="4")
    writer = RowList()
    run(read_jobs(media, PROMPTS, is_media_path), writer)
    row = writer.rows[0].as_dict()
    assert len(row.pop("fingerprint")) == 32
    assert re.fullmatch("1-[0-9a-f]{20}-[0-9a-f]{20}", row.pop("digest"))
    assert row.pop("created_at").tzinfo is not None
    known = {key: value for key, value in row.items() if value is not None}
    assert known == {
        "id": media[0], "file_name": "a.mp4", "media": "video", "start": 1.0, "prompt_name": "what",
        "prompt": "What?", "text": "What? [4]", "status": "ok", "warning": "read 4 frames", "finish_reason": "stop",
        "frame_count": 4, "fps_sampled": 1.0, "duration_s": 4.0, "width": 64, "height": 48, "prompt_tokens": 5,
        "vision_tokens": 4, "completion_tokens": 2, "model": "echo", "model_revision": "abc123",
    }  # fmt: skip


def test_a_job_with_a_fault_becomes_rows_without_being_opened(tmp_path: Path) -> None:
    (medium,) = write_media(tmp_path, a="4")
    questions = tuple(Question(prompt, "row 17", {"split": "train"}) for prompt in PROMPTS)
    jobs = [Job(medium, "a.mp4", questions[:1]), Job(medium, "a.mp4", questions, Fault("input", "bad_row", "t.csv:17"))]
    writer = RowList()
    tally = run(iter(jobs), writer)
    assert (tally.answered, tally.failed, tally.failures) == (1, 2, {"bad_row": 2})
    assert len(MadeClip.opened_in(tmp_path)) == 1
    assert [(row.id, row.error_stage, row.error) for row in writer.rows if row.status == "error"] == [
        ("row 17", "input", "t.csv:17")
    ] * 2
    assert [row.as_dict()["split"] for row in writer.rows] == ["train"] * 3


def test_media_are_opened_ahead_and_answered_in_order(tmp_path: Path) -> None:
    media = write_media(tmp_path, **{f"m{number:03}": "1" for number in range(300)})
    engine = EchoEngine(OPTIONS.model)
    taken: list[int] = []

    def jobs() -> Iterator[Job]:
        for job in read_jobs(media, PROMPTS[:1], is_media_path):
            taken.append(sum(not clip.closed for clip in MadeClip.opened_in(tmp_path)))
            yield job

    writer = RowList()
    assert run(jobs(), writer, engine=engine).answered == 300
    assert max(taken) <= AHEAD + 3  # and what the engine holds
    assert engine.most_waiting == 2
    assert [row.file_name for row in writer.rows] == [f"m{number:03}.mp4" for number in range(300)]


def test_a_limit_leaves_work_undone_and_says_so(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1", b="1", c="1")
    for most, stopped_by, answered in ((2, "limit", 2), (3, None, 3), (None, None, 3)):
        options = replace(OPTIONS, limits=RunLimits(media=most))
        tally = run(read_jobs(media, PROMPTS[:1], is_media_path), RowList(), options=options)
        assert (tally.stopped_by, tally.answered) == (stopped_by, answered)


@pytest.mark.parametrize("bad", ["unopenable", "broken", ""])
def test_a_run_stops_once_as_many_media_failed_as_may(tmp_path: Path, bad: str) -> None:
    media = write_media(tmp_path, **{f"m{number}": bad for number in range(9)}, z="1")
    options = replace(OPTIONS, limits=RunLimits(failures=3))
    writer = RowList()
    tally = run(read_jobs(media, PROMPTS[:1], is_media_path), writer, options=options)
    assert (tally.stopped_by, tally.media_failed, len(writer.rows)) == ("max_failures", 3, 3)


def test_the_model_is_not_loaded_for_media_that_are_not_there(tmp_path: Path) -> None:
    def load(options: ModelOptions) -> AnswerEngine:
        raise AssertionError

    writer = RowList()
    parts = RunParts(open_made_clip)
    jobs = read_jobs([str(tmp_path / "gone.mp4")], PROMPTS, is_media_path)
    answer_into(lambda: writer, jobs, load, OPTIONS, parts)
    assert (parts.tally.answered, parts.tally.failed) == (0, 2)
    assert writer.rows[0].model_revision is None


def test_a_model_that_cannot_be_had_leaves_the_output_alone(tmp_path: Path) -> None:
    def load(options: ModelOptions) -> AnswerEngine:
        raise ModelNotFound("no such model")

    writer = RowList()
    jobs = read_jobs(write_media(tmp_path, a="1"), PROMPTS, is_media_path)
    with pytest.raises(ModelNotFound):
        answer_into(lambda: writer, jobs, load, OPTIONS, RunParts(open_made_clip))
    assert not writer.rows


def test_what_is_done_is_left_out_question_by_question(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1", b="1")
    first, writer = RowList(), RowList()
    run(read_jobs(media, PROMPTS, is_media_path), first)
    done = [row for row in first.rows if (row.file_name, row.status) != ("b.mp4", "ok")]
    writer.done.add([(row.fingerprint, row.status == "error") for row in done])
    MadeClip.opened.clear()
    tally = run(read_jobs(media, PROMPTS, is_media_path), writer)
    assert (tally.answered, tally.failed, tally.skipped, tally.errors_skipped) == (1, 0, 3, 2)
    assert [(row.file_name, row.prompt) for row in writer.rows] == [("b.mp4", "What?")]
    assert len(MadeClip.opened_in(tmp_path)) == 1


def test_without_anything_left_no_model_is_loaded(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1")
    first, writer = RowList(), RowList()
    run(read_jobs(media, PROMPTS, is_media_path), first)
    writer.done.add([(row.fingerprint, False) for row in first.rows])

    def load(options: ModelOptions) -> AnswerEngine:
        raise AssertionError

    parts = RunParts(open_made_clip)
    answer_into(lambda: writer, read_jobs(media, PROMPTS, is_media_path), load, OPTIONS, parts)
    assert parts.tally.skipped == 2


def test_a_full_disk_ends_the_run_and_closes_clips(tmp_path: Path) -> None:
    writer = RowList(broken=True)
    with pytest.raises(OutputError, match="disk full"):
        run(read_jobs(write_media(tmp_path, a="1", b="1", c="1"), PROMPTS, is_media_path), writer)
    assert not writer.open


def test_progress_hears_of_everything(tmp_path: Path) -> None:
    progress = ProgressLog()
    run(read_jobs(write_media(tmp_path, a="2"), PROMPTS[:1], is_media_path), RowList(), progress)
    assert progress.events == [
        "loading echo",
        "loaded in float32, None",
        "opened a.mp4",
        "frames 1",
        "frames 1",
        "item done",
    ]
    assert [row.text for row in progress.rows] == ["What? [2]"]


class StuckEngine(EchoEngine):
    """Waits in its second step until a signal comes."""

    steps = 0

    def step(self) -> list[Answer | Failure]:
        self.steps += 1
        if self.steps == 2:
            threading.Timer(0.05, os.kill, (os.getpid(), self.number)).start()
            threading.Event().wait(10)
            raise AssertionError
        return super().step()

    number = signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait_closes_clips_and_keeps_rows(tmp_path: Path, number: signal.Signals) -> None:
    engine = StuckEngine(OPTIONS.model)
    engine.number = number
    writer = RowList()
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        run(read_jobs(write_media(tmp_path, a="1", b="1", c="1"), PROMPTS, is_media_path), writer, engine=engine)
    assert stop.value.exit_code == 128 + number
    assert len(writer.rows) == 2
    assert not writer.open
    assert signal.getsignal(number) == before


def test_a_signal_waits_for_a_point_where_it_may_come() -> None:
    order: list[str] = []
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        order.append("written")
        with pytest.raises(Interrupted):
            interrupts.check()
        with pytest.raises(Interrupted), interrupts.allowed():
            order.append("never")
    assert order == ["written"]


# Alone: jobs and an engine in, rows out


def test_each_question_of_each_job_gives_one_row(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="4", b="broken", c="unopenable", d="2")
    jobs = [asked(name, "What?", "Why is this too long?") for name in [*media, str(tmp_path / "gone.mp4")]]
    engine = EchoEngine(OPTIONS.model)
    rows = list(answer(jobs, engine, OPTIONS, RunParts(open_made_clip)))
    assert len(rows) == len({(row.id, row.prompt) for row in rows}) == 10
    assert {(Path(row.id).stem, row.text, row.error_type) for row in rows if row.prompt == "What?"} == {
        ("a", "What? [4]", None),
        ("b", None, "corrupt"),
        ("c", None, "no_video"),
        ("d", "What? [2]", None),
        ("gone", None, "not_found"),
    }
    assert {row.model_revision for row in rows} == {"abc123"}
    assert [row.model_revision for row in answer([asked("gone.mp4", "What?")], engine, OPTIONS)] == ["abc123"]


def test_questions_of_a_job_have_choices_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_text("2")
    path = str(tmp_path / "v.mp4")
    for given, told in ((None, ("a", "b")), (None, ("a", "b"))), ((None, None), ()), ((None, ()), (None, ())):
        engine = EchoEngine(OPTIONS.model)
        prompts = [Prompt(f"{number}?", choices=choices) for number, choices in enumerate(given)]
        job = Job(path, "v.mp4", tuple(Question(prompt, path) for prompt in prompts))
        if () not in given:
            rows = list(answer([job], engine, OPTIONS, RunParts(open_made_clip)))
            assert [row.choice for row in rows] == [choices and choices[0] for choices in given]
            assert engine.requests[0].choices == told
        assert QuestionParts.of(prompts).choices == told


def test_a_row_counts_when_the_next_is_asked_for(tmp_path: Path) -> None:
    (medium,) = write_media(tmp_path, a="4")
    parts = RunParts(open_made_clip, progress=ProgressLog())
    rows = answer([asked(medium, "What?", "Why?")], EchoEngine(OPTIONS.model), OPTIONS, parts)
    next(rows)
    assert (parts.tally.answered, parts.tally.frames, parts.progress.rows) == (0, 4, [])
    first = next(rows)
    assert (parts.tally.answered, parts.tally.media, len(parts.progress.rows)) == (1, 0, 1)
    assert next(rows, None) is None
    assert (parts.tally.answered, parts.tally.media, parts.tally.video_s) == (2, 1, 4.0)
    assert parts.progress.rows[1] is first


def test_a_medium_fails_once_however_many_of_its_questions_do(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="4", b="unopenable")
    parts = RunParts(open_made_clip)
    jobs = [asked(name, "too long", "What?", "too long, too") for name in media]
    list(answer(jobs, EchoEngine(OPTIONS.model), OPTIONS, parts))
    tally = parts.tally
    assert (tally.media, tally.media_failed, tally.answered, tally.failed) == (2, 2, 1, 5)
    assert [(failed.id, failed.error_type) for failed in tally.listed] in (
        [(media[0], "too_long"), (media[1], "no_video")],
        [(media[1], "no_video"), (media[0], "too_long")],
    )


def test_closing_it_early_closes_clips_and_ends_threads_and_the_engine_can_go_on(tmp_path: Path) -> None:
    media = write_media(tmp_path, **{f"m{number:02}": "1" for number in range(40)})
    before = set(threading.enumerate())
    engine = EchoEngine(OPTIONS.model)
    rows = answer([asked(name, "What?") for name in media], engine, OPTIONS, RunParts(open_made_clip))
    while next(rows) and engine.is_idle:
        pass
    assert not engine.is_idle  # it holds a medium of the run that is ended here
    rows.close()
    assert all(clip.closed for clip in MadeClip.opened_in(tmp_path))
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
    again = list(answer([asked(media[7], "Why?")], engine, OPTIONS, RunParts(open_made_clip)))
    assert [(row.id, row.text) for row in again] == [(media[7], "Why? [1]")]


def test_its_limits_are_those_of_the_options(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1", b="1", c="unopenable", d="unopenable", e="1")
    jobs = [asked(name, "What?") for name in media]
    for limits, stopped_by, failed in (
        (RunLimits(media=2), "limit", []),
        (RunLimits(failures=1), "max_failures", media[2:3]),
        (RunLimits(media=5, failures=3), None, media[2:4]),
    ):
        parts = RunParts(open_made_clip)
        rows = list(answer(jobs, EchoEngine(OPTIONS.model), replace(OPTIONS, limits=limits), parts))
        assert parts.tally.stopped_by == stopped_by
        assert [row.id for row in rows if row.status == "error"] == failed
        assert len(rows) == parts.tally.media
        assert stopped_by == "max_failures" or [row.id for row in rows if row.id not in failed] == (
            media[:2] if stopped_by else [media[0], media[1], media[4]]
        )


def test_what_lies_elsewhere_is_fetched_into_a_folder_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jobs = [asked(f"http://x/{text}.mp4", "What?", source=Stored(text, text)) for text in ("4", "unfetchable", "2")]
    rows = list(answer(jobs, EchoEngine(OPTIONS.model), OPTIONS, RunParts(open_made_clip)))
    assert {(row.id, row.text, row.error_stage, row.error_type) for row in rows} == {
        ("http://x/4.mp4", "What? [4]", None, None),
        ("http://x/unfetchable.mp4", None, "fetch", "not_found"),
        ("http://x/2.mp4", "What? [2]", None, None),
    }
    assert os.listdir(tmp_path / "llava-mini" / "fetched") == []


def test_runs_that_share_a_cache_fetch_one_after_the_other(tmp_path: Path) -> None:
    with FileCache(FetchOptions(cache_dir=tmp_path, cache_bytes=1)) as cache:
        for text in ("4", "2", "3"):
            jobs = [asked(f"http://x/{n}{text}", "What?", source=Stored(text, f"{n}{text}")) for n in range(5)]
            rows = answer(jobs, EchoEngine(OPTIONS.model), OPTIONS, RunParts(open_made_clip, cache=cache))
            assert [row.text for row in rows] == [f"What? [{text}]"] * 5  # a bound of 1 byte: each was let go


def test_what_reading_the_jobs_raises_comes_after_their_rows(tmp_path: Path) -> None:
    media = write_media(tmp_path, a="1", b="2")

    def jobs() -> Iterator[Job]:
        yield from (asked(name, "What?") for name in media)
        raise UsageError("broken list")

    rows = answer(jobs(), EchoEngine(OPTIONS.model), OPTIONS, RunParts(open_made_clip))
    assert [next(rows).id, next(rows).id] == media
    with pytest.raises(UsageError, match="broken list"):
        next(rows)


def test_the_part_of_a_medium_that_is_asked_about_is_opened(tmp_path: Path) -> None:
    (medium,) = write_media(tmp_path, a="4")
    opened: list[tuple[float | None, float | None, int, int]] = []

    def open_clip(path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening) -> Clip:
        opened.append((options.start, options.end, frame_size, chunk_frames))
        return open_made_clip(path, options, frame_size=frame_size, chunk_frames=chunk_frames, opening=opening)

    spans = [None, TimeSpan(3, 2.0, 3.5, "found"), TimeSpan(4, 9.0, 9.0, "nothing")]
    jobs = [asked(medium, "What?")._replace(span=span) for span in spans]
    rows = list(answer(jobs, EchoEngine(OPTIONS.model), OPTIONS, RunParts(open_clip)))
    assert sorted(opened, key=lambda one: one[0]) == [(1.0, None, 336, 32), (2.0, 3.5, 336, 32)]
    assert {(row.segment, row.start, row.end, row.error_type, row.warning) for row in rows} == {
        (None, 1.0, None, None, "read 4 frames"),
        (3, 2.0, 3.5, None, "found; read 4 frames"),
        (4, 9.0, 9.0, "empty", None),
    }


def test_the_model_is_loaded_once_at_the_first_medium_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_mini_cli.pipelines.run_jobs.HELD_BACK", 3)
    media = write_media(tmp_path, a="1", b="2")
    gone = [str(tmp_path / f"gone{number}.mp4") for number in range(5)]
    parts = RunParts(open_made_clip, progress=ProgressLog())
    jobs = [asked(name, "What?") for name in (*gone, *media)]
    rows = list(load_and_answer(jobs, EchoEngine, OPTIONS, parts))
    assert [row.id for row in rows] == [*gone, *media]
    assert [row.model_revision for row in rows] == [None] * 3 + ["abc123"] * 4  # more than are held back came first
    assert parts.progress.events.count("loading echo") == 1
    assert parts.progress.events.index("loading echo") == 3
    assert parts.tally.media == 7


def test_the_example_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "python-api.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import answer" in block]
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    load = ModuleType("llava_mini_cli.engine.load")  # without torch
    monkeypatch.setattr(load, "load_engine", EchoEngine, raising=False)
    monkeypatch.setitem(sys.modules, load.__name__, load)
    exec(block, {})
    said = capsys.readouterr().out.splitlines()
    assert sorted(said) == ["a.png ok What is shown? [1]", "gone.mp4 error no such file"]
