"""How much memory decoders may take, which libraries they may read, and what is said of one that wanted more."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from llava_mini_cli.media import bounds, libraries
from llava_mini_cli.media.bounds import most_bytes, shortage, usual_bytes
from llava_mini_cli.media.libraries import library_rules, program_rules

MIB = 1 << 20


def test_what_is_reserved_and_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual_bytes(0, toned=False) == 64 * MIB
    assert usual_bytes(10, toned=False) == 64 * MIB + 360
    assert usual_bytes(10, toned=True) == 64 * MIB + 840
    for processors in (1, 63):
        monkeypatch.setattr(bounds, "_processors", lambda count=processors: count)
        threads = (processors + 1) * 8 * MIB
        assert most_bytes(10, deep=False, toned=False) == 384 * MIB + 720 + threads + (processors + 1) * 30
        assert most_bytes(10, deep=True, toned=True) == 384 * MIB + 1680 + threads + (processors + 1) * 60


def test_the_processors_are_those_that_may_be_used() -> None:
    assert 1 <= bounds._processors() <= (os.cpu_count() or 1)
    if sys.platform == "linux":
        assert bounds._processors() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "line",
    [
        "[vf#0:0 @ 0x55] [error] Error while filtering: Cannot allocate memory",
        "[h264 @ 0x55] [error] Could not allocate memory",
        "MemoryError",
        "  what():  std::bad_alloc",
        "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.",
        "Out of memory allocating 123 bytes",
        "[h264 @ 0x55] [error] get_buffer() failed",
    ],
)
def test_words_of_a_decoder_that_got_no_memory(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(bounds, "_memory_is_promised", lambda: False)
    monkeypatch.setattr(bounds.sys, "platform", "linux")
    found = shortage(["[h264] no frame!", line], 100 * MIB + 5)
    assert found is not None
    assert (found.kind, str(found)) == ("too_large", "decoding needs more than 100 MiB of memory")


def test_words_that_are_no_shortage() -> None:
    assert shortage([], 5) is None
    assert shortage(["Invalid data found when processing input", "no frame!"], 5) is None
    assert shortage(["video_get_buffer: image parameters invalid", "get_buffer() failed"], 5) is None


def test_without_a_bound_it_is_the_machine_that_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds.sys, "platform", "linux")
    for promised, memory, platform in ((False, None, "linux"), (True, 100, "linux"), (False, 100, "darwin")):
        monkeypatch.setattr(bounds, "_memory_is_promised", lambda answer=promised: answer)
        monkeypatch.setattr(bounds.sys, "platform", platform)
        found = shortage(["MemoryError"], memory)
        assert found is not None
        assert (found.kind, str(found)) == ("out_of_memory", "there was no memory left for the decoder")


@pytest.mark.parametrize(("text", "promised"), [("2\n", True), ("0\n", False), (None, False)])
def test_a_kernel_that_hands_out_no_more_memory_than_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, promised: bool
) -> None:
    if text is not None:
        (tmp_path / "overcommit").write_text(text)
    monkeypatch.setattr(bounds, "_OVERCOMMIT", tmp_path / "overcommit")
    assert bounds._memory_is_promised() == promised


@pytest.fixture
def fresh_rules() -> Iterator[None]:
    library_rules.cache_clear()
    yield
    library_rules.cache_clear()


@pytest.mark.usefixtures("fresh_rules")
def test_libraries_are_those_of_python_and_of_the_packages_that_decode(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import numpy as np

    for name, value in {"prefix": "/p", "exec_prefix": "/p", "base_prefix": "/b", "base_exec_prefix": "/e"}.items():
        monkeypatch.setattr(libraries.sys, name, value)
    monkeypatch.setattr(libraries, "_IMPORTED", ("numpy", "no_such_package", "made_up"))
    monkeypatch.setitem(sys.modules, "made_up", ModuleType("made_up"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib::relative:.")
    monkeypatch.setenv("LD_PRELOAD", "/opt/a.so /opt/b.so")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    package = Path(libraries.__file__).parents[1]
    python = [f"l/{prefix}/{name}" for prefix in "pbe" for name in ("bin", "lib", "lib64", "pyvenv.cfg")]
    packages = [f"l{Path(np.__file__).parents[1]}", "l/opt/lib", "l/opt/a.so", "l/opt/b.so", f"l{package}"]
    assert library_rules() == (*python, *packages, f"d{package.parent}")
    library_rules.cache_clear()
    installed = tmp_path / "site-packages" / "llava_mini_cli"
    monkeypatch.setattr(libraries, "_PACKAGE", installed)
    assert library_rules() == (*python, *packages[:-1], f"l{installed}", f"l{installed.parent}")


def test_a_program_may_be_run_with_the_libraries_beside_its_bin(tmp_path: Path) -> None:
    (tmp_path / "real" / "bin").mkdir(parents=True)
    (tmp_path / "real" / "bin" / "ffmpeg").write_text("")
    (tmp_path / "ffmpeg").symlink_to("real/bin/ffmpeg")
    real = tmp_path.resolve() / "real"
    libs = (f"l{real}/lib", f"l{real}/lib64")
    assert program_rules(str(tmp_path / "ffmpeg")) == (f"l{tmp_path}/ffmpeg", *libs)
    assert program_rules(str(real / "bin" / "ffmpeg")) == (f"l{real}/bin/ffmpeg", *libs)
    assert program_rules("/home/u/videos/ffmpeg") == ("l/home/u/videos/ffmpeg",)
