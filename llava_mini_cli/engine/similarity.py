"""Similarities of one query with very many vectors, read from disk as they go: exact, and in bounded memory.

Vectors are float16, sums float32. Knows nothing of archives.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

ROWS = 512  # at once: both forms of so many vectors stay in a processor's cache
Check = Callable[[int, memoryview], None]  # of the first vector's place, and the bytes of up to `ROWS` from there on


def scan_file(path: Path, rows: int, query: NDArray[np.float32], check: Check | None = None) -> NDArray[np.float32]:
    """Dot products of a query `[width]` with the `rows` vectors of a file of plain little-endian float16 numbers.

    Args:
        check: gets all vectors, in steps of `ROWS`; in any order, and by several threads.

    Raises:
        OSError: the file cannot be read. EOFError: it is shorter. Also what `check` raises.
    """
    scores = torch.empty(rows)
    threads, steps = torch.get_num_threads(), ceil(rows / ROWS)
    edges = [min(rows, steps * number // threads * ROWS) for number in range(threads + 1)]
    with _one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        stretches = [(start, stop) for start, stop in pairwise(edges) if start < stop]
        work = [pool.submit(_scan, path, start, scores[start:stop], query, check) for start, stop in stretches]
        for stretch in work:
            stretch.result()
    return scores.numpy()


@contextmanager
def _one_thread() -> Generator[None]:
    """Keeps torch's own threads out of the way: in steps as small as these they mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scan(path: Path, first: int, scores: torch.Tensor, query: NDArray[np.float32], check: Check | None) -> None:
    """Fills `scores` for the vectors from `first` on."""
    width, against = len(query), torch.from_numpy(query)
    buffer = bytearray(ROWS * width * 2)
    halves = torch.frombuffer(buffer, dtype=torch.float16).view(ROWS, width)
    floats = torch.empty(ROWS, width)
    with path.open("rb", buffering=0) as file:
        file.seek(first * width * 2)
        for part in scores.split(ROWS):
            count = len(part)
            block = memoryview(buffer)[: count * width * 2]
            _fill(file, block)
            if check is not None:
                check(first, block)
            first += count
            floats[:count].copy_(halves[:count])
            torch.mv(floats[:count], against, out=part)


def _fill(file: FileIO, space: memoryview) -> None:
    """Reads until the space is full; the system may give less at a time."""
    while space:
        count = file.readinto(space)
        if not count:
            raise EOFError("the file ends early")
        space = space[count:]


def scan_batches(batches: Iterable[NDArray[np.float16]], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dot products as those of `scan_file`, with batches of vectors `[n, width]` in memory."""
    against = torch.from_numpy(query)
    with _one_thread():
        scores = [torch.mv(torch.from_numpy(batch.copy()).float(), against).numpy() for batch in batches]
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)
