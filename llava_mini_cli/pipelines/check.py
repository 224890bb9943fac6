"""The model itself looks at moments that CLIP found: a question of yes or no about each, alone.

CLIP compares a text with single frames; what only shows over time, or only to who reads the whole question, is left to
this. Prints nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.formats.archive.moments import Moment
from llava_mini_cli.formats.archive.reader import Archive
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.row import Row
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.pipelines.answer import load_and_answer
from llava_mini_cli.pipelines.archive_media import StoredMedia, sampling_of
from llava_mini_cli.pipelines.find import the_model
from llava_mini_cli.pipelines.interrupt import Interrupts
from llava_mini_cli.pipelines.load_engine import load_engine
from llava_mini_cli.pipelines.run_parts import RunParts
from llava_mini_cli.pipelines.settings import RunOptions


def check(
    archive: Archive,
    moments: Sequence[Moment],
    question: str,
    model: str | None,
    interrupts: Interrupts,
    margin: float,
    roots: tuple[str, ...] = (),
) -> tuple[list[Moment], list[Row]]:
    """The moments with the model's yes, likeliest first, ranked anew; and the rows of those it could not look at.

    Those keep no `p_yes` and come last.

    Args:
        model: where the archive's model is now; None: where it was.
        margin: seconds before and after each moment that the model sees, too: CLIP finds the frames that look like a
            text, and what is asked may begin before them and end after.
        roots: resolved folders, one of which a file that is opened must lie below; none: it may lie anywhere.

    Raises:
        UsageError: it is another model, or cannot tell yes from no. ModelError: it is missing. Interrupted: a signal.
    """
    name, revision = the_model(archive.header, model)
    options = RunOptions(
        ModelOptions(name, revision),
        sampling_of(archive, SamplingOptions()),
        GenerationOptions(max_new_tokens=1, yes_no=True),
    )
    media = StoredMedia(archive, open_clip, roots)
    parts = RunParts(media.open_clip, media.find_fault, interrupts=interrupts)
    jobs = media.moment_jobs(Prompt(question), [widened(moment, margin) for moment in moments])
    rows = list(load_and_answer(jobs, media.loading(partial(load_engine, yes_no=True)), options, parts))
    interrupts.check()
    said = {row.segment: row.p_yes for row in rows}
    checked = [replace(moment, p_yes=said.get(moment.rank)) for moment in moments]
    checked.sort(key=lambda moment: -1.0 if moment.p_yes is None else moment.p_yes, reverse=True)
    ranked = [replace(moment, rank=rank) for rank, moment in enumerate(checked, start=1)]
    return ranked, [row for row in rows if row.status == "error"]


def widened(moment: Moment, margin: float) -> Moment:
    """The moment with `margin` seconds more at both ends, as far as its video goes; an image as it is."""
    if moment.start is None or moment.end is None:
        return moment
    end = moment.end + margin
    if moment.duration_s is not None:
        end = max(moment.end, min(end, moment.duration_s))
    return replace(moment, start=max(0.0, moment.start - margin), end=end)
