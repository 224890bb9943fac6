"""The parts that a run is made with, each with a default for a program that has only jobs and an engine."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from llava_mini_cli.config import Choices, GenerationOptions, ModelOptions, WeightFormat
from llava_mini_cli.engine.request import Answer, Failure, FrameShapes, Request
from llava_mini_cli.formats.fetch.file_cache import FileCache
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.outputs.output import PartsPlace
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.media.picture import Still
from llava_mini_cli.pipelines.index_options import IndexOptions
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.of_media import Item, Loaded, Task, WorkEvent
from llava_mini_cli.pipelines.open_job import OpenClip, fault_of
from llava_mini_cli.pipelines.progress import Progress
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally


class AnswerEngine(Protocol):
    """An engine, as far as a run uses it."""

    @property
    def frame_size(self) -> int: ...
    @property
    def still(self) -> Still: ...
    @property
    def model_revision(self) -> str | None: ...
    @property
    def media_bytes(self) -> int: ...
    @property
    def weight_format(self) -> WeightFormat: ...
    @property
    def note(self) -> str | None: ...
    @property
    def is_idle(self) -> bool: ...
    @property
    def is_waiting(self) -> bool: ...
    def has_room(self) -> bool: ...
    def most_frames(
        self, prompts: Iterable[str], generation: GenerationOptions, choices: Iterable[Choices | None] = ()
    ) -> int | None: ...
    def add(self, request: Request) -> None: ...
    def step(self) -> list[Answer | Failure]: ...


class CollectingEngine(AnswerEngine, Protocol):
    """An engine that hands out what it makes of frames, for `index`."""

    @property
    def dtype(self) -> str: ...
    @property
    def frame_shapes(self) -> FrameShapes: ...


SomeEngine = TypeVar("SomeEngine", bound=AnswerEngine)


def loaded(engine: AnswerEngine) -> Loaded:
    """What is told of a model that was loaded."""
    return Loaded(engine.model_revision, engine.weight_format, engine.note)


class Crew(Protocol):
    """Workers in other processes, which do a run's work in place of this one."""

    def work(
        self,
        task: Task[Item],
        jobs: Iterable[Job],
        load_engine: Callable[[ModelOptions], AnswerEngine],
        options: RunOptions | IndexOptions,
        parts: "RunParts",
    ) -> Generator[WorkEvent[Item]]:
        """The same as `task.run`; counts media and frames, and raises `WorkersError` where no worker is left."""
        ...


@dataclass(frozen=True)
class RunParts:
    """The parts of one run; tests hand in doubles."""

    open_clip: OpenClip = open_clip
    find_fault: Callable[[Job], Fault | None] = fault_of  # tells why a medium cannot be opened, without a decoder
    progress: Progress = field(default_factory=Progress)
    interrupts: Interrupts = field(default_factory=Interrupts)  # catches nothing unless it is entered
    cache: FileCache | None = None  # files of media from elsewhere; None: one that the run makes and removes
    tally: Tally = field(default_factory=Tally)
    crew: Crew | None = None  # None: the work is done here
    place: PartsPlace | None = None  # where the crew's workers may write rows themselves
    send: Callable[[Job, object], None] | None = None  # takes pieces of what comes of a medium; waits for room
    has_model: bool = False  # it is loaded already, so that no medium has to wait for one that needs it

    def work(
        self,
        task: Task[Item],
        jobs: Iterable[Job],
        load_engine: Callable[[ModelOptions], AnswerEngine],
        options: RunOptions | IndexOptions,
    ) -> Generator[WorkEvent[Item]]:
        """What comes of each job: from the crew, if there is one, otherwise with a model that is loaded here."""
        if self.crew is not None:
            return self.crew.work(task, jobs, load_engine, options, self)
        return task.run(jobs, lambda: self.load(load_engine, options.model), self)

    def load(self, load_engine: Callable[[ModelOptions], SomeEngine], model: ModelOptions) -> SomeEngine:
        """The engine of a model, announced before it is loaded and behind."""
        self.progress.loading(model.model)
        engine = load_engine(model)
        self.tally.weight_format = engine.weight_format
        self.progress.loaded(engine.weight_format, engine.note)
        return engine
