"""The engine: requests in, answers out, by the verbs `add`, `step`, `has_room`, `is_idle` and `is_waiting`.

    add -> [FrameEncoder: a chunk of frames] -> [prefill: complete windows] -> [TokenDecoder: a token a step] -> Answer

Every question of a medium travels with it: its frames are decoded and encoded once, its prefix is prefilled once. This
half chooses what is done next and prefills. Failures are values: what fails alone becomes a `Failure`, the rest goes
on. Knows nothing of files or output formats.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch

from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.admit import ContextLimit, admit, passes
from llava_mini_cli.engine.dense import EAGER, Dense
from llava_mini_cli.engine.frame_encoder import FrameEncoder
from llava_mini_cli.engine.generate import prefill
from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.request import Failure, FrameShapes, Outcome, Request
from llava_mini_cli.engine.sampling import random_generator
from llava_mini_cli.engine.scheduler import Limits, Load, choose
from llava_mini_cli.engine.token_decoder import TokenDecoder
from llava_mini_cli.engine.track import Complete, Generation, Track, WindowSum, prefill_items
from llava_mini_cli.errors import ItemError, PromptError
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor
from llava_mini_cli.model.prompt_layouts import PromptBuilder

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
    ) -> None:
        """`image_projection`: CLIP's, for requests with a sink; None: it has none."""
        config = model.config
        self.model = model
        self.processor = processor
        self.prompts = prompts
        self.limits = limits
        self.model_revision = revision
        self.frame_size = config.video_frame_size  # pixels; what video frames are squashed to
        self._shared_width = None if image_projection is None else image_projection.shape[0]
        self._context = ContextLimit(config.max_position_embeddings, config.vision_tokens_per_frame)
        self._encoder = FrameEncoder(
            model.model, processor.preprocessor, self._context, limits.chunk_frames, image_projection
        )
        self._decoder = TokenDecoder(model, prompts, dense)
        self._windows: deque[Complete] = deque()  # to be prefilled
        self._refused: list[Failure] = []  # prompts that could not be asked; the next step tells of them

    @property
    def frames_encoded(self) -> int:
        """Frames since the engine was made."""
        return self._encoder.frames_encoded

    @property
    def dtype(self) -> str:
        """The model's number format, such as `float32`."""
        return str(self.model.dtype).removeprefix("torch.")

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
        return not (self._encoder.tracks or self._windows or self._decoder.generations or self._refused)

    @property
    def is_waiting(self) -> bool:
        """True if `step` would do nothing but wait for a medium's next frames."""
        return not self._refused and choose(self._load(), self.limits) == "wait"

    def has_room(self) -> bool:
        """True if another request would be worked on soon."""
        return len(self._encoder.tracks) + len(self._windows) < self.limits.media

    def add(self, request: Request) -> None:
        """Takes a request in. Prompts that cannot be laid out fail at once, the others go on.

        Raises:
            UsageError: its options ask for what this model cannot give.
        """
        self._decoder.accept(request.generation)
        ids, failures = admit(request, self.prompts, self._context)
        self._refused += failures
        if not any(ids) and request.sink is None:
            request.frames.close()
            return
        packs = [pack_prompts(part) for part in passes(ids)]
        windows = [
            WindowSum(index, window, pack.groups, pass_number=number)
            for number, pack in enumerate(packs)
            for index, window in enumerate(request.windows)
        ]
        self._encoder.tracks.append(Track(request, packs, iter(request.frames), windows))

    def most_frames(self, prompts: Iterable[str], generation: GenerationOptions) -> int | None:
        """Frames of one medium that fit the context beside each prompt that fits at all; None if none does."""
        fitting: list[int] = []
        for prompt in prompts:
            try:
                text = len(self.prompts.question_ids(prompt)) - 1
            except PromptError:
                continue  # it will fail, whatever the frames
            fitting.append(self._context.most_frames(text, generation.max_new_tokens))
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
        """Does the next piece of work: encodes a chunk, prefills, or decodes one token of every answer."""
        action = choose(self._load(), self.limits)
        done: list[Outcome] = []
        if action in ("encode", "wait"):
            done += self._encode(wait=action == "wait")
        elif action == "prefill":
            done += self._prefill(self._next_windows())
        elif action == "decode":
            done += self._decoder.step()
        refused, self._refused = self._refused, []
        return [*refused, *done]

    def close(self) -> None:
        """Ends every source in flight; what was in flight is not answered."""
        self._encoder.close()
        self._decoder.generations.clear()
        self._windows.clear()

    def _load(self) -> Load:
        return Load(
            frames_ready=self._encoder.frames_ready(),
            frames_waiting=bool(self._encoder.tracks),
            prefills=len(self._windows),
            questions=len(self._windows[0][1].prompts) if self._windows else 0,
            generations=len(self._decoder.generations),
            cache_bytes=self._decoder.cache_bytes,
        )

    def _encode(self, wait: bool) -> list[Failure]:
        """The failures of one chunk of frames; the windows that it completes wait for prefill."""
        failures: list[Failure] = []
        for done in self._encoder.step(wait):
            if isinstance(done, Failure):
                failures.append(done)
            else:
                self._windows.append(done)
        return failures

    def _next_windows(self) -> list[Complete]:
        """The windows that are prefilled next: short prefixes together, a long one alone."""
        per_frame = self.model.config.vision_tokens_per_frame
        batch = [self._windows.popleft()]
        asked = len(batch[0][1].prompts) + len(self._decoder.generations)
        while self._windows and all(w.frame_count * per_frame <= SHORT_PREFIX for _, w in (batch[0], self._windows[0])):
            asked += len(self._windows[0][1].prompts)
            if asked > self.limits.generations:
                break
            batch.append(self._windows.popleft())
        return batch

    def _prefill(self, batch: Sequence[Complete]) -> list[Outcome]:
        """Windows through the language model, and the first token of each of their answers."""
        begun = unless_out_of_memory(self._begun, batch)
        if begun is None:
            if len(batch) == 1:
                track, window = batch[0]
                error = ItemError("out_of_memory", "the frames and prompts do not fit the memory")
                return list(track.failures(window, error, "generate"))
            half = len(batch) // 2
            return self._prefill(batch[:half]) + self._prefill(batch[half:])
        for _, window in batch:
            window.release()
        return self._decoder.advance(*begun)

    def _begun(self, batch: Sequence[Complete]) -> tuple[list[Generation], torch.Tensor]:
        """The generations of some windows and the logits of each one's first token, `[n, vocab]`."""
        groups = [(track, window, group) for track, window in batch for group in window.groups]
        cache, logits = prefill(self.model, [item for one in batch for item in prefill_items(*one)])
        begun: list[Generation] = []
        for medium, (track, window, group) in enumerate(groups):
            for slot, prompt in enumerate(group.prompts):
                row = medium * cache.rows_per_medium + slot
                begun.append(Generation(track, window, prompt, cache, row, random_generator(track.request.generation)))
        return begun, logits[[one.row for one in begun]]
