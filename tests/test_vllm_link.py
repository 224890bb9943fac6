"""vLLM's process with another engine in it: how it begins, what is told of its end, and that nothing is left."""

import os
import signal
import subprocess
import threading
from dataclasses import replace

import pytest
import torch
from test_vllm_server import END, units

from llava_mini_cli.engine.vllm.link import Process, VllmEnded, hang_up
from llava_mini_cli.engine.vllm.messages import Counted, Drop, Group, Said, Start

START = Start(
    checkpoint="nowhere",
    config="nowhere",
    dtype="float32",
    on_cuda=False,
    card=0,
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
        process.send(Group(torch.zeros(3, 4), units(0, new=4)))
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


@pytest.mark.parametrize(("visible", "seen"), [(None, "1"), ("", "1"), ("3,5", "5"), ("GPU-a, GPU-b", "GPU-b")])
def test_the_process_sees_the_card_that_is_meant_alone(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: str
) -> None:
    given: list[dict[str, str]] = []

    def refused(*_: object, env: dict[str, str], **__: object) -> None:
        given.append(env)
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refused)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for start in (START, replace(START, on_cuda=True, card=1)):
        with pytest.raises(OSError, match="no more processes"):
            Process(start, is_verbose=True)
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in given] == [visible, seen]


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


def test_a_process_that_cannot_load_says_why() -> None:
    process = Process(START, module="vllm_stand_in_that_is_not_there")
    try:
        with pytest.raises(VllmEnded, match=r"exit status 1: .*No module named vllm_stand_in_that_is_not_there"):
            process.wait()
    finally:
        process.close()


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_process_whose_parent_is_gone_ends(is_ready: bool) -> None:
    process = Process(START if is_ready else replace(START, checkpoint="slow"), module="vllm_stand_in")
    try:
        if is_ready:
            process.wait()
        hang_up(process._connection)
        assert process._process.wait(60) == 0
    finally:
        process.close()
