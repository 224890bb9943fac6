"""What comes of media while a run works on them, here or on workers, and who makes it.

Knows neither engines nor outputs.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.formats.job import Fault, Job

if TYPE_CHECKING:
    from llava_mini_cli.engine.request import FrameShapes
    from llava_mini_cli.pipelines.run_parts import AnswerEngine, RunParts

Item = TypeVar("Item")


class Came(NamedTuple, Generic[Item]):
    """Something that was made of a medium, such as a row."""

    job: Job
    item: Item
    fails_medium: bool  # it is the first failure of its medium


class MediumOver(NamedTuple):
    """A medium of which everything has come."""

    job: Job
    video_s: float = 0.0  # its length in seconds; 0 for one that is no video, or was not opened


class MediumLost(NamedTuple):
    """A medium whose worker died: what has come of it so far does not count, and it is done again."""

    job: Job


class PartPrepared(NamedTuple):
    """Rows of several media that a worker wrote itself, where the output has a place for that."""

    name: str
    rows: int  # none of which is an error


class Loaded(NamedTuple):
    """What is known of a model once a worker has loaded it."""

    revision: str | None
    weight_format: WeightFormat
    note: str | None  # why its weights are held in fewer bits
    dtype: str | None = None  # number format it computes in, where it can hand out what it makes of frames
    shapes: "FrameShapes | None" = None  # of that


WorkEvent = Came[Item] | MediumOver | MediumLost | PartPrepared | Loaded


class Task(Protocol[Item]):
    """What a command makes of each medium. It is sent to workers, so it holds options alone."""

    def run(
        self, jobs: Iterable[Job], load: "Callable[[], AnswerEngine]", parts: "RunParts"
    ) -> Generator[WorkEvent[Item]]:
        """What comes of each job, in the order that it comes. Where `parts.send` is there, pieces go there at once."""
        ...

    def unanswered(self, job: Job, fault: Fault, revision: str | None) -> Iterator[Came[Item]]:
        """What comes of a job that nobody could look at; `revision`: the model's, where one was loaded."""
        ...

    def loaded(self, engine: "AnswerEngine") -> Loaded:
        """What is told of a model that was loaded on a worker."""
        ...

    def portable(self, item: Item) -> Item:
        """The same, as it is sent from one process to another."""
        ...
