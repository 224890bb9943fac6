"""Processes that decode pictures: whatever a decoder does is one picture's error, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from child_processes import child_processes, left_by_killed_parent
from picture_doubles import CRASH, GROW, HANG, KILLED, acting_worker, changed_worker, decoded_by
from PIL import Image

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError
from llava_mini_cli.media import picture as picture_module
from llava_mini_cli.media import picture_pool as pool_module
from llava_mini_cli.media.child import KilledError
from llava_mini_cli.media.open import open_clip, probe
from llava_mini_cli.media.picture_pool import POOL, PicturePool

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    POOL.close()
    before = set(psutil.Process().children(recursive=True))
    yield
    POOL.close()
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not [thread for thread in threading.enumerate() if thread.name == "pictures"]


def still(folder: Path, width: int = 60) -> Path:
    path = folder / f"{width}.png"
    Image.new("RGB", (width, 40), (width % 256, 2, 3)).save(path)
    return path


def seen(path: Path, timeout: float = 60.0) -> list[int]:
    with open_clip(path, SamplingOptions(decode_timeout=timeout)) as clip:
        return next(iter(clip)).pixels[0, 0, 0].tolist()


def failure(path: Path, timeout: float = 60.0) -> tuple[str, str]:
    with pytest.raises(MediaError) as caught:
        seen(path, timeout)
    return caught.value.kind, str(caught.value)


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (CRASH, "corrupt", "the decoder crashed (SIGSEGV)"),
        ("os.abort()", "corrupt", "the decoder crashed (SIGABRT)"),
        ("os._exit(7)", "corrupt", "the decoder crashed (it ended with status 7)"),
        (HANG, "timeout", "the picture could not be read within 2 s"),
        (KILLED, "decoder_killed", "its decoder was ended from outside, twice (SIGKILL)"),
        ("raise MemoryError", "too_large", "decoding took more memory than the 128 MiB that such a picture takes"),
    ],
)
def test_a_decoder_that_misbehaves_is_one_pictures_error(tmp_path: Path, act: str, kind: str, words: str) -> None:
    with decoded_by(acting_worker({66: act})):
        assert seen(still(tmp_path)) == [60, 2, 3]
        assert failure(still(tmp_path, 66), 2.0) == (kind, words)
        assert seen(still(tmp_path)) == [60, 2, 3]


def watched(child: psutil.Process, sizes: list[int], done: threading.Event) -> None:
    """Notes how large a process becomes."""
    with suppress(psutil.NoSuchProcess):
        while not done.wait(0.001):
            sizes.append(child.memory_info().rss)


@linux
def test_a_decoder_that_grows_is_stopped_at_the_picture_s_own_bound(tmp_path: Path) -> None:
    with decoded_by(acting_worker({66: GROW})):
        seen(still(tmp_path))
        (child,) = child_processes()
        before, sizes = child.memory_info().rss, [0]
        done = threading.Event()
        watch = threading.Thread(target=lambda: watched(child, sizes, done))
        watch.start()
        assert failure(still(tmp_path, 66))[0] == "too_large"
        done.set()
        watch.join()
        assert max(sizes) < before + (176 << 20)
        assert not child.is_running()


@linux
def test_where_the_machine_has_no_memory_that_is_said(tmp_path: Path) -> None:
    begin = "import resource; resource.setrlimit(resource.RLIMIT_AS, (400 << 20,) * 2)"
    Image.new("RGB", (12_000, 9000)).save(tmp_path / "large.png", compress_level=1)
    with decoded_by(changed_worker(begin)):
        assert seen(still(tmp_path)) == [60, 2, 3]
        assert failure(tmp_path / "large.png") == (
            "out_of_memory",
            "there was no memory left for decoding the picture",
        )


def test_a_decoder_that_is_killed_once_is_asked_again(tmp_path: Path) -> None:
    path = still(tmp_path, 66)
    with decoded_by(acting_worker({66: "time.sleep(0.3)"})):
        seen(still(tmp_path))
        (child,) = child_processes()
        timer = threading.Timer(0.2, child.kill)
        timer.start()
        assert seen(path) == [66, 2, 3]
        timer.join()
        assert not child.is_running()


def test_an_animation_goes_on_when_its_decoder_was_killed_between_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (60, 40), (40 * number, 0, 0)) for number in range(6)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=1000)
    with open_clip(tmp_path / "a.png", SamplingOptions(), chunk_frames=2, frame_size=8) as clip:
        whole = np.concatenate([chunk.pixels[:, 0, 0, 0] for chunk in clip])
    with open_clip(tmp_path / "a.png", SamplingOptions(), chunk_frames=2, frame_size=8) as clip:
        chunks = iter(clip)
        reds = [next(chunks).pixels[:, 0, 0, 0]]
        (child,) = child_processes()
        child.kill()
        reds += [chunk.pixels[:, 0, 0, 0] for chunk in chunks]
    assert len(set(whole.tolist())) == 5
    np.testing.assert_array_equal(np.concatenate(reds), whole)


@linux
def test_a_decoder_sees_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a")
    server = f"""
