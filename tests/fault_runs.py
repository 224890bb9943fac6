"""Runs of `ask` over pictures and short videos, on this disk and from a server, with faults injected at random.

One in so many decoding processes is killed, answers of the server are cut or refused, writes of the output fail
halfway, and steps of the engine run out of memory. Whatever the machine did, each row equals that of a run without
faults, or is marked for the next run, or the run ended with one line and left it out; the next run completes all.
"""

import errno
import gc
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch
from engine_oracle import Oracle
from http_server import QuietHandler, serving
from media_films import ffmpeg
from PIL import Image
from typer.testing import CliRunner

from llava_mini_cli.commands.main import app
from llava_mini_cli.engine import memory
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.frame_encoder import FrameEncoder
from llava_mini_cli.engine.llm.token_decoder import TokenDecoder
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.errors import PASSING_KINDS
from llava_mini_cli.formats.outputs import parquet_parts
from llava_mini_cli.formats.outputs.appended import AppendedOutput

ENGINE_STEPS = (
    (FrameEncoder, "_encoded"),
    (Engine, "_begun"),
    (TokenDecoder, "_logits"),
    (TokenDecoder, "_next_tokens"),
    (TokenDecoder, "answer"),
)
QUESTIONS = ("-p", "what=What is shown?", "-p", "red=Is it red?")
Row = tuple[str, str, str | None, int | None, str | None]  # medium, prompt, text, frames, warning
Rows = dict[tuple[str, str], Row]


class Faults:
    """Says of each occasion whether something goes wrong: once in `rarity` times."""

    def __init__(self, seed: int, rarity: int, never: tuple[str, ...] = ()) -> None:
        """`never`: occasions on which nothing does."""
        self._never = never
        self.count: dict[str, int] = {}
        self._random = random.Random(seed)
        self._rarity = rarity
        self._lock = threading.Lock()

    def meet(self, where: str) -> bool:
        with self._lock:
            fails = self._random.randrange(self._rarity) == 0 and where not in self._never
            self.count[where] = self.count.get(where, 0) + fails
            return fails

    def delay(self) -> float:
        with self._lock:
            return self._random.random() * 0.03


