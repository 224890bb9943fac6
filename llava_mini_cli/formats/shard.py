"""One of several runs that share the work of one input: `--shard I/N`, or `auto` in a Slurm array.

The share is told by position in the input, whole media at a time, so every run must be given the same input. A medium
that comes again belongs to the run that has its first place: the same question twice gives two rows, and only one run
can tell the second from the first.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Job

_SHARD = re.compile(r"(\d+)/(\d+)")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count`, counted from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"--shard {self.number}/{self.count}: I/N counts from 1/{self.count or 'N'} to N/N")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `I/N` or `auto`. Raises `UsageError`."""
        if text == "auto":
            return cls._of_slurm()
        match = _SHARD.fullmatch(text)
        if match is None:
            raise UsageError(f"--shard must be I/N, such as 1/8, or auto, not '{text}'")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def _of_slurm(cls) -> Self:
        missing = [name for name in _SLURM if not os.environ.get(name, "").isdigit()]
        if missing:
            raise UsageError(f"--shard auto needs a Slurm array: {missing[0]} is not set")
        task, first, count = (int(os.environ[name]) for name in _SLURM)
        step = int(os.environ.get("SLURM_ARRAY_TASK_STEP") or 1)
        return cls((task - first) // step + 1, count)

    def share(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """The jobs about every `count`-th medium, lazily. Takes 100 bytes of memory a medium."""
        homes: dict[bytes, int] = {}
        for job in jobs:
            name = job.identity.encode("utf-8", "surrogatepass")
            home = homes.setdefault(blake2b(name, digest_size=8).digest(), len(homes))
            if home % self.count == self.number - 1:
                yield job

    def part_of(self, total: int) -> int:
        """The number of media in this share, of `total` different ones."""
        return len(range(self.number - 1, total, self.count))

    @property
    def tag(self) -> str:
        """The share as names of files have it: `1of8`."""
        return f"{self.number}of{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
