"""vLLM's process with another engine in it: how it begins, what is told of its end, and that nothing is left."""

import os
import signal
import subprocess
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from test_vllm_server import END, units

from llava_mini_cli import at_exit
from llava_mini_cli.engine.vllm import left_files, link
from llava_mini_cli.engine.vllm.link import Process, VllmEnded, hang_up
from llava_mini_cli.engine.vllm.messages import Counted, Drop, Group, Said, Start, Unit, from_bytes, to_bytes

START = Start(
    checkpoint="nowhere",
    config="",
    dtype="float32",
    on_cuda=False,
    card=0,
    tensor_parallel=1,
    sequences=4,
    cache_bytes=1 << 20,
    memory_share=0.1,
    layout="trained",
    end_ids=(END,),
)


def test_the_process_says_ready_and_ends_with_its_connection() -> None:
    process = Process(START, module="vllm_stand_in")
    try:
        assert process.wait().positions == 64
        assert os.getpgid(process.pid) == process.pid  # Ctrl-C at the terminal does not reach it
        process.send((Group(torch.zeros(3, 4), units(0, new=4)),))
        said: list[Said | Counted] = []
        while not any(isinstance(one, Counted) for one in said):
            said += process.take(30)
        assert [one.tokens for one in said if isinstance(one, Said)] == [(1,), (2,), (3,), ()]
        assert process.take(0.01) == []
    finally:
        process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert "vllm" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(VllmEnded, match="it was ended"):
        process.send(Drop(()))


@pytest.mark.parametrize(
    ("visible", "cards", "seen"),
    [
        (None, 1, "1"),
        ("", 1, "1"),
        ("3,5", 1, "5"),
        ("GPU-a, GPU-b", 1, "GPU-b"),
        (None, 3, "1,2,3"),
        ("7,5,4, 2", 2, "5,4"),
    ],
)
def test_the_process_sees_the_cards_that_are_meant_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, cards: int, seen: str
) -> None:
    given: list[dict[str, str]] = []

    def refused(*_: object, env: dict[str, str], **__: object) -> None:
        given.append(env)
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for start in (START, replace(START, on_cuda=True, card=1, tensor_parallel=cards)):
        with pytest.raises(OSError, match="no more processes"):
            Process(start, is_verbose=True)
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in given] == [visible, seen]
    assert [env.get("OMP_NUM_THREADS") for env in given] == [str(torch.get_num_threads()), None]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cards", [1, 2])
@pytest.mark.parametrize("end", ["close", "end_all", "kill"])
def test_nothing_of_the_process_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, cards: int, end: str
) -> None:
    """Neither what it started nor the files that it made. With several cards there are such processes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    memory = tmp_path_factory.mktemp("memory")
    monkeypatch.setattr(left_files, "SHARED_MEMORY", memory)
    process = Process(replace(START, tensor_parallel=cards, config=str(memory)), module="vllm_stand_in")
    process.wait()
    (folder,) = tmp_path.iterdir()
    for name in ("vllm_dist_12-tp:0", "vllm_dist_3-tp:0"):
        (memory / name).touch()
    those = [psutil.Process(pid) for pid in (process.pid, *(int(file.name) for file in folder.iterdir()))]
    assert len(those) == cards
    (folder / "vllm_dist_12").touch()
    if end == "kill":
        os.kill(process.pid, signal.SIGKILL)
    (at_exit.end_all if end == "end_all" else process.close)()
    assert not list(tmp_path.iterdir())
    assert [file.name for file in memory.iterdir()] == ["vllm_dist_3-tp:0"]
    assert not psutil.wait_procs(those, 60)[1]  # what was killed takes a moment


def test_files_go_away_beside_memory_that_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, memory = tmp_path / "files", tmp_path / "memory"
    (memory / "vllm_dist_1").mkdir(parents=True)  # no file
    monkeypatch.setattr(left_files, "SHARED_MEMORY", memory)
    folder.mkdir()
    (folder / "vllm_dist_1").touch()
    for _ in range(2):  # it may be gone
        left_files.take_away(folder)
        assert not folder.exists()


def test_a_process_that_is_killed_is_told_with_its_last_words() -> None:
    process = Process(START, module="vllm_stand_in")
    try:
        process.wait()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(VllmEnded, match=r"^killed by SIGKILL: the stand-in is ready$"):
            while True:
                process.take(30)
        with pytest.raises(VllmEnded, match="killed by SIGKILL"):
            process.take(30)
    finally:
        process.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 4), (0, 4), (1, 1)])
def test_numbers_arrive_as_they_were_sent(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    numbers = torch.randn(shape).to(dtype)
    beside = torch.randn(3, 3, 5).to(dtype).transpose(0, 2)[1:, :, 1]  # a view of a larger one
    sent = Group(numbers, (Unit(3, beside, new_tokens=2),))
    (came,) = from_bytes(bytes(to_bytes((sent,))))
    assert [unit.number for unit in came.units] == [3]
    for found, given in ((came.prefix, numbers), (came.units[0].tail, beside)):
        assert (found.dtype, found.shape) == (given.dtype, given.shape)
        assert torch.equal(found, given)
    assert len(to_bytes((sent,))) < 1000  # of a view, what it shows alone


def test_a_process_has_time_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GROUP_SECONDS", 0.1)
    start = replace(START, checkpoint=f"ends slowly: {tmp_path / 'ended'}", tensor_parallel=2)
    process = Process(start, module="vllm_stand_in")
    try:
        process.wait()
    finally:
        process.close()
    assert (tmp_path / "ended").exists()


def test_a_process_that_cannot_load_says_why() -> None:
    process = Process(START, module="vllm_stand_in_that_is_not_there")
    try:
        with pytest.raises(VllmEnded, match=r"exit status 1: .*No module named vllm_stand_in_that_is_not_there"):
            process.wait()
    finally:
        process.close()


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_process_whose_parent_is_gone_ends_and_leaves_no_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_ready: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = Process(START if is_ready else replace(START, checkpoint="slow"), module="vllm_stand_in")
    try:
        if is_ready:
            process.wait()
        (folder,) = tmp_path.iterdir()
        (folder / "kept").touch()
        hang_up(process._connection)
        assert process._process.wait(60) == 0
        assert not list(tmp_path.iterdir())
    finally:
        process.close()
