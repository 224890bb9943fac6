"""Cuts that are found as a video is decoded: which they are, when they are known, and that frames stay as they were."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import media_films as films
import numpy as np
import pytest
from PIL import Image
from scene_films import cuts_of, film_of, picture, pictures, scene_film

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media.child import Child
from llava_mini_cli.media.decoders import DECODERS, Decoder, Pixels, Plan, decord_installed
from llava_mini_cli.media.endings import SignalledError
from llava_mini_cli.media.open import open_clip

LENGTHS = (25, 33, 7, 40, 21)  # frames, ten a second
CUTS = [cut / 10 for cut in cuts_of(LENGTHS)]
SCORES = SamplingOptions(scene_threshold=10.0, decode_timeout=20)


# 25 frames a second, then 5. Encoded as if there were 10 a second, several get the same time.
UNEVEN = ("-vf", "settb=1/1000,setpts='if(lt(N,75),N/25,3+(N-75)/5)/TB'", "-fps_mode", "passthrough", *films.H264)


MEDIA = {
    "b-frames.mp4": lambda path: (scene_film(path, LENGTHS, *films.B_FRAMES), CUTS),
    "uneven.mkv": lambda path: (scene_film(path, (40, 35, 8, 7), *UNEVEN, fps="25"), [1.6, 3.0, 4.6]),
    "late.mkv": lambda path: (scene_film(path, LENGTHS, *films.H264, "-output_ts_offset", "3600"), CUTS),
    "stream.ts": lambda path: (scene_film(path, LENGTHS, *films.B_FRAMES), CUTS),
    "twice.mkv": lambda path: (scene_film(path, (40, 35, 8, 7), *UNEVEN), [1.6, 3.0, 4.6]),
    "thirds.mp4": lambda path: (scene_film(path, (20, 25), fps="15"), [pytest.approx(4 / 3)]),
}


def found(path: Path, options: SamplingOptions = SCORES, **more: Any) -> list[float] | None:
    """The cuts of a video. Those up to a chunk's last frame are there when the chunk is."""
    with open_clip(path, options, chunk_frames=3, **more) as clip:
        known = [(chunk.times[-1], None if clip.cuts is None else [*clip.cuts]) for chunk in clip]
    for time, cuts in known:
        assert cuts is None or [one for one in clip.cuts or () if one <= time] == [one for one in cuts if one <= time]
    return clip.cuts


@pytest.mark.parametrize("name", MEDIA)
def test_cuts_are_where_they_were_made_and_frames_are_as_before(tmp_path: Path, name: str) -> None:
    path, cuts = MEDIA[name](tmp_path / name)
    assert found(path) == pytest.approx(cuts, abs=1e-6)
    for fps in (1.0, 4.0):
        with (
            open_clip(path, replace(SCORES, fps=fps)) as clip,
            open_clip(path, replace(SCORES, fps=fps, scene_threshold=None, decoder="ffmpeg")) as plain,
        ):
            seen = list(clip), list(plain)
        assert (clip.info, clip.warnings, plain.cuts) == (plain.info, plain.warnings, None)
        for kind in ("times", "pixels"):
            np.testing.assert_array_equal(*(np.concatenate([getattr(one, kind) for one in of]) for of in seen))


def test_a_frame_at_a_cut_has_the_very_time_of_the_cut(tmp_path: Path) -> None:
    """Not one that differs in its last digits, or the frame would count to the scene before."""
    path = scene_film(tmp_path / "a.mp4", [7] * 20, fps="15")
    with open_clip(path, replace(SCORES, fps=30.0)) as clip:
        times = {time for chunk in clip for time in chunk.times.tolist()}
    assert len(clip.cuts or ()) == 19
    assert times.issuperset(clip.cuts or ())


def test_what_lies_outside_start_and_end_changes_no_cut(tmp_path: Path) -> None:
    path = scene_film(tmp_path / "a.mp4", (400, 500, 7, 300), *films.H264, fps="20")  # long enough to leap to the start
    assert found(path) == [20.0, 45.0, 45.35]
    some = found(path, replace(SCORES, start=44.0, end=50.0))
    assert some is not None
    assert [cut for cut in some if cut >= 44.0] == [45.0, 45.35]


@pytest.mark.parametrize(
    ("frames", "cuts"),
    [
        pytest.param([0] * 15 + [5] + [0] * 15, [1.5], id="flash"),  # its end is none: the change is as large
        pytest.param([0] * 15 + [5] * 2 + [0] * 15, [1.5, 1.7], id="two frames"),
        pytest.param([0] * 30, [], id="motion alone"),
    ],
)
def test_a_flash_begins_one_scene(tmp_path: Path, frames: Sequence[int], cuts: list[float]) -> None:
    path = film_of((picture(scene, number) for number, scene in enumerate(frames)), tmp_path / "a.mp4")
    assert found(path) == cuts


