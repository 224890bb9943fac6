"""Jobs in, jobs with what is left to do out: what an output holds already is dropped, question by question.

Gives each question the key that its row will carry, so that a row says what the file was before it was decoded.
Opens nothing and writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llava_mini_cli.formats.done import Done
from llava_mini_cli.formats.fingerprint import RowKeys
from llava_mini_cli.formats.job import ItemIdentity, Job, Question


@dataclass
class Resume:
    """What of a run's jobs is left to do."""

    keys: RowKeys
    done: Done
    media_left_out: int = 0  # media of which every row is there

    def remaining(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """The jobs with the questions whose rows are not there yet; looks at each medium once."""
        for job in jobs:
            item = self.keys.item(job)
            questions = tuple(
                question._replace(key=key)
                for question in job.questions
                if (key := self._claim(item, job, question)) is not None
            )
            if questions:
                yield job._replace(questions=questions)
            else:
                self.media_left_out += 1

    def _claim(self, item: ItemIdentity, job: Job, question: Question) -> str | None:
        return self.done.claim(self.keys.key(item, job.path, question))
