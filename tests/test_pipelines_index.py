"""The loop of `index` and what it keeps, with doubles of the engine and of clips."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from archive_doubles import SeeingEngine, digest, direction, index, index_options, job  # noqa: F401 - a fixture
from cli_doubles import MadeClip, ProgressLog, open_made_clip

from llava_mini_cli import __version__
from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.engine.request import FrameShapes, Window
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.reader import open_archive
from llava_mini_cli.formats.archive.writer import is_gone
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.build_archive import _as_before, _windows, index_jobs
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.run_parts import RunParts

pytestmark = pytest.mark.usefixtures("digest")


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def table(archive: Path, name: str) -> list[dict[str, Any]]:
    """The rows of all parts of one table of an archive."""
    return [row for path in sorted((archive / name).glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_medium_is_kept_with_all_that_is_known(tmp_path: Path) -> None:
    medium = write(tmp_path, "a.mp4", "3")
    parts = index(tmp_path / "x", medium, parts=RunParts(open_made_clip, progress=ProgressLog()))
    tally = parts.tally
    assert (tally.media, tally.answered, tally.failed, tally.frames, tally.video_s) == (1, 1, 0, 3, 3.0)
    assert parts.progress.events[0] == "loading echo"
    (row,) = table(tmp_path / "x", "media")
    known = {name: row[name] for name in row if name not in ("indexed_at", "settings", "medium", "mtime")}
    assert known == {
        "path": str(medium), "file_name": "a.mp4", "size": 1, "media": "video",
        "duration_s": 3.0, "width": 64, "height": 48, "frames": 3, "frames_sampled": 3, "fps_sampled": 1.0,
        "model": "echo", "model_revision": "abc123", "status": "ok", "error": None, "error_type": None,
        "error_stage": None, "warning": "read 3 frames", "digest": "1-1b8751fe6881879544df", "frames_of": None,
    }  # fmt: skip
    assert json.loads(row["settings"])["fps"] == 1.0
    with open_archive(tmp_path / "x") as archive:
        assert archive.header.shapes == Shapes((1, 8), 4, (1, 3, 2))
        assert (archive.header.model_digest, archive.header.version) == ("digest of echo", __version__)
        assert archive.header.settings["dtype"] == "float32"
        assert next(archive.each_medium()).mtime_ns == medium.stat().st_mtime_ns
        columns = archive.frames(1)
        assert (columns.time.tolist(), columns.last_time.tolist()) == ([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
        np.testing.assert_array_equal(
            np.concatenate(list(archive.vectors(1))), [direction(0), direction(0), direction(1)]
        )
    frames = table(tmp_path / "x", "frames")
    assert [(row["frame"], row["stands_for"], row["token"][0]) for row in frames] == [(0, 1, 0), (1, 1, 1), (2, 1, 2)]


def test_what_is_there_is_left_and_what_changed_is_replaced(tmp_path: Path) -> None:
    media = [write(tmp_path, "a.mp4", "3"), write(tmp_path, "b.mp4", "broken")]
    index(tmp_path / "x", *media)

    def load(options: ModelOptions) -> SeeingEngine:
        raise AssertionError

    again = index(tmp_path / "x", *media, *media, job(media[0]), parts=RunParts(open_made_clip))
    assert (again.tally.answered, again.tally.failed, again.tally.skipped, again.tally.errors_skipped) == (0, 0, 2, 1)
    assert MadeClip.opened_in(tmp_path)
    media[0].write_text("14")
    changed = index(tmp_path / "x", *media, options=index_options(retry_errors=True))
    assert (changed.tally.answered, changed.tally.failed, changed.tally.skipped) == (1, 1, 0)
    with open_archive(tmp_path / "x") as archive:
        assert [(medium.file_name, medium.frames) for medium in archive.each_medium()] == [("a.mp4", 14)]


def test_a_medium_named_twice_is_indexed_once(tmp_path: Path) -> None:
    medium = write(tmp_path, "a.mp4", "3")
    tally = index(tmp_path / "x", medium, medium).tally
    assert (tally.answered, tally.media, tally.skipped) == (1, 1, 0)


def test_failures_are_remembered_and_told(tmp_path: Path) -> None:
    media = [tmp_path / "gone.mp4", write(tmp_path, "a.mp4", "2"), write(tmp_path, "broken.mp4", "broken")]
    tally = index(tmp_path / "x", *media, write(tmp_path, "c.mp4", "unopenable")).tally
    assert (tally.media, tally.answered, tally.failed, tally.media_failed) == (4, 1, 3, 3)
    assert tally.failures == {"not_found": 1, "corrupt": 1, "no_video": 1}
    assert tally.listed[0] == (str(media[0]), "not_found", "no such file")
    assert tally.video_s == 2.0
    with open_archive(tmp_path / "x") as archive:
        failures = {one.file_name: (one.error_stage, one.error_type, one.error) for one in archive.each_failure()}
        assert failures == {
            "gone.mp4": ("decode", "not_found", "no such file"),
            "broken.mp4": ("decode", "corrupt", "bad frame"),
            "c.mp4": ("decode", "no_video", "holds no video"),
        }
        assert [medium.file_name for medium in archive.each_medium()] == ["a.mp4"]
    (row,) = [row for row in table(tmp_path / "x", "media") if row["file_name"] == "broken.mp4"]
    assert (row["status"], row["frames"], row["frames_sampled"], row["media"]) == ("error", 0, 0, "video")


def test_without_a_medium_that_is_there_a_new_archive_is_none(tmp_path: Path) -> None:
    def load(options: ModelOptions) -> SeeingEngine:
        raise AssertionError

    parts = index(tmp_path / "x", tmp_path / "gone.mp4", tmp_path / "lost.mp4")
    assert (parts.tally.failed, parts.tally.media) == (2, 2)
    assert not (tmp_path / "x" / "archive.json").exists()
    index(tmp_path / "x", write(tmp_path, "a.mp4", "1"))
    index(tmp_path / "x", tmp_path / "gone.mp4")  # which an archive that is there remembers
    with open_archive(tmp_path / "x") as archive:
        assert [failure.file_name for failure in archive.each_failure()] == ["gone.mp4"]


def test_limits_end_it(tmp_path: Path) -> None:
    media = [write(tmp_path, f"{name}.mp4", "1") for name in "abc"]
    tally = index(tmp_path / "x", *media, options=index_options(limits=RunLimits(media=2))).tally
    assert (tally.answered, tally.stopped_by) == (2, "limit")
    gone = [tmp_path / f"gone{number}.mp4" for number in range(3)]
    tally = index(tmp_path / "x", *gone, options=index_options(limits=RunLimits(failures=2))).tally
    assert (tally.failed, tally.stopped_by) == (2, "max_failures")


def test_frames_that_look_alike_are_left_out_on_request(tmp_path: Path) -> None:
    index(tmp_path / "x", write(tmp_path, "a.mp4", "5"), options=index_options(dedupe=0.0))
    frames = table(tmp_path / "x", "frames")
    assert [(row["frame"], row["time"], row["last_time"], row["stands_for"], row["token"][0]) for row in frames] == [
        (0, 0.0, 1.0, 2, 0), (2, 2.0, 3.0, 2, 2), (4, 4.0, 4.0, 1, 4),
    ]  # fmt: skip
    (row,) = table(tmp_path / "x", "media")
    assert (row["frames"], row["frames_sampled"]) == (3, 5)
    index(tmp_path / "y", write(tmp_path, "a.mp4", "5"), options=index_options(dedupe=1.0))
    assert [row["stands_for"] for row in table(tmp_path / "y", "frames")] == [5]  # a right angle is a distance of 1


def test_a_model_without_embeddings_makes_an_archive_without_them(tmp_path: Path) -> None:
    engine = SeeingEngine(ModelOptions("echo"))
    engine.frame_shapes = FrameShapes((1, 8), None, (1, 3, 2))
    index(tmp_path / "x", write(tmp_path, "a.mp4", "2"), engine=engine)
    with open_archive(tmp_path / "x") as archive:
        assert archive.header.shapes.clip is None


@pytest.mark.parametrize(("kind", "asked"), [("float16", "float16"), ("float32", "float32"), ("int8", "float32")])
def test_features_are_kept_as_asked(tmp_path: Path, kind: str, asked: str) -> None:
    wanted: list[str | None] = []

    class Noting(SeeingEngine):
        def _encoded(self, times: Any, features: str | None) -> Any:
            wanted.append(features)
            return super()._encoded(times, features)

    medium = write(tmp_path, "a.mp4", "2")
    index(tmp_path / "x", medium, engine=Noting(ModelOptions("echo")), options=index_options(features=kind))
    assert wanted == [asked] * 2
    with open_archive(tmp_path / "x") as archive:
        (found,) = archive.features(next(archive.each_medium()))
        np.testing.assert_allclose(found[0][1], np.ones((1, 3, 2)), rtol=0.01)


def test_captions_are_kept_by_their_windows(tmp_path: Path) -> None:
    log = ProgressLog()
    medium = write(tmp_path, "a.mp4", "7")
    options = index_options(caption_every=2.0, caption_prompt="Well?")
    index(tmp_path / "x", medium, options=options, parts=RunParts(open_made_clip, progress=log))
    captions = table(tmp_path / "x", "captions")
    assert [(row["start"], row["end"], row["prompt"], row["text"]) for row in captions] == [
        (0.0, 2.0, "Well?", "caption 0"), (6.0, 7.0, "Well?", "caption 3"),
    ]  # fmt: skip
    assert [(row["finish_reason"], row["frame_count"]) for row in captions] == [("stop", 2)] * 2
    assert log.events[-3:] == [
        "a.mp4: read 7 frames",
        "a.mp4: no caption: no room",
        "item done",
    ]  # none for an empty window
    (row,) = table(tmp_path / "x", "media")
    assert row["warning"] == "read 7 frames; no caption: no room"
    index(tmp_path / "y", write(tmp_path, "b.mp4", "broken"), options=options)
    assert table(tmp_path / "y", "captions") == []


@pytest.mark.parametrize(
    ("duration", "every", "windows"),
    [
        (None, 2.0, ((0.0, float("inf")),)),
        (2.0, 2.0, ((0.0, float("inf")),)),
        (4.0, 2.0, ((0.0, 2.0), (2.0, 4.0))),
        (4.1, 2.0, ((0.0, 2.0), (2.0, 4.0), (4.0, 6.0))),
        (9.0, None, ()),
    ],
)
def test_windows(duration: float | None, every: float | None, windows: tuple[tuple[float, float], ...]) -> None:
    info = ClipInfo("a", "video", 1, 1, duration, None, None)
    assert _windows(info, every) == tuple(Window(*span) for span in windows)


def test_what_is_gone_is_dropped_on_request(tmp_path: Path) -> None:
    media = [write(tmp_path, f"{name}.mp4", "1") for name in "ab"]
    remote = job(media[0])._replace(item=("http://x/a.mp4", None, None))
    index(tmp_path / "x", *media, remote)
    media[1].unlink()
    assert index(tmp_path / "x", media[0]).tally.dropped == 0
    assert index(tmp_path / "x", options=index_options(prune=True)).tally.dropped == 1
    with open_archive(tmp_path / "x") as archive:
        assert sorted(medium.path for medium in archive.each_medium()) == [str(media[0]), "http://x/a.mp4"]


def test_what_is_gone_for_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = write(tmp_path, "shard.tar", "1")
    assert not is_gone(str(there))
    assert is_gone(str(tmp_path / "none"))
    assert is_gone("a\0b")
    assert not is_gone(str(there / "member.mp4"))
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    assert not is_gone(str(tmp_path / "dangling"))


def test_another_model_or_other_settings_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    media = [write(tmp_path, f"{name}.mp4", "1") for name in "ab"]
    index(tmp_path / "x", media[0])
    for options in (
        IndexOptions(ModelOptions("other"), SamplingOptions()),
        IndexOptions(ModelOptions("echo"), SamplingOptions(fps=2.0)),
        index_options(features="int8"),
    ):
        with pytest.raises(UsageError):
            index(
                tmp_path / "x", media[1], options=options, parts=RunParts(open_made_clip, find_fault=lambda job: 1 / 0)
            )


def test_a_model_in_a_folder_is_remembered_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    index(tmp_path / "x", write(tmp_path, "a.mp4", "1"), options=IndexOptions(ModelOptions("model"), SamplingOptions()))
    with open_archive(tmp_path / "x") as archive:
        assert archive.header.model == str(tmp_path / "model")


def test_damage_is_counted(tmp_path: Path) -> None:
    index(tmp_path / "x", write(tmp_path, "a.mp4", "1"))
    (tmp_path / "x" / "media" / "part-000001.parquet").write_bytes(b"nonsense")
    tally = index(tmp_path / "x", write(tmp_path, "a.mp4", "1")).tally
    assert [damage.part for damage in tally.damage] == [1]
    assert tally.answered == 1


# The options


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dedupe": -0.1}, "--dedupe is a distance, 0 to 2, not -0.1"),
        ({"dedupe": 2.0}, "--dedupe is a distance, 0 to 2, not 2"),
        ({"caption_every": 0.0}, "--caption-every must be above 0 seconds, not 0"),
        ({"caption_every": float("inf")}, "--caption-every must be above 0 seconds, not inf"),
    ],
)
def test_options_are_checked(changes: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        index_options(**changes)
    assert index_options(dedupe=0.0, caption_every=0.1).dedupe == 0


def test_the_settings_of_an_archive() -> None:
    plain = IndexOptions(ModelOptions("m"), SamplingOptions(2.0, 9, 1.0, 3.0)).settings("bfloat16")
    assert plain == {
        "fps": 2.0, "max_frames": 9, "start": 1.0, "end": 3.0, "dtype": "bfloat16", "quantize": None, "dedupe": None,
        "caption_every": None, "caption_prompt": None,
    }  # fmt: skip
    usual = index_options(caption_every=4.0).settings("float32")
    assert usual["caption_prompt"] == "Please describe what is shown in detail."
    assert set(usual) - set(plain) == {"max_new_tokens"}
    generation = GenerationOptions(temperature=0.5, top_p=0.9, seed=3, repetition_penalty=1.1)
    model = ModelOptions("m", prompt_layout="reference")
    odd = IndexOptions(model, SamplingOptions(), caption_every=4.0, generation=generation).settings("float32")
    assert {name: odd[name] for name in set(odd) - set(usual)} == {
        "prompt_layout": "reference", "temperature": 0.5, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.1,
    }  # fmt: skip


def test_an_archive_goes_on_in_the_format_that_auto_took_when_it_was_made(tmp_path: Path) -> None:
    small = SeeingEngine(ModelOptions("echo"))
    small.dtype, small.weight_format = "bfloat16", "int8"
    index(tmp_path / "x", write(tmp_path, "a.mp4", "3"), engine=small)
    with open_archive(tmp_path / "x") as archive:
        settings = archive.header.settings
        assert (settings["dtype"], settings["quantize"]) == ("bfloat16", "int8")
    loaded: list[ModelOptions] = []

    def load(model: ModelOptions) -> SeeingEngine:
        loaded.append(model)
        return small

    jobs = iter([job(write(tmp_path, "b.mp4", "2"))])
    parts = RunParts(open_made_clip)
    index_jobs(jobs, tmp_path / "x", load, index_options(), parts)
    assert loaded == [ModelOptions("echo", dtype="bfloat16", quantize="int8")]
    assert (parts.tally.answered, parts.tally.weight_format) == (1, "int8")
    other = replace(index_options(), model=ModelOptions("echo", dtype="float32"))
    with pytest.raises(UsageError, match="quantize"):
        index(tmp_path / "x", write(tmp_path, "c.mp4", "2"), options=other)


@pytest.mark.parametrize("settings", [{"dtype": "load"}, {"dtype": "auto", "quantize": "x"}, {}])
def test_an_archive_with_no_format_of_ours_leaves_the_choice(settings: dict[str, str]) -> None:
    there = ArchiveHeader("echo", None, "d", Shapes((1, 8), 4, (1, 3, 2)), None, settings)
    assert _as_before(ModelOptions("echo"), there) == ModelOptions("echo")
