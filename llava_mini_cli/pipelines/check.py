"""The model itself looks at moments that CLIP found: a question of yes or no about each, alone.

CLIP compares a text with single frames; what only shows over time, or only to who reads the whole question, is left to
this. Prints nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import Archive
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.output import Output
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.answer import Tools, answer_jobs
from llava_mini_cli.pipelines.archive_media import StoredMedia, sampling_of
from llava_mini_cli.pipelines.find import the_model
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.load_engine import load_engine
from llava_mini_cli.pipelines.progress import Progress
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.tally import Tally


class KeptRows(Output):
    """An output that is a list: for whoever wants the rows themselves."""

    def __init__(self) -> None:
        super().__init__(Done())
        self.rows: list[Row] = []

    def write(self, row: Row) -> None:
        self.rows.append(row)


MARGIN = 5.0  # seconds


def check(
    archive: Archive,
    moments: Sequence[Moment],
    question: str,
    model: str | None,
    tools: tuple[Progress, Interrupts],
    margin: float = MARGIN,
) -> tuple[list[Moment], list[Row]]:
    """The moments with the model's yes, likeliest first, ranked anew; and the rows of those it could not look at.

    Those keep no `p_yes` and come last.

    Args:
        model: where the archive's model is now; None: where it was.
        margin: seconds before and after each moment that the model sees, too: CLIP finds the frames that look like a
            text, and what is asked may begin before them and end after.

    Raises:
        UsageError: it is another model, or cannot tell yes from no. ModelError: it is missing. Interrupted: a signal.
    """
    name, revision = the_model(archive.header, model)
    options = RunOptions(
        ModelOptions(name, revision),
        sampling_of(archive, SamplingOptions()),
        GenerationOptions(max_new_tokens=1, yes_no=True),
    )
    media, kept = StoredMedia(archive, open_clip), KeptRows()
    progress, interrupts = tools
    parts = Tools(
        media.loading(load_engine), media.open_clip, lambda: kept, progress, interrupts, find_fault=media.find_fault
    )
    seen = [widened(moment, margin) for moment in moments]
    answer_jobs(media.moment_jobs(Prompt(question), seen), options, parts, Tally())
    said = {row.segment: row.p_yes for row in kept.rows}
    checked = [replace(moment, p_yes=said.get(moment.rank)) for moment in moments]
    checked.sort(key=lambda moment: -1.0 if moment.p_yes is None else moment.p_yes, reverse=True)
    ranked = [replace(moment, rank=rank) for rank, moment in enumerate(checked, start=1)]
    return ranked, [row for row in kept.rows if row.status == "error"]


def widened(moment: Moment, margin: float) -> Moment:
    """The moment with `margin` seconds more at both ends, as far as its video goes; an image as it is."""
    if moment.start is None or moment.end is None:
        return moment
    end = moment.end + margin
    if moment.duration_s is not None:
        end = max(moment.end, min(end, moment.duration_s))
    return replace(moment, start=max(0.0, moment.start - margin), end=end)
