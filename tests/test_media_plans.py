"""What the two decoders are asked for, and how what they write is read: exact commands and frames, no film."""

import importlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llava_mini_cli.geometry import nearest_index
from llava_mini_cli.media import decoders
from llava_mini_cli.media.decoders import DECODERS, DecoderError, Plan
from llava_mini_cli.media.ffmpeg_program import ffmpeg_binary

FFMPEG, DECORD = DECODERS["ffmpeg"], DECODERS["decord"]


def plan(*pts: int, total: int = 10_000, keys: range | None = None, **changes: Any) -> Plan:
    """Frames of 4x2 pixels, ten a second, a key frame every tenth, unless told otherwise."""
    plain = Plan(
        path=Path("/films/a.mp4"),
        stream=2,
        width=4,
        height=2,
        frame_size=3,
        time_base=Fraction(1, 10),
        pts=pts,
        indices=pts,
        total=total,
        timeline=np.arange(total),
        keys=np.array(range(0, total, 10) if keys is None else keys, np.int64),
    )
    return replace(plain, **changes)


def cuts(whole: Plan) -> list[tuple[tuple[int, ...], int]]:
    """The frames of each part, and the seconds after which its decoding begins."""
    parts = FFMPEG.parts(whole)
    assert [part.indices for part in parts] == [part.pts for part in parts]
    return [(part.pts, part.seek) for part in parts]


def test_the_rest_of_a_plan() -> None:
    whole = replace(plan(5, 6, 7), indices=(1, 2, 3))
    assert (whole.rest(1).pts, whole.rest(1).indices) == ((6, 7), (2, 3))
    assert (whole.part(0, 2).pts, whole.part(0, 2).indices) == ((5, 6), (1, 2))
    assert whole.rest(0) == whole


def test_ffmpeg_begins_anew_before_frames_that_lie_far_apart() -> None:
    assert cuts(plan(50, 5005, 9000, 9100)) == [((50,), 0), ((5005,), 499), ((9000, 9100), 899)]
    assert cuts(plan(5005)) == [((5005,), 499)]


@pytest.mark.parametrize(("key", "sought"), [(650, False), (651, True)])
def test_what_is_decoded_for_nothing_is_counted_from_the_key_frame(key: int, sought: bool) -> None:
    """600 frames from the one before to the key frame, and 601."""
    far = plan(50, 700, keys=range(key, 1000, 1000))
    assert cuts(replace(far, keys=np.array([0, key]))) == ([((50,), 0), ((700,), 69)] if sought else [((50, 700), 0)])


@pytest.mark.parametrize(("key", "seek"), [(600, 0), (601, 69)])
def test_the_first_part_is_sought_if_its_key_frame_is_far(key: int, seek: int) -> None:
    assert cuts(plan(700, keys=range(key, 1000, 1000))) == [((700,), seek)]


def test_nothing_is_sought_where_it_would_not_be_exact() -> None:
    far = plan(50, 9000)
    for odd in (
        replace(far, keys=far.keys[:0]),
        replace(far, time_base=Fraction(1001, 10_000)),
        replace(far, timeline=far.timeline - 1),
    ):
        (whole,) = FFMPEG.parts(odd)
        assert whole is odd
    assert len(FFMPEG.parts(replace(far, timeline=far.timeline))) == 2


def test_decoding_never_begins_before_the_first_second() -> None:
    assert cuts(plan(700, time_base=Fraction(1, 1000))) == [((700,), 0)]
    assert cuts(plan(2500, time_base=Fraction(1, 1000))) == [((2500,), 1)]


def test_the_command_of_ffmpeg() -> None:
    command = FFMPEG.command(plan(0, 1999, total=2000))
    early, late = "if(lt(pts,900),eq(pts,0),eq(pts,900))", "if(lt(pts,1999),eq(pts,1800),eq(pts,1999))"
    chosen = f"if(lt(pts,1800),{early},{late})"  # with a sign of life every 900 frames
    assert command.stdin.decode() == f"settb=1/10,select='{chosen}',scale=4:2"
    words = list(command.argv)
    options = dict(pairwise(words))
    assert words[0] == ffmpeg_binary()
    assert options["-i"] == "file:/films/a.mp4"
    assert options["-map"] == "0:2"
    assert options["-/filter:v"] == "/dev/stdin"
    assert (options["-f"], options["-pix_fmt"]) == ("rawvideo", "rgb24")
    assert (options["-threads"], options["-flush_packets"]) == ("1", "1")
    assert options["-enc_time_base"] == "1/10"
    assert options["-loglevel"] == "repeat+level+error"
    assert "-ss" not in words


