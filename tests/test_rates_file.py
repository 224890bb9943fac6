"""Measured rates: times between the measured rows, the choice among formats, and the file that keeps them."""

import json
import stat
from pathlib import Path

import pytest

from llava_mini_cli.engine import rates as module
from llava_mini_cli.engine.rates import Rates, Seconds, Shape, common_shape, keep, kept_rates, read_kept, this_machine

# Seconds of one product of 4096 x 14336 as a machine with AVX-512 had them, in milliseconds; then held to AVX2.
NEW = {
    "float32 mkl": (10.6, 37.0, 200.0), "float32 onednn": (6.9, 15.0, 138.0),
    "bfloat16 onednn": (5.7, 8.2, 69.0), "bfloat16 gemv": (3.35,),
    "int8 onednn": (2.1, 3.2, 37.0), "int8 onednn_by_4": (1.6, 3.2, 37.0),
    "int8 unpacked": (2.0, 6.1, 40.0), "int4": (1.7, 11.0, 175.0),
}  # fmt: skip
OLD = NEW | {
    "float32 onednn": (7.0, 17.0, 142.0), "bfloat16 onednn": (2.6, 40.0, 615.0),
    "int8 onednn": (5.0, 13.0, 83.0), "int8 onednn_by_4": (5.0, 13.0, 83.0), "int8 unpacked": (2.2, 12.5, 83.0),
}  # fmt: skip


def made(ways: Seconds) -> Rates:
    return Rates((100, 10), ways)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "llava-mini" / "rates"


def test_the_quickest_format_and_libraries_follow_from_the_rates() -> None:
    new, old = made(NEW), made(OLD)
    assert new.quickest(["float32", "bfloat16"]) == "bfloat16"
    assert old.quickest(["bfloat16", "float32"]) == "float32"
    assert new.quickest(["float32", "bfloat16", "int8", "int4"]) == "int8"
    assert new.quickest(["float32", "float16"]) == "float32"  # the other was not measured
    assert (new.int8_kernel, old.int8_kernel) == ("onednn_by_4", "unpacked")
    assert made({"float32 mkl": (1.0, 1.0, 1.0)}).int8_kernel is None
    assert new.float32_one_dnn
    assert new.bfloat16_gemv
    assert not old.bfloat16_gemv
    with pytest.raises(ValueError, match=r"^not measured: float16, fp8$"):
        new.quickest(["float16", "fp8"])


def test_a_small_gain_is_no_reason() -> None:
    usual = (1.0, 1.0, 1.0)
    for gain, taken in ((0.96, False), (0.94, True)):
        less = (gain, gain, gain)
        found = made(
            {"float32 mkl": usual, "float32 onednn": less, "bfloat16 onednn": less, "bfloat16 gemv": usual[:1]}
        )
        assert found.float32_one_dnn is taken
        assert not found.bfloat16_gemv
        plain = made({"float32 mkl": usual, "bfloat16 onednn": less})
        assert plain.quickest(["float32", "bfloat16"]) == ("bfloat16" if taken else "float32")
        assert not plain.float32_one_dnn
        assert not plain.bfloat16_gemv


def test_a_way_with_an_order_of_its_own_has_to_be_a_quarter_quicker_than_the_best_of_the_others() -> None:
    ways = {"int8 onednn": (1.0, 1.0, 1.0), "int8 onednn_by_4": (0.9, 0.9, 0.9)}
    for time, kernel in ((0.68, "onednn_by_4"), (0.67, "unpacked")):
        assert made({**ways, "int8 unpacked": (time,) * 3}).int8_kernel == kernel
    assert made({"int8 onednn": (1.0,) * 3, "int8 unpacked": (0.76,) * 3}).int8_kernel == "onednn"
    assert made({"int8 unpacked": (9.0,) * 3}).int8_kernel == "unpacked"  # on a machine without the other


def test_times_between_the_measured_rows() -> None:
    found = made({"float32 mkl": (1.0, 16.0, 64.0), "bfloat16 onednn": (2.0, 3.0, 51.0), "bfloat16 gemv": (0.5,)})
    at = {rows: found.seconds("float32", rows) for rows in (0.5, 1, 8.5, 16, 136, 256, 512)}
    assert at == {0.5: 1.0, 1: 1.0, 8.5: 8.5, 16: 16.0, 136: 40.0, 256: 64.0, 512: 128.0}
    assert found.seconds("float32", 16, elements=250) == 4.0
    assert [found.seconds("bfloat16", rows) for rows in (1, 16)] == [0.5, 3.0]
    assert found.seconds("int8", 1) is None
    assert found.seconds("float16", 1) is None


def test_the_commonest_shape_is_that_of_most_elements() -> None:
    shapes = [(9, 1), (2, 3), (2, 3), (3, 2), (4, 2)]
    assert common_shape(shapes, least=6) == (2, 3)
    assert common_shape(shapes, least=7) is None
    assert common_shape(shapes) is None
    assert common_shape([], least=0) is None


class Measured:
    """Counts how often a shape is measured; each time takes longer than the one before."""

    def __init__(self, *seconds: float, settled: bool = True) -> None:
        self.seconds = list(seconds)
        self.settled = settled

    def __call__(self, shape: Shape) -> tuple[Seconds, bool]:
        assert shape == (8, 4)
        value = self.seconds.pop(0)
        return {"float32 mkl": (value, value, 1.0), "bfloat16 onednn": (value, value, value)}, self.settled


