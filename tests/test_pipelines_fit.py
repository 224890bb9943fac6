"""--fit, and what the engine is told beforehand of the frames of a medium."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from archive_doubles import digest, index, index_options  # noqa: F401 - digest is a fixture
from cli_doubles import EchoEngine, MadeClip
from test_pipelines_forecast import HEADERS, OPTIONS, PRINT, job, probe, video
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app
from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.job import Job, Prompt, Question, TimeSpan
from llava_mini_cli.media.open import Opening
from llava_mini_cli.pipelines.answer import answer
from llava_mini_cli.pipelines.archive_media import StoredClip
from llava_mini_cli.pipelines.forecast import forecast
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.settings import RunOptions

FIT = RunOptions(ModelOptions("echo"), SamplingOptions(fit=True), GenerationOptions())


class ShortEngine(EchoEngine):
    """An engine that fits four frames beside `What?`, and five where it has choices."""

    def most_frames(self, prompts: object, generation: GenerationOptions, choices: object = ()) -> int | None:
        if choices:
            return 5 if choices == (("a", "b"),) else None
        return 4 if list(prompts) == ["What?"] else None  # pyright: ignore


def open_bounded(
    path: str, options: SamplingOptions, *, frame_size: int, chunk_frames: int, opening: Opening
) -> MadeClip:
    """A video of ten seconds, at most as many frames as are asked for, in the span that is asked for."""
    span = (options.end or 10.0) - (options.start or 0.0)
    frames = min(int(span * options.fps), options.max_frames or 1000)
    clip = MadeClip(path, str(frames))
    clip.info = replace(clip.info, fps_sampled=frames / span, duration_s=10.0)
    return clip


def asked(
    tmp_path: Path,
    options: RunOptions,
    prompt: str = "What?",
    span: TimeSpan | None = None,
    choices: tuple[str, ...] | None = None,
) -> tuple[object, ...]:
    """Frame count and warning of the row, and the frames that the engine was told of."""
    (tmp_path / "v.mp4").write_text("10")
    path, engine = str(tmp_path / "v.mp4"), ShortEngine(options.model)
    jobs = [Job(path, "v.mp4", (Question(Prompt(prompt, choices=choices), path),), span=span)]
    (row,) = answer(jobs, engine, options, RunParts(open_bounded))
    return row.frame_count, row.warning, engine.requests[0].frame_count


def test_the_engine_is_told_how_many_frames_will_come(tmp_path: Path) -> None:
    plain = replace(FIT, sampling=SamplingOptions())
    assert asked(tmp_path, plain) == (10, "read 10 frames", 10)


def test_a_video_that_is_too_long_is_thinned_out(tmp_path: Path) -> None:
    said = "thinned out to 4 frames, 0.4 a second, which fit the model's context; read 4 frames"
    assert asked(tmp_path, FIT) == (4, said, 4)
    assert asked(tmp_path, FIT, span=TimeSpan(1, 2.0, 10.0, "a span")) == (
        4,
        "a span; thinned out to 4 frames, 0.5 a second, which fit the model's context; read 4 frames",
        4,
    )


def test_choices_leave_room_of_their_own(tmp_path: Path) -> None:
    said = "thinned out to 5 frames, 0.5 a second, which fit the model's context; read 5 frames"
    assert asked(tmp_path, FIT, choices=("a", "b")) == (5, said, 5)


@pytest.mark.parametrize("sampling", [SamplingOptions(fit=True, max_frames=3), SamplingOptions(fit=True, end=4.0)])
def test_a_video_that_fits_is_left_alone(tmp_path: Path, sampling: SamplingOptions) -> None:
    frames = sampling.max_frames or 4
    assert asked(tmp_path, replace(FIT, sampling=sampling)) == (frames, f"read {frames} frames", frames)


def test_a_prompt_that_fits_no_frame_is_left_to_the_engine(tmp_path: Path) -> None:
    assert asked(tmp_path, FIT, "Why?") == (10, "read 10 frames", 10)


def test_rows_from_before_there_was_fit_are_known_and_those_with_it_are_other_work() -> None:
    plain = replace(FIT, sampling=SamplingOptions())
    assert "fit" not in plain.answer_settings()
    assert FIT.answer_settings() == {**plain.answer_settings(), "fit": 1}


def test_a_forecast_counts_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADERS, "day.mp4", video(86400.0))
    jobs = [job("short.mp4"), job("long.mp4"), job("p.png"), job("day.mp4")]
    found = forecast(iter(jobs), OPTIONS, probe, PRINT)  # ten frames fit
    assert (found.frames, found.frames_fit, found.too_long) == (9 + 11 + 1 + 86400, 9 + 10 + 1 + 10, 2)
    assert forecast(iter(jobs), OPTIONS, probe, None).frames_fit is None


@pytest.mark.usefixtures("digest")
def test_stored_features_are_thinned_out_as_the_frames_would_be(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("7")
    index(tmp_path / "x", tmp_path / "a.mp4", options=index_options(features="float32"))
    with open_archive(tmp_path / "x") as archive:
        medium = next(archive.each_medium())
        clip = StoredClip(archive, medium, SamplingOptions(fit=True, max_frames=3), [])
        times = [time for chunk in clip for time in chunk.times.tolist()]
        assert times == [1.0, 3.0, 5.0]
        assert (clip.info.frame_count, clip.info.fps_sampled) == (3, pytest.approx(3 / 7))
        span = StoredClip(archive, medium, SamplingOptions(start=2.0, end=4.0), [])
        assert span.info.frame_count is None


def test_fit_is_an_option_of_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[ShortEngine] = []

    def load(options: ModelOptions) -> ShortEngine:
        engines.append(ShortEngine(options))
        return engines[-1]

    monkeypatch.setattr("llava_mini_cli.pipelines.load_engine.load_engine", load)
    monkeypatch.setattr("llava_mini_cli.media.open.open_clip", open_bounded)
    monkeypatch.chdir(tmp_path)
    Path("v.mp4").write_text("10")
    done = CliRunner().invoke(app, ["ask", "v.mp4", "What?", "--fit"])
    assert json.loads(done.stdout)["frame_count"] == 4
    refused = CliRunner().invoke(app, ["index", "v.mp4", "-o", "a", "--fit"])
    assert refused.exit_code == 2
