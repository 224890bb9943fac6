"""Answers and failures -> rows. The one place that fills in a row's columns; knows no output format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llava_mini_cli.engine.request import Answer
from llava_mini_cli.formats.answer_schema import InvalidAnswer, Said
from llava_mini_cli.formats.job import NOTHING_KEPT, Fault, Job
from llava_mini_cli.formats.row import THUMBNAIL, Row, one_line, printable
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.pipelines.evidence import NO_EVIDENCE, evidence_of
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
        common, options = self._common(job, place, info), self.options
        if options.evidence.most is not None:
            found, lack = evidence_of(answer, info, options.evidence)
            common["kept"] = {**common["kept"], **found}
            warnings = [lack, *warnings] if lack else warnings
        return Row(
            **common,
            text=f"{self.options.prefix}{answer.text}{self.options.suffix}",
            status="ok",
            warning=_warning(place, warnings),
            finish_reason=answer.finish_reason,
            p_yes=answer.p_yes,
            choice=None if answer.choice_probs is None else answer.text,
            choice_probs=None if answer.choice_probs is None else dict(answer.choice_probs),
            frame_count=answer.frame_count,
            prompt_tokens=answer.prompt_tokens,
            vision_tokens=answer.vision_tokens,
            completion_tokens=answer.completion_tokens,
        )

    def filled(
        self,
        job: Job,
        prompt_index: int,
        answers: Sequence[Answer],
        info: ClipInfo,
        warnings: list[str],
        place: Place | None = None,
    ) -> Row:
        """The row of a prompt with a schema: what its answers fill in, or an error where one cannot be completed."""
        place, schema = place or _only_place(job, prompt_index), self.options.schema
        assert schema is not None
        columns: dict[str, Any] = {
            **self._common(job, place, info),
            "warning": _warning(place, warnings),
            "finish_reason": next((one.finish_reason for one in answers if one.finish_reason != "stop"), "stop"),
            "frame_count": answers[0].frame_count,
            "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
            "vision_tokens": answers[0].vision_tokens,
            "completion_tokens": sum(answer.completion_tokens for answer in answers),
        }
        said = [Said(answer.text, answer.finish_reason, answer.choice_probs) for answer in answers]
        try:
            filled = schema.fill(said)
        except InvalidAnswer as error:
            told: dict[str, Any] = {
                "error": one_line(str(error)),
                "error_type": "invalid_json",
                "error_stage": "generate",
            }
            return Row(**columns, **told, status="error", text=schema.told(said))
        columns["more"] = {name: filled.columns[name] for name in schema.columns.names}
        text = f"{self.options.prefix}{filled.json}{self.options.suffix}"
        return Row(**columns, status="ok", text=text, json=filled.json)

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
        if self.options.evidence.most is not None:
            kept = {**kept, **NO_EVIDENCE}
        if self.options.thumbnails is not None:
            kept = {**kept, THUMBNAIL: None}
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
            "more": self._no_fields(),
            "kept": kept,
            "source": job.path,
            "spans": place.of,
            "media": info and info.kind,
            "fps_sampled": info and info.fps_sampled,
            "duration_s": info and info.duration_s,
            "width": info and info.width,
            "height": info and info.height,
        }

    def _no_fields(self) -> Mapping[str, object]:
        """The columns of a schema, for a row that it is not filled in for."""
        return NOTHING_KEPT if self.options.schema is None else dict.fromkeys(self.options.schema.columns.names)


def _warning(place: Place, warnings: list[str]) -> str | None:
    notes = [place.span.note] if place.span and place.span.note else []
    return one_line("; ".join([*notes, *warnings])) or None


def _only_place(job: Job, prompt_index: int) -> Place:
    question = job.questions[prompt_index]
    return Place(prompt_index, question.span or job.span, question.key)