def make_media(folder: Path, most: int) -> list[Path]:
    """`most` media: three pictures in four, and videos of a second or two, a few frames each."""
    folder.mkdir(parents=True)
    films = [folder.parent / f"film{number}.mp4" for number in range(2)]
    for number, film in enumerate(films):
        ffmpeg("-f", "lavfi", "-i", f"testsrc2=size=64x48:rate=4:duration={number + 1}", "-pix_fmt", "yuv420p", film)
    paths: list[Path] = []
    for number in range(most):
        if number % 4 == 3:
            paths.append(folder / f"{number:03}.mp4")
            paths[-1].write_bytes(films[number // 4 % 2].read_bytes() + number.to_bytes(8, "big"))
        else:
            paths.append(folder / f"{number:03}.{('png', 'jpg', 'webp')[number % 3]}")
            pixels = np.random.default_rng(number).integers(0, 255, (40, 56, 3), np.uint8)
            Image.fromarray(pixels).save(paths[-1])
    return paths


@contextmanager
def served(folder: Path, faults: Callable[[], Faults | None]) -> Iterator[str]:
    """The address of a server of a folder, which fails as `faults` says."""

    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # noqa: N802 - as http.server calls it
            body = (folder / self.path.rpartition("/")[2]).read_bytes()
            now = faults()
            if now is not None and now.meet("refused download"):
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            cut = now is not None and now.meet("cut download")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut

    with serving(Handler) as url:
        yield url


class _Torn:
    """A stream that takes a half of what it is given, and then fails."""

    def __init__(self, stream: BinaryIO, number: int) -> None:
        self._stream, self._number = stream, number

    def write(self, data: memoryview) -> int:
        self._stream.write(data[: len(data) // 2])
        raise OSError(self._number, os.strerror(self._number))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def injected(faults: Faults) -> Generator[None]:
    """Has decoding processes, writes and steps of the engine fail within the block."""
    with ExitStack() as stack:
        # Among young objects only: a test run has a million others, which would be looked through each time.
        stack.enter_context(mock.patch.object(memory, "gc", SimpleNamespace(collect=lambda: gc.collect(0))))
        for owner, name in ENGINE_STEPS:
            stack.enter_context(mock.patch.object(owner, name, _short(getattr(owner, name), faults, name)))
        stack.enter_context(mock.patch.object(subprocess.Popen, "__init__", _killed(subprocess.Popen.__init__, faults)))
        real = AppendedOutput._append
        numbers = errno.ENOSPC, errno.EIO

        def append(output: AppendedOutput, stream: Any, record: bytes) -> None:
            torn = faults.meet("torn write")
            real(output, _Torn(stream, numbers[len(record) % 2]) if torn else stream, record)

        def write_table(*arguments: Any) -> Any:
            if faults.meet("failed part"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return whole_file(*arguments)

        whole_file = parquet_parts.whole_file
        stack.enter_context(mock.patch.object(AppendedOutput, "_append", append))
        stack.enter_context(mock.patch.object(parquet_parts, "whole_file", write_table))
        yield


def _short(real: Callable[..., Any], faults: Faults, name: str) -> Callable[..., Any]:
    def step(*arguments: Any) -> Any:
        if faults.meet(name):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*arguments)

    return step


def _killed(real: Callable[..., None], faults: Faults) -> Callable[..., None]:
    """`Popen.__init__`, some of whose processes are killed a little later, as the kernel does where memory is short."""

    def start(process: "subprocess.Popen[bytes]", *arguments: Any, **options: Any) -> None:
        real(process, *arguments, **options)
        if faults.meet("killed child"):
            wait = faults.delay()
            threading.Thread(target=lambda: (time.sleep(wait), process.kill()), daemon=True).start()

    return start


class FaultRuns:
    """The same command, with faults and without, into one output."""

    def __init__(self, oracle: Oracle, media: list[str], output: str) -> None:
        self._oracle = oracle
        self._command = ["ask", *media, *QUESTIONS, "--max-new-tokens", "4", "-m", "tiny", "--max-frames", "4"]
        self._output = output

    def run(self, faults: Faults | None = None) -> tuple[int, str]:
        """The exit code, and what was said."""

        def load(*_: object, **__: object) -> Engine:
            oracle = self._oracle
            return Engine(oracle.model, oracle.processor, oracle.processor.prompts(), Limits(8, 24, 24, 1 << 30))

        with mock.patch("llava_mini_cli.pipelines.load_engine.load_engine", load), ExitStack() as stack:
            stack.enter_context(mock.patch("llava_mini_cli.hub.check_model"))
            if faults is not None:
                stack.enter_context(injected(faults))
            result = CliRunner().invoke(app, [*self._command, "-o", self._output])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stderr

    def rows(self) -> tuple[Rows, set[tuple[str, str]]]:
        """The answers, and which rows are marked for the next run. No answer is there twice, and none failed otherwise.

        Behind a row that is marked there may be a newer one, until a run comes to its end.
        """
        found: Rows = {}
        marked: set[tuple[str, str]] = set()
        for row in self._records():
            key = row["id"], row["prompt_name"]
            assert key not in found, key
            marked.discard(key)
            if row["status"] == "ok":
                found[key] = (*key, row["text"], row["frame_count"], row["warning"])
            else:
                assert row["error_type"] in PASSING_KINDS, row
                marked.add(key)
        return found, marked

    def _records(self) -> list[dict[str, Any]]:
        path = Path(self._output)
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        parts = [path] if path.is_file() else sorted(Path(f"{path}.parts").glob("*.parquet"))
        return [row for part in parts for row in pq.read_table(part).to_pylist()]


def check(runs: FaultRuns, wanted: Rows, faults: Faults, most_runs: int = 40) -> int:
    """Runs with faults until one comes to its end, then without; returns how many runs had faults."""
    for number in count(1):
        assert number <= most_runs, "no run came to its end"
        code, said = runs.run(faults)
        found, marked = runs.rows()
        assert all(row == wanted[key] for key, row in found.items())
        if code in (0, 3):
            assert code == (3 if marked else 0), said
            assert found.keys() | marked == wanted.keys()
            code, said = runs.run()
            assert code == 0, said
            assert runs.rows() == (wanted, set())
            return number
        assert code == 1, said
        assert said.splitlines()[-1].startswith("llava-mini: error: cannot write "), said
    raise AssertionError
