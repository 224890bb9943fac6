"""Answers and failures -> rows. The one place that fills in a row's columns; knows no output format."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llava_mini_cli.engine.request import Answer
from llava_mini_cli.formats.job import Fault, Job
from llava_mini_cli.formats.row import Row, one_line, printable
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.settings import RunOptions
from llava_mini_cli.pipelines.spans import Place


@dataclass(frozen=True)
class RowBuilder:
    """Builds the rows of one run."""

    options: RunOptions
    model_revision: str | None = None  # known once the model is loaded

    def answer(self, job: Job, answer: Answer, info: ClipInfo, warnings: list[str], place: Place | None = None) -> Row:
        """The row of a prompt that was answered; `place`: the prompt's one row about the job if None."""
        place = place or _only_place(job, answer.prompt_index)
        notes = [place.span.note] if place.span and place.span.note else []
        return Row(
            **self._common(job, place, info),
            text=f"{self.options.prefix}{answer.text}{self.options.suffix}",
            status="ok",
            warning=one_line("; ".join([*notes, *warnings])) or None,
            finish_reason=answer.finish_reason,
            p_yes=answer.p_yes,
            choice=None if answer.choice_probs is None else answer.text,
            choice_probs=None if answer.choice_probs is None else dict(answer.choice_probs),
            frame_count=answer.frame_count,
            prompt_tokens=answer.prompt_tokens,
            vision_tokens=answer.vision_tokens,
            completion_tokens=answer.completion_tokens,
        )

    def failure(
        self, job: Job, prompt_index: int, fault: Fault, info: ClipInfo | None = None, place: Place | None = None
    ) -> Row:
        """The row of a prompt that has no answer; `info` is None when the medium was never opened."""
        return Row(
            **self._common(job, place or _only_place(job, prompt_index), info),
            status="error",
            error=one_line(fault.message),
            error_type=fault.kind,
            error_stage=fault.stage,
        )

    def event(
        self, job: Job, place: Place, info: ClipInfo, warnings: list[str], found: Mapping[str, object], **columns: Any
    ) -> Row:
        """A row that says when something holds, or how likely it is of one window.

        Args:
            found: columns behind the row's own; `columns`: some of its own.
        """
        start, end = (place.span.start, place.span.end) if place.span else (None, None)
        common = self._common(job, place, info)
        common |= {"kept": {**found, **common["kept"]}, "start": start, "end": end, **columns}
        return Row(**common, status="ok", warning=one_line("; ".join(warnings)) or None)

    def _common(self, job: Job, place: Place, info: ClipInfo | None) -> dict[str, Any]:
        question = job.questions[place.question]
        prompt, row_id, kept, digest = question.prompt, question.id, question.kept, question.digest
        span = place.span
        return {
            "id": row_id,
            "file_name": printable(job.file_name),
            "segment": span and span.number,
            "start": span.start if span else self.options.sampling.start,
            "end": span.end if span else self.options.sampling.end,
            "prompt_name": prompt.name,
            "prompt": prompt.text,
            "model": printable(self.options.model.model),
            "model_revision": self.model_revision,
            "fingerprint": place.key,
            "digest": digest,
            "created_at": datetime.now(UTC),
            "kept": kept,
            "source": job.path,
            "spans": place.of,
            "media": info and info.kind,
            "fps_sampled": info and info.fps_sampled,
            "duration_s": info and info.duration_s,
            "width": info and info.width,
            "height": info and info.height,
        }


def _only_place(job: Job, prompt_index: int) -> Place:
    question = job.questions[prompt_index]
    return Place(prompt_index, question.span or job.span, question.key)