import socket
def tried(act):
    try: act()
    except OSError: return
    os._exit(9)
tried(lambda: open({str(tmp_path / "secret")!r}).read())
tried(lambda: open("/etc/passwd").read())
tried(lambda: open({str(tmp_path / "new")!r}, "w"))
tried(lambda: os.listdir({str(tmp_path)!r}))
tried(lambda: socket.create_connection(("127.0.0.1", 9)))
"""
    with decoded_by(acting_worker({66: server})):
        assert seen(still(tmp_path, 66)) == [66, 2, 3]


def test_a_picture_that_takes_more_than_one_may_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_module, "MOST_BYTES", 8 << 20)
    for look in (probe, seen):
        with pytest.raises(MediaError) as caught:
            look(still(tmp_path))
        assert caught.value.kind == "too_large"
        assert str(caught.value).startswith("decoding a PNG picture of 60x40 pixels takes 0.0 GiB; one picture may")


def test_a_process_is_used_again_and_replaced_after_many_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "PICTURES", 3)
    ids: list[int] = []
    with POOL.lease():
        for _ in range(7):
            seen(still(tmp_path))
            ids += [child.pid for child in child_processes()] or [0]
    assert ids[0] == ids[1]
    assert ids[2] == ids[5] == 0
    assert len({ids[0], ids[3], ids[6]}) == 3
    assert child_processes() == []


def test_a_process_that_nobody_uses_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LINGER_S", 0.2)
    seen(still(tmp_path))
    assert len(child_processes()) == 1
    end = time.monotonic() + 10
    while child_processes() or "pictures" in [thread.name for thread in threading.enumerate()]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_end_of_a_run_does_not_wait_for_a_picture_that_hangs(tmp_path: Path) -> None:
    failed: list[str] = []
    with decoded_by(acting_worker({66: HANG})):
        hanging = threading.Thread(target=lambda: failed.append(failure(still(tmp_path, 66))[0]))
        with POOL.lease():
            hanging.start()
            time.sleep(1.0)
        hanging.join(10)
    assert failed == ["decoder_killed"]


def test_no_more_pictures_are_decoded_at_once_than_there_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "AT_ONCE", 2)
    pool, path = PicturePool(), still(tmp_path)
    with pool.lease():
        opened = [pool.take() for _ in range(2)]
        late = threading.Timer(0.3, lambda: setattr(opened[0], "since", None))
        late.start()
        began = time.monotonic()
        third = pool.take()
        assert time.monotonic() - began > 0.2
        opened[0].since = opened[1].since = time.monotonic()  # what is slow lets others pass
        began = time.monotonic()
        fourth = pool.take()
        assert 0.5 < time.monotonic() - began < 10
        for process in (*opened, third, fourth):
            pool.give_back(process)
    assert path.exists()


def test_whoever_waits_for_a_process_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "AT_ONCE", 1)
    pool = PicturePool()
    first = pool.take()
    monkeypatch.setattr(pool_module, "SLOW_S", 60.0)
    threading.Timer(0.2, pool.close).start()
    with pytest.raises(KilledError):
        pool.take()
    pool.give_back(first)


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert failure(still(tmp_path)) == ("no_resources", "the picture cannot be decoded now: too many open files")


def test_a_pipe_that_takes_the_place_of_a_picture_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regular = still(tmp_path).stat()
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.setattr(Path, "stat", lambda *_, **__: regular)
    began = time.monotonic()
    assert picture_module.open_picture_file(tmp_path / "pipe.png", 60.0) is None
    assert time.monotonic() - began < 5


@linux
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_a_killed_parent(tmp_path: Path, sign: signal.Signals) -> None:
    code = (
        "import signal, sys, time\n"
        "sys.path.insert(0, 'tests')\n"
        "from picture_doubles import HANG, acting_worker, decoded_by\n"
        "import threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from llava_mini_cli.config import SamplingOptions\n"
        "from llava_mini_cli.media.open import open_clip\n"
        "with decoded_by(acting_worker({66: HANG})):\n"
        f"    clip = open_clip({str(still(tmp_path))!r}, SamplingOptions())\n"
        f"    threading.Thread(target=open_clip, args=({str(still(tmp_path, 66))!r}, SamplingOptions())).start()\n"
        "    time.sleep(0.5); print('going', flush=True); time.sleep(60)\n"
    )
    assert left_by_killed_parent(code, sign, 20) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads and fork
def test_a_forked_process_has_processes_of_its_own(tmp_path: Path) -> None:
    path = still(tmp_path)
    seen(path)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if seen(path) == [60, 2, 3] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert seen(path) == [60, 2, 3]
