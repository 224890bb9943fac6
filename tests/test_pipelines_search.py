"""Searching, checking and asking an archive, without a model: made vectors, scores by numpy, an engine's double."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archive_doubles import SeeingEngine, digest, direction, index, index_options  # noqa: F401 - a fixture
from cli_doubles import EchoEngine, MadeClip, open_made_clip

from llava_mini_cli.commands.flags.search_flags import MARGIN, SearchFlags
from llava_mini_cli.config import ModelOptions, SamplingOptions
from llava_mini_cli.engine.request import Answer, Failure, Request
from llava_mini_cli.errors import ArchiveError, MediaError, ModelNotFound, UsageError
from llava_mini_cli.formats.archive.layout import ArchiveHeader, Shapes
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.near import NearFacts, Stretch
from llava_mini_cli.formats.archive.reader import Archive, StoredMedium, open_archive
from llava_mini_cli.formats.job import Fault, Job, Prompt
from llava_mini_cli.media.open import UNWATCHED
from llava_mini_cli.pipelines import check as checking
from llava_mini_cli.pipelines import find as finding
from llava_mini_cli.pipelines import search_archive
from llava_mini_cli.pipelines.archive_media import StoredClip, StoredMedia, sampling_of
from llava_mini_cli.pipelines.check import check, widened
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.pictures import picture_name, pictures
from llava_mini_cli.pipelines.scored_spans import LEAST, SHARE, ScoredSpan, spans
from llava_mini_cli.pipelines.search_archive import Scanner, SearchOptions, combined, part_scores, search

pytestmark = pytest.mark.usefixtures("digest")


def score_file(path: Path, rows: int, query: np.ndarray, check: object) -> np.ndarray:
    return np.fromfile(path, "<f2").reshape(rows, -1).astype(np.float32) @ query


def score_batches(batches: Any, query: np.ndarray) -> np.ndarray:
    return np.concatenate([batch.astype(np.float32) @ query for batch in batches])


NOTED = "read 7 frames; no caption: no room"  # of a.mp4
SCANNER = Scanner(score_file, score_batches)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archive `x` of a.mp4 (7 s: 0 0 1 1 2 2 3) and b.mp4 (3 s), captioned every 2 s; the numbers are directions."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llava_mini_cli.pipelines.build_archive.model_digest", lambda model, revision: "digest of echo")
        for name, text in (("a.mp4", "7"), ("b.mp4", "3")):
            (folder / name).write_text(text)
            options = index_options(caption_every=2.0, features="float32")
            index(folder / "x", folder / name, options=options)
        index(folder / "x", folder / "gone.mp4", options=options)
    return folder


def found(folder: Path, query: np.ndarray, options: SearchOptions = SearchOptions(10)) -> list[Moment]:  # noqa: B008
    with open_archive(folder / "x") as archive:
        return search(archive, query, options, SCANNER)


def test_the_best_moments_with_all_that_is_known(made: Path) -> None:
    moments = found(made, direction(1), SearchOptions(most=2))
    assert moments[0] == Moment(
        rank=1, score=1.0, path=str(made / "a.mp4"), file_name="a.mp4", media="video", time=2.0, start=1.5, end=3.5,
        frames=2, duration_s=7.0, caption=None,
    )  # fmt: skip
    assert (moments[1].rank, moments[1].file_name, moments[1].time) == (2, "b.mp4", 2.0)
    assert (moments[1].start, moments[1].end) == (1.5, 2.5)
    assert len(found(made, direction(1))) > 2


def test_the_ends_of_a_video_are_the_ends_of_its_moments(made: Path) -> None:
    first = found(made, direction(0), SearchOptions(most=1))[0]
    assert (first.start, first.end, first.caption) == (0.0, 1.5, "caption 0")
    last = found(made, direction(3), SearchOptions(most=1))[0]
    assert (last.time, last.start, last.end, last.frames, last.caption) == (6.0, 5.5, 6.5, 1, "caption 3")


def test_an_end_is_never_behind_the_video(tmp_path: Path) -> None:
    (tmp_path / "c.mp4").write_text("2")

    class Short(MadeClip):
        def __init__(self, path: str, text: str) -> None:
            super().__init__(path, text)
            self.info = replace(self.info, duration_s=1.2)

    from llava_mini_cli.pipelines.run_parts import RunParts

    def open_short(path: str, options: SamplingOptions, **more: Any) -> MadeClip:
        return Short(path, "2")

    index(tmp_path / "x", tmp_path / "c.mp4", parts=RunParts(open_short))
    (moment,) = found(tmp_path, direction(0))
    assert (moment.start, moment.end) == (0.0, 1.2)


def test_what_is_asked_for_narrows_it(made: Path) -> None:
    assert [moment.file_name for moment in found(made, direction(1), SearchOptions(path="b*", most=1))] == ["b.mp4"]
    assert found(made, direction(1), SearchOptions(10, path=f"{made}/b*"))[0].file_name == "b.mp4"
    assert {moment.time for moment in found(made, direction(1), SearchOptions(after=3.0, most=1))} == {3.0}
    assert {moment.time for moment in found(made, direction(1), SearchOptions(before=2.0, most=2))} == {2.0}
    assert [moment.score for moment in found(made, direction(1), SearchOptions(10, min_score=1.0))] == [1.0, 1.0]
    assert found(made, direction(1), SearchOptions(10, min_score=1.1)) == []
    assert found(made, direction(1), SearchOptions(10, path="none*")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"most": 0}, "-k must be at least 1, not 0"),
        ({"before": 2.0, "after": 2.0}, r"--before \(2 s\) must come after --after \(2 s\)"),
        ({"before": 0.0}, r"--before \(0 s\) must come after --after \(0 s\)"),
        ({"approximate": True, "path": "a"}, "--approximate looks everywhere"),
        ({"approximate": True, "after": 1.0}, "--approximate looks everywhere"),
        ({"approximate": True, "before": 1.0}, "--approximate looks everywhere"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SearchOptions(**({"most": 10} | options))
    assert SearchFlags().most == 10
    assert SearchOptions(10, before=0.1).before == 0.1


def test_scores_are_had_from_the_table_where_the_plain_file_is_missing(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made / "x", tmp_path / "x")
    (tmp_path / "x" / "vectors" / "part-000001.f16").unlink()
    assert found(tmp_path, direction(1))[0].score == 1.0


def test_numbers_that_were_not_written_are_damage(made: Path) -> None:
    with open_archive(made / "x") as archive:
        rows = len(archive.frames(1).medium)
        for scores in (np.full(rows, np.nan), np.zeros(rows - 1)):
            scanner = Scanner(lambda path, rows, query, check, scores=scores: scores, score_batches)
            with pytest.raises(ArchiveError, match=r"^frames/part-000001\.parquet: its embeddings are not the numbers"):
                part_scores(archive, 1, rows, direction(0), scanner)
        assert archive.damage == []

        def unreadable(path: Path, rows: int, query: np.ndarray, check: object) -> np.ndarray:
            raise EOFError("it is shorter")

        scanner = Scanner(unreadable, score_batches)
        assert search(archive, direction(1), SearchOptions(10), scanner) == found(made, direction(1))
        assert [(each.file, each.message) for each in archive.damage] == [
            ("vectors/part-000001.f16", "it is shorter"), ("vectors/part-000002.f16", "it is shorter"),
        ]  # fmt: skip


def test_several_queries_are_one() -> None:
    assert combined([direction(0), direction(1)]).tolist() == [0.5, 0.5, 0.0, 0.0]


def test_an_archive_without_embeddings_says_what_searching_needs(made: Path) -> None:
    with open_archive(made / "x") as archive:
        archive.header = replace(archive.header, shapes=Shapes((1, 8), None, (1, 3, 2)))
        with pytest.raises(UsageError, match="holds no CLIP embeddings"):
            search(archive, direction(0), SearchOptions(10), SCANNER)


def test_the_approximate_index_names_media_and_what_it_does_not_cover_is_searched_too(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def nearest(folder: Path, query: np.ndarray, frames: int) -> tuple[NearFacts, list[Stretch]]:
        asked.append(frames)
        with open_archive(folder) as archive:
            columns = archive.frames(1)
        rows = np.arange(len(columns.medium), dtype=np.int32)
        stretch = Stretch(1, int(columns.medium[0]), rows, columns.time, columns.last_time)
        dropped = replace(stretch, medium=999)
        return NearFacts([1], 7, 1, 1, 0.5, [0.0] * 4), [dropped, stretch]

    monkeypatch.setattr(search_archive, "nearest", nearest)
    with open_archive(made / "x") as archive:
        exact = search(archive, direction(1), SearchOptions(most=2), SCANNER)
        near = search(archive, direction(1), SearchOptions(most=2, approximate=True), SCANNER)
        assert archive.recall == 0.5
    assert near == exact
    assert asked == [1200]


# Spans of scores


def test_a_moment_is_a_peak_with_what_is_nearly_as_high() -> None:
    scores = np.array([0.1, 0.8, 0.9, 0.75, 0.1, 0.3, 0.1], np.float32)
    medium = np.zeros(7, np.int64)
    got = spans(medium, scores, 0.1, 9, -1.0)
    assert got[0] == ScoredSpan(1, 2, 3, pytest.approx(0.9))  # down to 0.9 - a quarter of 0.8
    assert got[1] == ScoredSpan(5, 5, 5, pytest.approx(0.3))
    assert [span.first for span in got] == [1, 5]
    assert spans(medium, scores, 0.1, 1, -1.0) == got[:1]
    assert spans(medium, scores, 0.1, 9, 0.5) == got[:1]
    assert (SHARE, LEAST) == (0.25, 0.02)


def test_noise_belongs_to_a_moment_where_nothing_stands_out() -> None:
    scores = np.array([0.50, 0.49, 0.485, 0.47], np.float32)
    (span,) = spans(np.zeros(4, np.int64), scores, 0.5, 9, -1.0)
    assert (span.first, span.last) == (0, 2)


def test_media_do_not_share_a_moment() -> None:
    medium = np.array([1, 1, 2, 2], np.int64)
    got = spans(medium, np.array([0.5, 0.9, 0.9, 0.5], np.float32), 0.8, 9, -1.0)
    assert [(span.first, span.best, span.last) for span in got] == [(1, 1, 1), (2, 2, 2)]
    assert spans(np.zeros(0, np.int64), np.zeros(0, np.float32), 0.0, 9, -1.0) == []


def test_of_equal_neighbours_the_first_is_the_peak_and_a_frame_belongs_to_one_moment() -> None:
    scores = np.array([0.9, 0.9, 0.8, 0.89, 0.1], np.float32)
    got = spans(np.zeros(5, np.int64), scores, 0.0, 9, -1.0)
    assert [(span.first, span.best, span.last) for span in got] == [(0, 0, 3)]  # 0.89 is a peak, but taken
    apart = np.array([0.5, 0.45, 0.3, 0.52, 0.3], np.float32)
    got = spans(np.zeros(5, np.int64), apart, 0.4, 9, -1.0)
    assert [(span.first, span.best, span.last) for span in got] == [(3, 3, 3), (0, 0, 0)]


# The model's own look


MOMENT = Moment(
    rank=1, score=0.5, path="a.mp4", file_name="a.mp4", media="video", time=4.0, start=3.0, end=5.0, frames=2,
    duration_s=7.0, caption=None,
)  # fmt: skip


def test_a_moment_is_widened_as_far_as_its_video_goes() -> None:
    assert (widened(MOMENT, 1.0).start, widened(MOMENT, 1.0).end) == (2.0, 6.0)
    assert (widened(MOMENT, 9.0).start, widened(MOMENT, 9.0).end) == (0.0, 7.0)
    assert widened(replace(MOMENT, duration_s=None), 9.0).end == 14.0
    assert widened(replace(MOMENT, duration_s=4.5), 1.0).end == 5.0  # a moment is never cut
    assert widened(replace(MOMENT, start=None), 1.0).end == 5.0
    assert widened(replace(MOMENT, end=None), 1.0).start == 3.0
    assert MARGIN == 5.0


class JudgingEngine(EchoEngine):
    """Says yes the more, the later its frames begin."""

    asked: list[Request] = []  # noqa: RUF012

    def _answer(self, request: Request, index: int, number: int, times: Sequence[float]) -> Answer | Failure:
        JudgingEngine.asked.append(request)
        answer = super()._answer(request, index, number, times)
        assert isinstance(answer, Answer)
        return replace(answer, p_yes=len(times) / 10)


def test_a_check_orders_moments_by_the_models_yes(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "load_engine", JudgingEngine)
    monkeypatch.setattr(checking, "the_model", lambda header, model: (model or header.model, "rev"))
    JudgingEngine.asked.clear()
    a, b, gone = (str(made / name) for name in ("a.mp4", "b.mp4", "gone.mp4"))
    moments = [
        replace(MOMENT, rank=1, path=b, start=0.0, end=1.0, duration_s=3.0),
        replace(MOMENT, rank=2, path=a, start=2.0, end=3.0),
    ]
    with open_archive(made / "x") as archive, Interrupts() as interrupts:
        ranked, failed = check(archive, moments, "Is it?", None, interrupts, 2.0)
        assert [(moment.rank, moment.path, moment.p_yes) for moment in ranked] == [(1, a, 0.5), (2, b, 0.3)]
        assert failed == []
        assert (ranked[0].start, ranked[0].end) == (2.0, 3.0)
        assert {(r.prompts, r.generation.max_new_tokens, r.generation.yes_no) for r in JudgingEngine.asked} == {
            (("Is it?",), 1, True)
        }
        with pytest.raises(KeyError):
            check(archive, [replace(MOMENT, path=gone)], "Is it?", None, interrupts, MARGIN)
    assert archive.header.features == "float32"


# The archive as a source of media


def test_stored_features_are_a_clip(made: Path) -> None:
    with open_archive(made / "x") as archive:
        medium = next(archive.each_medium())
        clip = StoredClip(archive, medium, SamplingOptions(start=2.0, end=4.0), ["odd"])
        (chunk,) = clip
        assert (chunk.times.tolist(), chunk.features.shape) == ([2.0, 3.0], (2, 1, 3, 2))
        assert clip.warnings == [medium.warning, "odd"]
        assert (clip.info.kind, clip.info.width, clip.info.height, clip.info.duration_s) == ("video", 64, 48, 7.0)
        assert (clip.info.frame_count, clip.info.fps_sampled, clip.info.path) == (None, 1.0, medium.path)
        assert clip.ready()
        assert list(StoredClip(archive, medium, SamplingOptions(start=50.0), [])) == []
        assert StoredClip(archive, medium, SamplingOptions(), []).info.frame_count == 7
        (whole,) = StoredClip(archive, medium, SamplingOptions(), [])
        assert whole.times.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_damaged_features_are_a_failure_of_their_medium(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(archive: Archive, medium: StoredMedium) -> Any:
        raise ArchiveError("a bad page")

    monkeypatch.setattr(Archive, "features", damaged)
    with open_archive(made / "x") as archive:
        clip = StoredClip(archive, next(archive.each_medium()), SamplingOptions(), [])
        with pytest.raises(MediaError, match="the archive is damaged: a bad page") as error:
            list(clip)
        assert error.value.kind == "corrupt"


def test_jobs_about_an_archive(made: Path) -> None:
    with open_archive(made / "x") as archive:
        media = StoredMedia(archive, open_made_clip)
        jobs = list(media.jobs((Prompt("Why?"), Prompt("What?"))))
        assert [(Path(job.path).name, len(job.questions), job.fault and job.fault.kind) for job in jobs] == [
            ("a.mp4", 2, None), ("b.mp4", 2, None), ("gone.mp4", 2, "not_found"),
        ]  # fmt: skip
        assert jobs[0].questions[0].id == str(made / "a.mp4")
        assert jobs[0].item == (str(made / "a.mp4"), 1, (made / "a.mp4").stat().st_mtime_ns)
        still = replace(MOMENT, rank=2, path=str(made / "b.mp4"), start=None, end=None, score=0.25)
        moments = [replace(MOMENT, path=str(made / "a.mp4")), still]
        first, second = media.moment_jobs(Prompt("Why?"), moments)
        assert first.questions[0].id == f"{made}/a.mp4#t=3.000,5.000"
        assert (second.questions[0].id, second.span.number) == (f"{made}/b.mp4", 2)
        assert first.span == (1, 3.0, 5.0, "asked about moment 1 of the 2 best alone (score 0.500)")
        assert [media.find_fault(job) for job in jobs] == [None, None, jobs[2].fault]


def test_features_are_reserved_for_and_notes_say_what_is_not_exact(made: Path) -> None:
    reserved: list[int] = []

    class Watching(type(UNWATCHED)):
        def reserve(self, size: int) -> None:
            reserved.append(size)

    with open_archive(made / "x") as archive:
        media = StoredMedia(archive, open_made_clip)
        load = media.loading(SeeingEngine)
        path = str(made / "a.mp4")
        given = {"frame_size": 336, "chunk_frames": 32, "opening": Watching()}
        assert media.answers_from_features
        assert media.open_clip(path, SamplingOptions(), **given).warnings == [NOTED]
        assert reserved == [7 * 1 * 3 * 2 * 4]
        load(ModelOptions("echo"))
        assert media.dtype == "float32"
        assert media.open_clip(path, SamplingOptions(), **given).warnings == [NOTED]
        media.dtype = "bfloat16"
        archive.header = replace(archive.header, features="int8")
        assert media.open_clip(path, SamplingOptions(), **given).warnings == [
            NOTED, "answered from features in int8", "answered in bfloat16 from features computed in float32",
        ]  # fmt: skip
        for header in (
            replace(archive.header, features=None),
            replace(archive.header, settings={**archive.header.settings, "dedupe": 0.1}),
        ):
            archive.header = header
            assert not media.answers_from_features
            assert isinstance(media.open_clip(path, SamplingOptions(), **given), MadeClip)


def test_files_that_changed_or_lie_inside_others_cannot_be_asked_about(made: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("3")
    (tmp_path / "b.mp4").write_text("3")
    media = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    inside = Job(str(tmp_path / "a.mp4" / "x.mp4"), "x.mp4", (), local=str(media[0]), item=(f"{media[0]}/x.mp4", 3, 4))
    remote = Job("http://x/c.mp4", "c.mp4", (), local=str(media[0]), item=("http://x/c.mp4", None, None))
    index(tmp_path / "x", *media, inside, remote)
    with open_archive(tmp_path / "x") as archive:
        stored = StoredMedia(archive, open_made_clip)
        jobs = {job.file_name: job for job in stored.jobs((Prompt("Why?"),))}
        media[1].write_text("12")
        assert stored.find_fault(jobs["a.mp4"]) is None
        changed = stored.find_fault(jobs["b.mp4"])
        assert changed == ("decode", "changed", "the file is not what was indexed; run llava-mini index again")
        lying = stored.find_fault(jobs["x.mp4"])
        assert lying is not None
        assert (lying.kind, "index again with --features" in lying.message) == ("unreadable", True)
        assert jobs["c.mp4"].source is not None
        assert jobs["c.mp4"].source.name == "http://x/c.mp4"
        fetched = jobs["c.mp4"]._replace(local=str(media[0]))
        assert stored.find_fault(fetched) is None
        told = Fault("fetch", "not_found", "gone")
        assert stored.find_fault(jobs["x.mp4"]._replace(fault=told)) == told


def test_files_that_an_archive_names_lie_below_the_media_root(made: Path, tmp_path: Path) -> None:
    with open_archive(made / "x") as archive:
        roots = (str(made / "a.mp4"),)  # a.mp4 alone
        media = StoredMedia(archive, open_made_clip, roots)
        assert [media.find_fault(job) for job in list(media.jobs((Prompt("Why?"),)))[:2]] == [None, None]  # not opened
        archive.header = replace(archive.header, features=None)
        inside, outside, _ = (media.find_fault(job) for job in media.jobs((Prompt("Why?"),)))
        assert inside is None
        assert outside == ("input", "refused", f"it lies outside of --media-root '{made / 'a.mp4'}'")


def test_an_archives_sampling_holds_unless_a_named_option_says_otherwise(made: Path) -> None:
    with open_archive(made / "x") as archive:
        mine = SamplingOptions(fps=9.0, start=3.0, decode_timeout=7.0)
        assert sampling_of(archive, mine) == SamplingOptions(decode_timeout=7.0)
        assert sampling_of(archive, SamplingOptions(), ["fps"]).fps == 1.0
        with pytest.raises(UsageError, match=r"--fps 9: the archive was sampled with 1\.0"):
            sampling_of(archive, mine, ["fps"])
        with pytest.raises(UsageError, match="--max-frames 4: "):
            sampling_of(archive, SamplingOptions(max_frames=4), ["max_frames"])


# The model of an archive


def test_an_archives_model_is_found_again_or_said_to_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    header = ArchiveHeader("org/m", "rev", "d" * 64, Shapes((1, 8), 4, (1, 3, 2)), None, {})

    def digest_of(name: str, revision: str | None, *, local_files_only: bool) -> str:
        if name == "none":
            raise ModelNotFound("no such model")
        return {("org/m", "rev"): "d" * 64, ("/here", None): "d" * 64, ("/here", "v2"): "d" * 64}.get(
            (name, revision), "e" * 64
        )

    monkeypatch.setattr(finding, "model_digest", digest_of)
    assert finding.the_model(header, None) == ("org/m", "rev")
    assert finding.the_model(header, "/here") == ("/here", None)
    assert finding.the_model(header, "/here", "v2") == ("/here", "v2")
    with pytest.raises(UsageError, match=r"made with the model .*, and 'other' is another \(eeeeeeee\)"):
        finding.the_model(header, "other")
    with pytest.raises(UsageError):
        finding.the_model(header, None, "v2")
    with pytest.raises(
        ModelNotFound, match=r"the archive was made with .*org/m.*: no such model; -m says where it is now"
    ):
        finding.the_model(header, "none")


# Pictures


def test_names_of_pictures_sort_as_their_moments_and_are_cut() -> None:
    assert picture_name(replace(MOMENT, rank=3, file_name="x/lecture.mp4", time=754.54)) == "003-lecture-754.5s.jpg"
    assert picture_name(replace(MOMENT, file_name="a.png", time=None)) == "001-a.jpg"
    long = picture_name(replace(MOMENT, file_name="é" * 150 + ".mp4", time=1.0))
    assert long == f"001-{'é' * 100}-1.0s.jpg"


def test_pictures_are_made_of_files_below_the_media_root_alone(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("in", "out"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "a.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out" / "a.png")
    paths = ("in/a.png", "out/a.png", "in/link.png", "in/../out/a.png", "in/\0.png", "gone.png")
    moments = [replace(MOMENT, path=f"{tmp_path}/{path}", time=None) for path in paths]
    inside, *outside = pictures(moments, (str(tmp_path / "in"),))
    assert isinstance(inside, bytes)
    assert outside == [f"it lies outside of --media-root '{tmp_path}/in'"] * 5
    assert isinstance(list(pictures(moments))[2], bytes)


def test_a_picture_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (said,) = pictures([replace(MOMENT, path=str(tmp_path / "none.mp4"))])
    assert isinstance(said, str)
    assert said
