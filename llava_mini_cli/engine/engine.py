"""The engine: requests in, answers out, by the verbs `add`, `step`, `has_room`, `is_idle` and `is_waiting`.

    add -> [FrameEncoder: a chunk of frames] -> [LanguageModel: complete windows] -> Answer

Every question of a medium travels with it: its frames are decoded and encoded once, its prefix is prefilled once. This
half chooses what is done next. Failures are values: what fails alone becomes a `Failure`, the rest goes
on. Knows nothing of files or output formats.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, repeat
from typing import cast

import torch

from llava_mini_cli.config import Choices, GenerationOptions, WeightFormat
from llava_mini_cli.engine.admit import ContextLimit
from llava_mini_cli.engine.dense import EAGER, Dense
from llava_mini_cli.engine.explainer import Explainer
from llava_mini_cli.engine.fit import NUMBER_BYTES
from llava_mini_cli.engine.frame_encoder import FrameEncoder
from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.intake import Intake
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.language_model import Asked, LanguageModel
from llava_mini_cli.engine.llm.own_model import OwnLanguageModel
from llava_mini_cli.engine.llm.token_decoder import end_ids
from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.engine.questions import asked_about
from llava_mini_cli.engine.request import FrameShapes, Outcome, Request
from llava_mini_cli.engine.scheduler import Action, Limits, Load, choose
from llava_mini_cli.engine.track import Complete
from llava_mini_cli.engine.work import More, Piece, work_off
from llava_mini_cli.engine.work_bytes import Sizes, Work
from llava_mini_cli.engine.work_room import WorkRoom
from llava_mini_cli.errors import ItemError, PromptError, UsageError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor
from llava_mini_cli.model.prompt_layouts import PromptBuilder

MakeLanguageModel = Callable[[LabelIds, Grammars], LanguageModel]
SHORT_PREFIX = 512  # positions; prefixes up to this length are padded to one another and prefilled together


class Engine:
    """Answers requests in one streaming, batched pass."""

    def __init__(
        self,
        model: LlavaMiniForConditionalGeneration,
        processor: LlavaMiniProcessor,
        prompts: PromptBuilder,
        limits: Limits,
        revision: str | None = None,
        dense: Dense = EAGER,
        image_projection: torch.Tensor | None = None,
        weight_format: WeightFormat | None = None,
        note: str | None = None,
        make_llm: MakeLanguageModel | None = None,
    ) -> None:
        """Args:
        image_projection: CLIP's, for requests that want embeddings; None: it has none.
        weight_format: that of the Llama layers' weights; None: the model's number format.
        note: why they are in it, where nobody asked for that, or who answers, where it is not `model`.
        make_llm: makes the language model; None: it is our own, in `model`.
        """
        config = model.config
        self.model = model
        self.processor = processor
        self.prompts = prompts
        self.limits = limits
        self.weight_format: WeightFormat = weight_format or cast(WeightFormat, self.dtype)
        self.note = note
        self.model_revision = revision
        self.frame_size = config.video_frame_size  # pixels; what video frames are squashed to
        self.still = processor.preprocessor.layout  # how pictures may be given: in pieces
        self._shared_width = None if image_projection is None else image_projection.shape[0]
        self._context = ContextLimit(config.max_position_embeddings, config.vision_tokens_per_frame)
        work = Work.of(
            Sizes.of(config.to_dict()), model.dtype.itemsize, is_packed=self.weight_format not in NUMBER_BYTES
        )
        self._room = WorkRoom(work, limits.work_bytes, lambda: self._held_bytes)
        self._encoder = FrameEncoder(
            model.model, processor.preprocessor, self._context, limits.chunk_frames, self._room, image_projection
        )
        self._labels = LabelIds(prompts)
        self._grammars = Grammars(prompts, end_ids(model), config.vocab_size)
        self.is_whole = make_llm is None  # the language model is in `model`
        self._llm: LanguageModel
        if make_llm is None:
            self._llm = OwnLanguageModel(model, prompts, self._labels, self._grammars, self._room, dense)
        else:
            self._llm = make_llm(self._labels, self._grammars)
        self._explainer = Explainer(model, prompts, self.still, self._room, self._llm.end_ids)

    @property
    def frames_encoded(self) -> int:
        """Frames since the engine was made."""
        return self._encoder.frames_encoded

    @property
    def dtype(self) -> str:
        """The model's number format, such as `float32`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def media_bytes(self) -> int:
        """The bytes that decoded frames and their decoders may take at once."""
        return self.limits.media_bytes

    @property
    def frame_shapes(self) -> FrameShapes:
        """The shapes of what a sink is given of one frame."""
        config = self.model.config
        patches = config.patch_grid**2 + (config.mm_vision_select_feature == "cls_patch")
        token = config.vision_tokens_per_frame, config.hidden_size
        return FrameShapes(token, self._shared_width, (config.parts_per_frame, patches, config.mm_hidden_size))

    @property
    def is_idle(self) -> bool:
        """True if nothing is in flight and there is nothing to hand out."""
        return not (self._encoder.tracks or self._encoder.windows or self._llm.asked or self._has_outcomes)

    @property
    def is_waiting(self) -> bool:
        """True if `step` would do nothing but wait for a medium's next frames."""
        return not self._has_outcomes and unless_out_of_memory(self._choose) == "wait"

    def has_room(self) -> bool:
        """True if another request would be worked on soon."""
        return len(self._encoder.tracks) + len(self._encoder.windows) < self.limits.media

    def add(self, request: Request) -> None:
        """Takes a request in. Prompts that cannot be laid out fail at once, the others go on.

        Raises:
            UsageError: its options ask for what this model cannot give.
        """
        if any(request.choices) and not self._llm.end_ids:
            raise UsageError("--choices: this model's generation_config.json names no token that ends an answer")
        if not self.is_whole and (request.cut is not None or request.size is not None):
            raise UsageError("--evidence: our own language model has it alone; leave --llm out")
        intake = Intake(request, self.prompts, self._context, self._labels, self._grammars)
        work_off([intake.piece(self._llm.accept)])
        self._encoder.failures += intake.failures
        if intake.track is not None:
            self._encoder.tracks.append(intake.track)
            return
        request.frames.close()
        if request.sink is not None:
            request.sink.fail("generate", "out_of_memory", "its prompts do not fit the memory")

    def most_frames(
        self, prompts: Iterable[str], generation: GenerationOptions, choices: Iterable[Choices | None] = ()
    ) -> int | None:
        """Frames of one medium that fit the context beside each prompt that fits at all; None if none does.

        `choices`: of each prompt; of those behind the last one, and of all by default, there are none.
        """
        fitting: list[int] = []
        for prompt, given in zip(prompts, chain(choices, repeat(None)), strict=False):
            try:
                text = len(self.prompts.question_ids(prompt)) - 1
                new = generation.max_new_tokens if given is None else self._labels.of(given).longest
            except PromptError:
                continue  # it will fail, whatever the frames
            fitting.append(self._context.most_frames(text, new))
        return min((most for most in fitting if most > 0), default=None)

    def run(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """All outcomes of all requests, as they come; takes requests in while it has room."""
        for request in requests:
            while not self.has_room():
                yield from self.step()
            self.add(request)
        while not self.is_idle:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Does the next piece of work: encodes a chunk, prefills, or decodes one token of every answer.

        Raises:
            DeviceLost: the device does not work any more.
        """
        work_off([Piece(self._next, self._next)])
        failures, done = self._encoder.failures, self._llm.done
        self._encoder.failures, self._llm.done = [], []
        outcomes = [*failures, *self._explainer.take(done), *self._explainer.done]
        self._explainer.done = []
        return outcomes

    def ask_alone(self, asked: Asked) -> Outcome:
        """What the language model makes of one question about no medium, while the engine is idle.

        Raises:
            DeviceLost: the device, or the process that the language model is in, does not work any more.
        """
        failed = asked.questions[0].failure(ItemError("out_of_memory", "the prompt does not fit the memory"))

        def fail() -> More:
            self._llm.done.append(failed)
            return ()

        work_off([Piece(partial(self._llm.begin, [asked]), fail)])
        while not self._llm.done:
            work_off(self._llm.step())
        return self._llm.done.pop()

    def close(self) -> None:
        """Ends every source in flight; what was in flight is not answered."""
        self._encoder.close()
        self._llm.close()
        self._encoder.windows.clear()
        self._explainer.close()

    @property
    def _has_outcomes(self) -> bool:
        return bool(self._encoder.failures or self._llm.done or self._explainer.has_work)

    @property
    def _held_bytes(self) -> int:
        """Bytes of keys and values, and of what is kept to explain answers."""
        begun = (window for track in self._encoder.tracks for window in track.windows)
        waiting = (window for _, window in self._encoder.windows)
        summed = sum(window.pieces.nbytes for window in chain(begun, waiting) if window.pieces is not None)
        return self._llm.cache_bytes + self._explainer.nbytes + summed

    def _next(self) -> More:
        if self._explainer.has_work:
            return self._explainer.step()
        match self._choose():
            case "encode":
                return self._encoder.step(wait=False)
            case "wait":
                return self._encoder.step(wait=True)
            case "prefill":
                batch = self._next_windows()
                prefilling = [self._prefilling(batch)]
                for _ in batch:
                    self._encoder.windows.popleft()
                return prefilling
            case "decode":
                return self._llm.step()
            case "idle":
                return ()

    def _choose(self) -> Action:
        windows = self._encoder.windows
        load = Load(
            frames_ready=self._encoder.frames_ready(),
            frames_waiting=bool(self._encoder.tracks),
            prefills=len(windows),
            questions=len(windows[0][1].prompts) if windows else 0,
            generations=self._llm.asked,
            cache_bytes=self._held_bytes,
        )
        return choose(load, self.limits)

    def _next_windows(self) -> list[Complete]:
        """The windows that are prefilled next: short prefixes together, a long one alone."""
        per_frame, windows = self.model.config.vision_tokens_per_frame, self._encoder.windows
        first, count = windows[0], 1
        asked = len(first[1].prompts) + self._llm.asked
        while count < len(windows):
            _, window = windows[count]
            asked += len(window.prompts)
            short = all(one.frame_count * per_frame <= SHORT_PREFIX for one in (first[1], window))
            if not short or asked > self.limits.generations:
                break
            count += 1
        return list(islice(windows, count))

    def _prefilling(self, batch: Sequence[Complete]) -> Piece:
        def fail() -> More:
            ((track, window),) = batch
            error = ItemError("out_of_memory", "the frames and prompts do not fit the memory")
            self._encoder.failures += track.failures(window, error, "generate")
            return ()

        return Piece(partial(self._prefill, batch), fail, partial(self._prefill_halves, batch))

    def _prefill_halves(self, batch: Sequence[Complete]) -> More:
        """The windows, or the prompts of a single one, in two; none of a single prompt."""
        if len(batch) == 1:
            ((track, window),) = batch
            return [self._prefilling([(track, half)]) for half in window.halves()]
        half = len(batch) // 2
        return [self._prefilling(batch[:half]), self._prefilling(batch[half:])]

    def _prefill(self, batch: Sequence[Complete]) -> More:
        """Windows with their questions to the language model."""
        following = self._begun(batch)

        def released() -> More:
            for track, window in batch:
                if not self._explainer.keep((track, window)):
                    window.release()
            return following

        return [Piece(released, released)]

    def _begun(self, batch: Sequence[Complete]) -> More:
        per_frame = self.model.config.vision_tokens_per_frame
        return self._llm.begin([asked for one in batch for asked in asked_about(*one, per_frame)])
