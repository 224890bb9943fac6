"""Faults at random in decoders, downloads, writes and the engine: rows are right, or marked for the next run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_oracle import Oracle, make_oracle
from fault_runs import FaultRuns, Faults, Rows, check, make_media, served

COUNT = 24


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], list[Faults]]]:
    """Names of media, every sixth by its address; and the faults of the server, if a test puts some there."""
    now: list[Faults] = []
    folder = tmp_path_factory.mktemp("media") / "in"
    paths = make_media(folder, COUNT)
    with served(folder, lambda: now[-1] if now else None) as url:
        yield [str(path) if number % 6 else f"{url}/{path.name}" for number, path in enumerate(paths)], now


@pytest.fixture(scope="module")
def wanted(oracle: Oracle, media: tuple[list[str], list[Faults]], tmp_path_factory: pytest.TempPathFactory) -> Rows:
    runs = FaultRuns(oracle, media[0], f"{tmp_path_factory.mktemp('clean')}/out.jsonl")
    code, said = runs.run()
    assert code == 0, said
    rows, marked = runs.rows()
    assert (len(rows), marked) == (2 * COUNT, set())
    return rows


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_faults_at_random_leave_no_wrong_row(
    name: str, oracle: Oracle, media: tuple[list[str], list[Faults]], wanted: Rows, tmp_path: Path
) -> None:
    faults = Faults(seed=1, rarity=20)
    names, of_server = media
    of_server[:] = [faults]
    check(FaultRuns(oracle, names, f"{tmp_path}/{name}"), wanted, faults)
    assert sum(faults.count.values()) > 5, faults.count
    assert sum(count > 0 for count in faults.count.values()) > 2, faults.count
