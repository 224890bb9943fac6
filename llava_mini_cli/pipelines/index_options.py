"""The options of an index as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from llava_mini_cli.config import GenerationOptions, ModelOptions, RunLimits, SamplingOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.archive.layout import FeatureKind, Setting
from llava_mini_cli.formats.inputs.prompts import CAPTION_PROMPT


@dataclass(frozen=True)
class IndexOptions:
    """How an archive is filled; the same for all of its media."""

    model: ModelOptions
    sampling: SamplingOptions
    features: FeatureKind | None = None  # store patch features, for exact later answers
    dedupe: float | None = None  # skip frames whose CLIP distance to the last one kept is at most this
    caption_every: float | None = None  # seconds of a window that is captioned
    caption_prompt: str = CAPTION_PROMPT.text
    generation: GenerationOptions = field(default_factory=GenerationOptions)  # how captions are generated
    retry_errors: bool = False  # look again at media that failed before
    prune: bool = False  # drop media whose files are gone
    limits: RunLimits = field(default_factory=RunLimits)

    def __post_init__(self) -> None:
        if self.dedupe is not None and not 0 <= self.dedupe < 2:
            raise UsageError(f"--dedupe is a distance, 0 to 2, not {self.dedupe:g}")
        if self.caption_every is not None and not 0 < self.caption_every < inf:
            raise UsageError(f"--caption-every must be above 0 seconds, not {self.caption_every:g}")
        if self.caption_every is None:  # nothing is answered; auto is our own then
            object.__setattr__(self, "model", self.model.with_own("index without --caption-every"))

    def settings(self, dtype: str) -> dict[str, Setting]:
        """The options that shape the rows, by the names of the flags; `dtype` is the engine's number format."""
        sampling, captions = self.sampling, self.caption_every is not None
        return {
            "fps": sampling.fps,
            "max_frames": sampling.max_frames,
            "start": sampling.start,
            "end": sampling.end,
            "dtype": dtype,
            "quantize": self.model.quantize,
            "dedupe": self.dedupe,
            "caption_every": self.caption_every,
            "caption_prompt": self.caption_prompt if captions else None,
            **(self._of_captions() if captions else {}),
        }

    def _of_captions(self) -> Mapping[str, Setting]:
        """Options of captions that are not at their defaults: an archive made before there was such a flag goes on."""
        usual = {name: getattr(GenerationOptions, name) for name in ("temperature", "top_p", "seed")}
        of_model = {"prompt_layout": self.model.prompt_layout, "llm": self.model.told_llm(self.generation)}
        known = of_model | self.generation.shaping()
        usual |= {"prompt_layout": ModelOptions.prompt_layout}
        return {name: value for name, value in known.items() if value is not None and value != usual.get(name)}
