"""A look at a file is bounded in proportion to the file."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import first_look
from llava_mini_cli.media.first_look import FirstLook


def trouble(look: FirstLook, count: int = 1) -> tuple[str, str]:
    with pytest.raises(MediaError) as caught:
        look.goes_on(count)
    return caught.value.kind, str(caught.value)


def sized(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_no_more_packets_than_bytes(tmp_path: Path) -> None:
    look = FirstLook(sized(tmp_path / "a.mp4", 500))
    look.goes_on(1000)
    look.goes_on(500)
    assert trouble(look) == ("corrupt", "the video has no end: 1,501 frames in 500 bytes")


def test_a_pipe_and_a_file_that_is_gone_have_no_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "gone"):
        look = FirstLook(path)
        look.goes_on(10_001_000)
        assert trouble(look) == ("corrupt", "the video has no end: 10,001,001 frames in 0 bytes")


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    look = FirstLook(sized(tmp_path / "a.ts", 5000))
    sized(tmp_path / "a.ts", 10_000 + (64 << 20))  # a recording that goes on is no trouble
    look.goes_on(1)
    sized(tmp_path / "a.ts", 10_001 + (64 << 20))
    assert trouble(look) == ("unreadable", "the file grows faster than it can be read")
    (tmp_path / "a.ts").unlink()  # a file can be read when its name is gone
    look.goes_on(1)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_time_in_proportion_to_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(first_look, "time", SimpleNamespace(monotonic=lambda: clock.now))
    look = FirstLook(sized(tmp_path / "a.mp4", size))
    clock.now += 600 + size / 16384
    look.goes_on(1)
    clock.now += 0.1
    reason = "the frames were not counted in the time that a file of its size may take"
    assert trouble(look) == ("timeout", reason)
