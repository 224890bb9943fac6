"""Workers in threads of the tests' own process, in place of Ray's actors, and runs over them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cli_doubles import EchoEngine, ProgressLog, open_made_clip

from llava_mini_cli import memory_there
from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.formats.job import Job, Prompt, Question
from llava_mini_cli.formats.row import Row
from llava_mini_cli.pipelines.answer import load_and_answer
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally
from llava_mini_cli.workers.crew import Crew
from llava_mini_cli.workers.hands import Gone
from llava_mini_cli.workers.messages import Batch, Work, from_bytes, to_bytes
from llava_mini_cli.workers.worker import Worker

OPTIONS = RunOptions(ModelOptions("echo"), SamplingOptions(), GenerationOptions())
NEVER: Callable[[Job], bool] = lambda job: False  # noqa: E731


class ThreadWorker(Worker):
    """A worker whose thread can be ended, since its process is that of the tests."""

    def __init__(self) -> None:
        super().__init__()
        self._is_over = False

    def end(self) -> None:
        """No more media come, and nobody hears what is said: a thread that waits to say more goes on."""
        with self._changed:
            self._is_over = True
            self._said = Batch()
            self._changed.notify_all()

    def _send(self, job: Job, item: object) -> None:
        if not self._is_over:
            super()._send(job, item)

    def _given(self) -> Iterator[Job]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or bool(self._jobs))
                if self._is_over:
                    return
                job = self._jobs.popleft()
            yield job


@dataclass
class ThreadHands:
    """Workers in threads of this process. One dies when it is given a medium that is deadly, its work half done."""

    count: int = 2
    beside: int = 1
    deadly: Callable[[Job], bool] = NEVER
    dies_after: Callable[[int, Batch], Gone | None] = lambda worker, batch: None
    stuck: frozenset[int] = frozenset()  # workers that wait for room
    free: int | None = None  # places; None: as many as are wanted
    workers: dict[int, ThreadWorker] = field(default_factory=dict[int, ThreadWorker])
    hired: int = 0
    given: list[int] = field(default_factory=list[int])  # the size of each lease
    dead: dict[int, Gone] = field(default_factory=dict[int, Gone])
    is_closed: bool = False

    def is_open(self) -> bool:
        return True

    def places(self) -> int:
        return self.count if self.free is None else self.free

    def name(self, worker: int) -> str:
        return f"worker {worker}"

    def hire(self, work: Work) -> int:
        self.hired += 1
        self.workers[self.hired] = ThreadWorker()
        if self.hired not in self.stuck:
            self.workers[self.hired].begin(to_bytes(work))
        return self.hired

    def has_started(self, worker: int) -> bool:
        return worker not in self.stuck

    def give(self, worker: int, jobs: Sequence[Job]) -> None:
        self.given.append(len(jobs))
        before = next((place for place, job in enumerate(jobs) if self.deadly(job)), None)
        self.workers[worker].give(to_bytes(list(jobs[:before])), {})
        if before is not None:
            self.dead[worker] = Gone("it fell over")

    def let_go(self, job: Job) -> None:
        pass

    def heard(self, seconds: float) -> list[tuple[int, Batch | Gone]]:
        said: list[tuple[int, Batch | Gone]] = []
        for number, worker in list(self.workers.items()):
            batch = from_bytes(worker.take(0.01))
            said.append((number, self.dies_after(number, batch) or batch))
            if number in self.dead:
                said.append((number, self.dead.pop(number)))
        return said

    def dismiss(self, worker: int) -> None:
        if worker in self.workers:
            self.workers.pop(worker).end()
        self.dead.pop(worker, None)

    def close(self) -> None:
        self.is_closed = True
        for worker in self.workers.values():
            worker.end()
        self.workers.clear()


@pytest.fixture
def own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker takes a share of the memory for all of its process, which is that of the tests here."""
    monkeypatch.setattr(memory_there, "_beside", 1)


def jobs(folder: Path, texts: Sequence[str], prompts: Sequence[str] = ("What?", "Who?")) -> Iterator[Job]:
    for number, text in enumerate(texts):
        path = folder / f"m{number:03}.mp4"
        path.write_text(text)
        yield asked(path, prompts)


def asked(path: Path, prompts: Sequence[str] = ("What?",)) -> Job:
    questions = tuple(Question(Prompt(text), str(path), key=f"{path.name} {text}") for text in prompts)
    return Job(str(path), path.name, questions)


def parts(hands: ThreadHands | None, timeout: float = 60.0) -> RunParts:
    made = RunParts(open_made_clip, progress=ProgressLog(), tally=Tally())  # type: ignore[arg-type]
    return made if hands is None else replace(made, crew=Crew(hands, timeout))


def rows(some: Iterator[Job], run: RunParts, options: RunOptions = OPTIONS) -> list[Row]:
    return list(load_and_answer(some, EchoEngine, options, run))


def plain(found: Sequence[Row]) -> set[str]:
    return {repr(replace(row, created_at=None)) for row in found}  # type: ignore[arg-type]