@pytest.mark.parametrize("through_black", [False, True])
def test_a_fade_of_a_second_is_no_cut(tmp_path: Path, through_black: bool) -> None:
    def faded() -> Iterator[np.ndarray]:
        first, second = picture(0, 0), picture(2, 0)
        yield from [first] * 15
        for share in np.linspace(0, 1, 30):
            if through_black:
                one, share = (first, 1 - 2 * share) if share < 0.5 else (second, 2 * share - 1)
                yield (one * share).astype(np.uint8)
            else:
                yield (first * (1 - share) + second * share).astype(np.uint8)
        yield from [second] * 15

    assert found(film_of(faded(), tmp_path / "a.mp4", fps="30")) == []


def test_the_threshold_says_how_much_must_change(tmp_path: Path) -> None:
    def brighter(grey: int) -> np.ndarray:
        return np.full((72, 128, 3), grey, np.uint8)

    steps = [60] * 10 + [80] * 10 + [140] * 10 + [255] * 10  # by 8, 23 and 45 hundredths
    path = film_of(map(brighter, steps), tmp_path / "a.mp4")
    options = {threshold: replace(SCORES, scene_threshold=threshold) for threshold in (5.0, 10.0, 30.0, 60.0)}
    assert {threshold: found(path, one) for threshold, one in options.items()} == {
        5.0: [1.0, 2.0, 3.0], 10.0: [2.0, 3.0], 30.0: [3.0], 60.0: [],
    }  # fmt: skip


def test_there_are_no_cuts_where_not_every_frame_is_decoded(tmp_path: Path) -> None:
    path = scene_film(tmp_path / "a.mp4", (1000, 1000, 1000), *films.H264, fps="25")
    assert found(path, replace(SCORES, fps=0.02)) is None
    assert found(path, replace(SCORES, fps=0.2)) == [40.0, 80.0]
    if decord_installed():
        assert found(path, replace(SCORES, decoder="decord")) is None
    moving = tmp_path / "a.gif"
    first, *rest = (Image.fromarray(one) for one in pictures((3, 3)))
    first.save(moving, save_all=True, append_images=rest, duration=500)
    assert found(moving) is None


# What goes wrong


def killed_at(second: float, times: int, name: str = "SIGKILL") -> Decoder:
    """ffmpeg, of which nothing behind this second arrives, as it is ended by a signal; `times` runs of it."""
    ffmpeg, left = DECODERS["ffmpeg"], [name] * times

    def read(child: Child, plan: Plan) -> Iterator[tuple[int, Pixels]]:
        end = None if not left else left.pop()

        def scored(pts: int, score: float) -> None:
            assert plan.scored is not None
            if end is None or pts * plan.time_base <= second:
                plan.scored(pts, score)

        for pts, pixels in ffmpeg.read(child, replace(plan, scored=scored)):
            if end is None or pts * plan.time_base <= second:
                yield pts, pixels
        if end is not None:
            raise SignalledError(end)

    return replace(ffmpeg, read=read)


@pytest.mark.parametrize("second", [0.3, 6.0, 12.4])
def test_a_decoder_that_is_killed_once_finds_the_same_cuts(tmp_path: Path, second: float) -> None:
    """Also behind the last frame that is looked at, which is at 12.0 s."""
    path = scene_film(tmp_path / "a.mp4", (*LENGTHS[:-1], 16, 5), *films.B_FRAMES)
    with open_clip(path, SCORES) as clip:
        assert list(clip)[-1].times[-1] == 12.0
    assert found(path, decoders={"ffmpeg": killed_at(second, 1)}) == [*CUTS, 12.1]


def test_a_decoder_that_is_killed_twice_gives_no_part_of_the_cuts(tmp_path: Path) -> None:
    path = scene_film(tmp_path / "a.mp4", (*LENGTHS[:-1], 16, 5), *films.B_FRAMES)
    with pytest.raises(MediaError, match="ended from outside") as caught:
        found(path, decoders={"ffmpeg": killed_at(12.0, 2)})
    assert caught.value.kind == "decoder_killed"
    with open_clip(path, SCORES, decoders={"ffmpeg": killed_at(12.0, 2, "SIGSEGV")}) as clip:
        assert sum(len(chunk.times) for chunk in clip) == clip.info.frame_count
    assert (clip.cuts, clip.warnings) == (CUTS, ["scenes at the end may be missing: the decoder crashed (SIGSEGV)"])


def test_damage_leaves_the_cuts_that_can_be_seen(tmp_path: Path) -> None:
    whole = scene_film(tmp_path / "a.mkv", (40, 40, 40, 40), *films.H264, "-g", "10")
    path = films.cut(whole, tmp_path / "cut.mkv", 0.6)
    assert (found(path) or [])[:2] == [4.0, 8.0]
