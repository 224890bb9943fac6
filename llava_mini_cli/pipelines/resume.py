"""Jobs in, jobs with what is left to do out: what an output holds already is dropped, question by question.

Gives each question the key that its row will carry, so that a row says what the file was before it was decoded.
Opens nothing and writes nothing.
"""

from collections.abc import Iterator

from llava_mini_cli.formats.job import Job, Question
from llava_mini_cli.formats.outputs.done import Done
from llava_mini_cli.formats.outputs.row_keys import RowKeys
from llava_mini_cli.pipelines.tally import Tally


def left_to_do(jobs: Iterator[Job], keys: RowKeys, done: Done, tally: Tally) -> Iterator[Job]:
    """The jobs with the questions whose rows are not there yet; looks at each medium once."""
    work, claim, is_there = keys.work, done.claim, done.is_there
    for job in jobs:
        item, path = keys.item(job), job.path
        state = keys.state(item)
        left: list[Question] = []
        for question in job.questions:
            if is_there is not None and is_there(job, question):
                done.rows_left += 1
                continue
            name = claim(work(item, path, question), state)
            if name is not None:
                left.append(question._replace(key=name))
        if left:
            yield job._replace(questions=tuple(left))
        else:
            tally.media_skipped += 1
