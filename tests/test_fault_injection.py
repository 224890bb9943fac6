"""Faults at random in decoders, downloads, writes and the engine: rows are right, or marked for the next run."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from engine_oracle import Oracle, make_oracle
from fault_runs import FaultRuns, Faults, Rows, check, make_media, served

from llava_mini_cli.engine.llm.token_decoder import TokenDecoder

COUNT = 16


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


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_a_lost_device_ends_the_run_with_one_line_and_the_next_run_goes_on(
    name: str,
    oracle: Oracle,
    media: tuple[list[str], list[Faults]],
    wanted: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, of_server = media
    of_server.clear()
    runs = FaultRuns(oracle, names, f"{tmp_path}/{name}")
    real, calls = TokenDecoder._logits, count()

    def lost(decoder: TokenDecoder, *arguments: Any) -> Any:
        if next(calls) >= 4:
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
        return real(decoder, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TokenDecoder, "_logits", lost)
        code, said = runs.run()
    assert code == 1
    told = [line for line in said.splitlines() if "error: " in line]
    assert len(told) == 1
    assert "does not work any more (CUDA error: device-side assert triggered); what was answered is written" in told[0]
    assert "Traceback" not in said
    found, marked = runs.rows()
    assert 0 < len(found) < len(wanted)
    assert not marked
    assert all(row == wanted[key] for key, row in found.items())
    assert runs.run()[0] == 0
    assert runs.rows() == (wanted, set())
