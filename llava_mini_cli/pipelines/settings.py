"""The options of a run as one value, and the part of them that shapes its answers."""

from dataclasses import dataclass, field, replace
from typing import Self

from llava_mini_cli.config import (
    EventOptions,
    EvidenceOptions,
    GenerationOptions,
    ModelOptions,
    RunLimits,
    SamplingOptions,
    SpanOptions,
    ThumbnailPlace,
)
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.answer_schema import AnswerSchema
from llava_mini_cli.formats.outputs.open_output import RunInfo
from llava_mini_cli.formats.outputs.row_keys import RowKeys, Settings
from llava_mini_cli.formats.row import (
    EVENT_COLUMNS,
    EVIDENCE_COLUMNS,
    PICTURED,
    THUMBNAIL,
    KeptColumn,
    printable,
)


@dataclass(frozen=True)
class RunOptions:
    """How a run looks at media and answers; the same for each of its jobs."""

    model: ModelOptions
    sampling: SamplingOptions
    generation: GenerationOptions
    limits: RunLimits = field(default_factory=RunLimits)
    prefix: str = ""  # written before each answer
    suffix: str = ""  # written after each answer
    spans: SpanOptions = field(default_factory=SpanOptions)
    events: EventOptions | None = None  # the stretches in which the questions hold are wanted, and no answers in words
    schema: AnswerSchema | None = None  # what each question is asked to fill; None: it is answered in words
    evidence: EvidenceOptions = field(default_factory=EvidenceOptions)
    thumbnails: ThumbnailPlace | None = None  # where small pictures go; None: none are made

    def __post_init__(self) -> None:
        self.spans.finding(is_wanted=self.finds_scenes)
        if self.evidence.most is None:
            return
        object.__setattr__(self, "model", self.model.with_own("--evidence"))  # which auto then is
        if self.schema is not None:
            raise UsageError("--evidence is about one answer, and --schema asks for several; leave one of both")
        if self.spans.scenes and not self.evidence.scenes:
            raise UsageError(
                "--evidence cuts stretches of which it knows the end, and --scenes finds that on the way; "
                "--evidence-spans scenes leaves out whole scenes, --scenes-from takes a list of stretches"
            )

    @property
    def finds_scenes(self) -> bool:
        """True if scenes are looked for in each video, for rows or for evidence."""
        return self.spans.scenes or (self.evidence.scenes and self.spans.scenes_from is None)

    def with_scores(self) -> Self:
        """The same, with frames that have the scores by which scenes are found, where they are looked for."""
        threshold = self.spans.scene_threshold if self.finds_scenes else None
        return replace(self, sampling=replace(self.sampling, scene_threshold=threshold))

    def run_info(self, kept: tuple[KeptColumn, ...] = ()) -> RunInfo:
        """The facts about the run that an output records. Raises `UsageError` where a kept column's name is taken."""
        own = () if self.events is None else EVENT_COLUMNS
        taken = {column.name for column in own}
        for column in kept:
            if column.name.lower() in taken:
                raise UsageError(f"--keep-columns: the rows have a column '{column.name}' of their own")
        return RunInfo(
            printable(self.model.model),
            self.answer_settings(),
            self.model.revision,
            kept=(*own, *kept),
            fields=self.schema and self.schema.columns,
            asked=(*self._evidence_columns(), *self._thumbnail_columns()),
        )

    def _evidence_columns(self) -> tuple[KeptColumn, ...]:
        if self.evidence.most is None:
            return ()
        parts, *others = EVIDENCE_COLUMNS
        return (parts._replace(kind=PICTURED) if self.thumbnails == "column" else parts, *others)

    def _thumbnail_columns(self) -> tuple[KeptColumn, ...]:
        if self.thumbnails is None:
            return ()
        return (KeptColumn(THUMBNAIL, "binary" if self.thumbnails == "column" else "string"),)

    def row_keys(self) -> RowKeys:
        """The maker of the keys of the run's rows."""
        return RowKeys(printable(self.model.model), self.model.revision, self.answer_settings())

    def answer_settings(self) -> Settings:
        """The settings in a row's fingerprint; how tokens are sampled counts only where they are."""
        llm = self.model.told_llm(self.generation)
        return {
            "dtype": self.model.dtype,
            "quantize": self.model.quantize,
            **({} if llm is None else {"llm": llm}),
            "prompt_layout": self.model.prompt_layout,
            "fps": self.sampling.fps,
            "max_frames": self.sampling.max_frames,
            "start": self.sampling.start,
            "end": self.sampling.end,
            **self.generation.shaping(),
            "prefix": self.prefix or None,
            "suffix": self.suffix or None,
            "yes_no": self.generation.yes_no or None,
            **({"fit": 1} if self.sampling.fit else {}),  # rows from before there was --fit stand
            **self.spans.shaping(),
            **({} if self.events is None else self.events.shaping()),
            **self.spans.finding(is_wanted=self.finds_scenes),
            **({"decoder": self.sampling.decoder.replace("auto", "ffmpeg")} if self.finds_scenes else {}),  # finds cuts
            **self.generation.choosing(),
            **({} if self.schema is None else {"schema": self.schema.digest}),
            **self.evidence.shaping(),
            **({} if self.thumbnails is None else {"thumbnails": self.thumbnails}),
        }