def test_after_seeking_ffmpeg_counts_from_there() -> None:
    command = FFMPEG.command(plan(1005, 1006, seek=100))
    assert command.stdin.decode() == (
        "settb=1/10,select='if(lt(pts,5),eq(pts,0),if(lt(pts,6),eq(pts,5),eq(pts,6)))',scale=4:2"
    )
    assert ("-ss", "100") in pairwise(command.argv)


class Written:
    """A child that wrote these notes and bytes, said this, and ended so; what `Child` is to a decoder's reading."""

    def __init__(
        self, notes: list[int] | None = None, data: bytes = b"", said: tuple[str, ...] = (), status: int = 0
    ) -> None:
        self.notes = iter(notes or [])
        self.data = io.BytesIO(data)
        self.said = list(said)
        self.status = status
        self.expected = 0

    def expect(self) -> None:
        self.expected += 1

    def read_note(self, pause: float = 0.0) -> str | None:
        note = next(self.notes, None)
        return None if note is None else str(note)

    def read_into(self, buffer: memoryview) -> int:
        return self.data.readinto(buffer)

    def finish(self) -> int:
        return self.status


def frames(count: int, height: int = 2, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_what_ffmpeg_writes() -> None:
    """Signs of life are dropped, frames are squashed, and reading ends with the last one that was asked for."""
    made = frames(4)
    child: Any = Written((0, 2, 5, 9), made.tobytes(), status=1)
    found = dict(FFMPEG.read(child, plan(1002, 1005, seek=100)))
    squashed = made[:, nearest_index(2, 3)][:, :, nearest_index(4, 3)]
    assert list(found) == [1002, 1005]
    np.testing.assert_array_equal(found[1002], squashed[1])
    np.testing.assert_array_equal(found[1005], squashed[2])
    assert child.expected == 3  # at the beginning and after each frame but the last
    assert child.read_note() == "9"


def test_ffmpeg_may_give_fewer_frames_if_it_ends_well() -> None:
    child: Any = Written((0,), frames(1).tobytes())
    assert [pts for pts, _ in FFMPEG.read(child, plan(0, 5))] == [0]


def test_a_frame_that_is_cut_short_is_none() -> None:
    child: Any = Written((0, 5), frames(1).tobytes() + b"half")
    assert [pts for pts, _ in FFMPEG.read(child, plan(0, 5))] == [0]


@pytest.mark.parametrize(
    ("said", "text"), [(("[x @ 0x1] first.", "second"), "first"), ((), "ffmpeg ended with status 1")]
)
def test_how_ffmpeg_failed(said: tuple[str, ...], text: str) -> None:
    child: Any = Written(said=said, status=1)
    with pytest.raises(DecoderError) as caught:
        list(FFMPEG.read(child, plan(0)))
    assert str(caught.value) == text


def test_the_command_of_decord() -> None:
    whole = plan(3, 5, total=7, time_base=Fraction(1, 8))
    whole = replace(whole, indices=(1, 2), timeline=whole.timeline + 3)
    command = DECORD.command(whole)
    assert list(command.argv)[-2:] == ["-m", "llava_mini_cli.media.decord_child"]
    assert json.loads(command.stdin) == {
        "path": "/films/a.mp4",
        "threads": 2,
        "total": 7,
        "frame_size": 3,
        "height": 2,
        "width": 4,
        "tick": 0.125,
        "origin": 3,
        "pts": [3, 5],
        "indices": [1, 2],
    }
    assert DECORD.parts(whole) == [whole]


def test_what_decord_writes() -> None:
    made = frames(2, 3, 3)
    child: Any = Written(data=made.tobytes())
    found = list(DECORD.read(child, plan(3, 5)))
    assert [pts for pts, _ in found] == [3, 5]
    np.testing.assert_array_equal(np.stack([pixels for _, pixels in found]), made)
    assert child.expected == 3


@pytest.mark.parametrize(("said", "text"), [(("first", "last"), "last"), ((), "decord ended with status 1")])
def test_how_decord_failed(said: tuple[str, ...], text: str) -> None:
    child: Any = Written(data=frames(1, 3, 3).tobytes(), said=said, status=1)
    with pytest.raises(DecoderError) as caught:
        list(DECORD.read(child, plan(3, 5)))
    assert str(caught.value) == text


def test_whether_decord_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (object(), None):
        monkeypatch.setattr(decoders, "find_spec", lambda name, spec=spec: spec if name == "decord" else None)
        assert decoders.decord_installed() == (spec is not None)


# decord's own process, with a decord that has ten frames of 4x2 pixels, a tenth of a second each


class Reader:
    """A `decord.VideoReader` of random frames whose clock begins at 2.5 s."""

    made = frames(10)
    late = 0.0  # of all but the first timestamp

    def __init__(self, path: str, num_threads: int) -> None:
        if path == "broken":
            raise RuntimeError("[10:00:00] /src/video_reader.cc:123: cannot find video stream in file\nStack trace")
        assert (path, num_threads) == ("/films/a.mp4", 2)

    def __len__(self) -> int:
        return len(self.made)

    def get_frame_timestamp(self, index: Any) -> np.ndarray:
        begin = 2.5 + np.asarray(index) * 0.1 + self.late * (np.asarray(index) > 0)
        return np.stack([begin, begin + 0.1], axis=-1)

    def __getitem__(self, index: int) -> Any:
        return SimpleNamespace(asnumpy=lambda: self.made[index])


@pytest.fixture
def decord_child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake: Any = ModuleType("decord")
    fake.VideoReader, fake.DECORDError = Reader, type("DECORDError", (Exception,), {})
    monkeypatch.setitem(sys.modules, "decord", fake)
    yield importlib.import_module("llava_mini_cli.media.decord_child")
    del sys.modules["llava_mini_cli.media.decord_child"]


def asked(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Puts a plan for frames 2 and 7 on stdin; its ticks count from 30."""
    whole = plan(32, 37, total=10, **changes)
    whole = replace(whole, indices=(2, 7), timeline=whole.timeline + 30)
    monkeypatch.setattr(sys, "stdin", io.StringIO(DECORD.command(whole).stdin.decode()))


def test_decord_writes_the_frames_of_the_plan(
    decord_child: Any, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    asked(monkeypatch)
    decord_child.main()
    expected = Reader.made[[2, 7]][:, nearest_index(2, 3)][:, :, nearest_index(4, 3)]
    assert capfdbinary.readouterr().out == expected.tobytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"height": 4}, "decord gives 4x2 where the container has another size"),
        ({"time_base": Fraction(1, 5)}, "decord's timestamps are not those of the container"),
    ],
)
def test_decord_refuses_what_differs(
    decord_child: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
) -> None:
    asked(monkeypatch, **changes)
    with pytest.raises(SystemExit) as caught:
        decord_child.main()
    assert caught.value.code == reason


def test_decord_refuses_another_count(decord_child: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch)
    monkeypatch.setattr(Reader, "made", frames(11))
    with pytest.raises(SystemExit) as caught:
        decord_child.main()
    assert caught.value.code == "decord counts 11 frames where the container has 10"


@pytest.mark.parametrize(
    ("tick", "late", "begin", "refused"),
    [
        (10, 0.09, 0, False),  # a tick
        (10, -0.11, 0, True),
        (10_000, 0.0019, 0, False),  # two milliseconds
        (10_000, -0.0021, 0, True),
        (10_000, 0.0031, 10_800, False),  # and what single precision loses in three hours
        (10_000, 0.0045, 10_800, True),
    ],
)
def test_decords_timestamps_may_be_off_by_a_tick_or_two_milliseconds(
    decord_child: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    tick: int,
    late: float,
    begin: int,
    refused: bool,
) -> None:
    first = begin * tick
    whole = plan(*(first + number * tick // 10 for number in (2, 7)), total=10, time_base=Fraction(1, tick))
    whole = replace(whole, indices=(2, 7), timeline=first + np.arange(10) * tick // 10)
    monkeypatch.setattr(sys, "stdin", io.StringIO(DECORD.command(whole).stdin.decode()))
    monkeypatch.setattr(Reader, "late", late)
    if refused:
        with pytest.raises(SystemExit, match="timestamps"):
            decord_child.main()
    else:
        decord_child.main()
        assert len(capfdbinary.readouterr().out) == 2 * 27


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[10:00:00] /src/a.cc:12: [mov] Check failed: it broke\nStack trace:\n", "Check failed: it broke"),
        ("[10:00:00] Plain words", "Plain words"),
        ("no path at all", "no path at all"),
        ("  \n", "no reason given"),
    ],
)
def test_what_decord_says_went_wrong(decord_child: Any, text: str, reason: str) -> None:
    assert decord_child._last_reason(text) == reason
