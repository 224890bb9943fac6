"""Damaged files of strangers, a few at random and those of the corpus: errors of our own, in time and in memory."""

import mmap
import random
from itertools import islice
from pathlib import Path

import pytest
from fuzz import cases, fault_of, mutated
from fuzz_seeds import SEEDS
from fuzz_targets import TARGETS

from llava_mini_cli.errors import ArchiveError

CORPUS = Path(__file__).parent / "corpus"  # TARGET-NAME holds one case; each was a fault, or is like one
QUICK = [name for name in TARGETS if name != "checkpoint"]  # that one needs torch and transformers
CASES = 12  # of each


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_the_corpus(name: str, tmp_path: Path) -> None:
    folder = CORPUS / name
    case = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert fault_of(name.partition("-")[0], case, tmp_path / "case") is None


@pytest.mark.parametrize("target", QUICK)
def test_a_few_damaged_files(target: str, tmp_path: Path) -> None:
    assert [fault_of(target, case, tmp_path / "whole") for case in SEEDS[target]()] == [None] * len(SEEDS[target]())
    for number, (_, case) in enumerate(islice(cases(20, [target]), CASES)):
        fault = fault_of(target, case, tmp_path / "case")
        assert fault is None, f"case {number}: {fault}"


def test_the_same_seed_gives_the_same_cases() -> None:
    one, other = (list(islice(cases(7, ["tar", "csv"]), 20)) for _ in range(2))
    assert one == other
    assert [target for target, _ in one] == ["tar", "csv"] * 10
    assert len({str(case) for _, case in one}) > 15
    changed = [mutated(SEEDS["csv"]()[0], random.Random(seed)) for seed in range(20)]
    assert sum(case != SEEDS["csv"]()[0] for case in changed) > 15


def test_what_a_fault_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(folder: Path) -> None:
        while True:
            pass

    def grow(folder: Path) -> None:
        with mmap.mmap(-1, 50 << 20) as pages:  # new ones, whatever memory the allocator has kept
            pages.write(b"x" * len(pages))

    def fail(folder: Path) -> None:
        raise KeyError((folder / "a").read_text())

    def refuse(folder: Path) -> None:
        raise ArchiveError("damaged")

    monkeypatch.setattr("fuzz.LARGEST", 20 << 10)
    for target, begins in ((hang, "more than 0.3 s"), (grow, ""), (fail, "KeyError: "), (refuse, None)):
        monkeypatch.setattr("fuzz.LONGEST", 0.3 if target is hang else 60.0)
        monkeypatch.setitem(TARGETS, "tar", target)
        fault = fault_of("tar", {"a": b"why"}, tmp_path / "case")
        assert fault is None if begins is None else fault is not None and fault.startswith(begins)
        assert target is not grow or str(fault).endswith(" MiB")