def test_rates_are_kept_for_one_user_and_measured_once(cache: Path) -> None:
    found = kept_rates((8, 4), 2, Measured(0.5))
    assert found.ways["float32 mkl"] == (0.5, 0.5, 1.0)
    assert kept_rates((8, 4), 2, Measured()) == found
    (file,) = cache.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kept_rates((8, 4), 1, Measured(0.7)) != found  # with another number of threads
    assert len(list(cache.iterdir())) == 2


def test_measured_anew_the_lesser_numbers_count() -> None:
    kept_rates((8, 4), 2, Measured(0.5))
    assert kept_rates((8, 4), 2, Measured(0.7), anew=True).ways["bfloat16 onednn"] == (0.5, 0.5, 0.5)
    assert kept_rates((8, 4), 2, Measured(0.2), anew=True).ways["float32 mkl"] == (0.2, 0.2, 1.0)
    assert kept_rates((8, 4), 2, Measured()).ways["bfloat16 onednn"] == (0.2, 0.2, 0.2)


def test_what_did_not_settle_is_measured_until_it_does() -> None:
    assert kept_rates((8, 4), 2, Measured(0.5, settled=False)).ways["float32 mkl"][0] == 0.5
    assert kept_rates((8, 4), 2, Measured(0.25, settled=False)).ways["float32 mkl"][0] == 0.25
    assert kept_rates((8, 4), 2, Measured(0.375)).ways["float32 mkl"][0] == 0.25
    assert kept_rates((8, 4), 2, Measured()).ways["float32 mkl"][0] == 0.25
    kept_rates((8, 4), 2, Measured(0.125, settled=False), anew=True)
    assert kept_rates((8, 4), 2, Measured()).ways["float32 mkl"][0] == 0.125


GOOD = {"float32 mkl": [1.0, 1.0, 1.0], "bfloat16 onednn": [1.0, 1.0, 1.0]}


@pytest.mark.parametrize(
    "seconds",
    [
        [],
        {},
        {"float32 mkl": GOOD["float32 mkl"]},
        GOOD | {"float32 mkl": [1.0, 1.0]},
        GOOD | {"float32 mkl": [1.0, 1.0, 0.0]},
        GOOD | {"float32 mkl": [1.0, 1.0, True]},
        GOOD | {"float32 mkl": [1.0, 1.0, "1"]},
        GOOD | {"float32 mkl": 1.0},
        GOOD | {"bfloat16 gemv": [1.0, 1.0, 1.0]},
        GOOD | {"of another version": [1.0, 1.0, 1.0]},
    ],
)
def test_numbers_that_cannot_be_are_measured_anew(cache: Path, seconds: object) -> None:
    kept_rates((8, 4), 2, Measured(0.5))
    (file,) = cache.iterdir()
    fields = json.loads(file.read_text())
    assert kept_rates((8, 4), 2, Measured()).ways["float32 mkl"][0] == 0.5
    file.write_text(json.dumps(fields | {"seconds": GOOD}))
    assert kept_rates((8, 4), 2, Measured()).ways["float32 mkl"][0] == 1.0
    file.write_text(json.dumps(fields | {"seconds": seconds}))
    assert kept_rates((8, 4), 2, Measured(0.25)).ways["float32 mkl"][0] == 0.25
    assert kept_rates((8, 4), 2, Measured()).ways["float32 mkl"][0] == 0.25


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"key": {}}', b" " * (1 << 17)])
def test_a_damaged_file_is_as_none(cache: Path, content: bytes) -> None:
    keep("rates", {"a": 1}, {"b": 2})
    (file,) = cache.iterdir()
    assert read_kept("rates", {"a": 1}) == {"b": 2}
    file.write_bytes(content)
    assert read_kept("rates", {"a": 1}) is None
    keep("rates", {"a": 1}, {"b": 3})
    assert read_kept("rates", {"a": 1}) == {"b": 3}


def test_a_link_in_its_place_is_not_read_and_not_followed(cache: Path, tmp_path: Path) -> None:
    keep("rates", {"a": 1}, {"b": 2})
    (file,) = cache.iterdir()
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert read_kept("rates", {"a": 1}) is None
    before = elsewhere.read_text()
    keep("rates", {"a": 1}, {"b": 3})
    assert read_kept("rates", {"a": 1}) == {"b": 3}
    assert elsewhere.read_text() == before


def test_a_cache_that_cannot_be_written_costs_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept_rates((8, 4), 2, Measured(0.5)).ways["float32 mkl"][0] == 0.5
    assert kept_rates((8, 4), 2, Measured(0.7)).ways["float32 mkl"][0] == 0.7


def test_a_write_that_fails_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.json, "dump", full)
    keep("rates", {"a": 1}, {"b": 2})
    assert list(cache.iterdir()) == []


def test_what_decides_the_speed_is_part_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = this_machine()
    assert before["environment"] == {}
    assert before["processor"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert this_machine() == before | {"environment": {"OMP_NUM_THREADS": "3", "ONEDNN_MAX_CPU_ISA": "AVX2"}}
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {1, 2, 3, 4, 5}, raising=False)
    assert this_machine()["cores"] == 5
    monkeypatch.setattr(module, "version", lambda _: "9.9")
    assert this_machine()["torch"] == "9.9"
