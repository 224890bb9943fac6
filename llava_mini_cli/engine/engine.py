"""The engine: requests in, answers out, by the verbs `add`, `step`, `has_room`, `is_idle` and `is_waiting`.

    add -> [track: frames encoded chunk by chunk] -> [window: prefilled] -> [rows: one token a step] -> Answer

Every question of a medium travels with it: its frames are decoded and encoded once, its prefix is
prefilled once. Failures are values: what fails alone becomes a `Failure`, the rest goes on. Knows nothing
of files or output formats.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch

from llava_mini_cli.engine.admit import ContextLimit, admit
from llava_mini_cli.engine.dense import EAGER, Dense
from llava_mini_cli.engine.encode import Encoded, encode_features
from llava_mini_cli.engine.generate import prefill
from llava_mini_cli.engine.memory import Upload, unless_out_of_memory
from llava_mini_cli.engine.pack import TextPack, pack_prompts
from llava_mini_cli.engine.request import AnyChunk, FrameShapes, Outcome, Request
from llava_mini_cli.engine.sampling import row_generator
from llava_mini_cli.engine.scheduler import Limits, Load, choose
from llava_mini_cli.engine.token_decoder import TokenDecoder
from llava_mini_cli.engine.track import Chunk, Generation, Track, WindowSum, halves, prefill_items
from llava_mini_cli.engine.vision_pass import VisionPass, apart, collect, known, see
from llava_mini_cli.errors import ItemError, MediaError
from llava_mini_cli.media.clip import FrameChunk
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
        name: str = "",
        revision: str | None = None,
        dense: Dense = EAGER,
        image_projection: torch.Tensor | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.prompts = prompts
        self.limits = limits
        self.model_name = name
        self.model_revision = revision
        self._image_projection = image_projection  # CLIP's, for requests with a sink; None: it has none
        self.frame_size = model.config.video_frame_size  # pixels; what video frames are squashed to
        self.frames_encoded = 0  # since the engine was made
        self._room = ContextLimit(model.config.max_position_embeddings, model.config.vision_tokens_per_frame)
        self._chunk = limits.chunk_frames  # halves when memory runs out
        self._upload = Upload(model.device)
        self._tracks: list[Track] = []
        self._windows: deque[tuple[Track, WindowSum]] = deque()  # complete, to be prefilled
        self._outbox: list[Outcome] = []
        self._decoder = TokenDecoder(model, prompts, dense, self._outbox)

    @property
    def device(self) -> str:
        """The model's device, as torch writes it."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """The model's number format, such as `float32`."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def frame_shapes(self) -> FrameShapes:
        """How wide what a sink is given of one frame is."""
        config = self.model.config
        patches = config.patch_grid**2 + (config.mm_vision_select_feature == "cls_patch")
        shared = None if self._image_projection is None else self._image_projection.shape[0]
        token = config.vision_tokens_per_frame, config.hidden_size
        return FrameShapes(token, shared, (config.parts_per_frame, patches, config.mm_hidden_size))

    @property
    def is_idle(self) -> bool:
        """Nothing in flight and nothing to hand out."""
        return not (self._tracks or self._windows or self._decoder.rows or self._outbox)

    @property
    def is_waiting(self) -> bool:
        """Whether `step` would do nothing but wait for a medium's next frames."""
        return not self._outbox and choose(self._load(), self.limits) == "wait"

    def has_room(self) -> bool:
        """Whether another request would be worked on soon."""
        return len(self._tracks) + len(self._windows) < self.limits.media

    def add(self, request: Request) -> None:
        """Takes a request in. Prompts that cannot be laid out fail at once, the others go on.

        Raises:
            UsageError: its options ask for what this model cannot give.
        """
        self._decoder.accept(request.generation)
        ids, failures = admit(request, self.prompts, self._room)
        self._outbox += failures
        if not any(ids) and request.sink is None:
            request.frames.close()
            return
        pack = pack_prompts(ids)
        windows = [WindowSum(index, window, pack.groups) for index, window in enumerate(request.windows)]
        self._tracks.append(Track(request, pack, iter(request.frames), windows))

    def run(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """All outcomes of all requests, as they come; takes requests in as there is room."""
        for request in requests:
            while not self.has_room():
                yield from self.step()
            self.add(request)
        while not self.is_idle:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Outcome]:
        """Does the next piece of work: encodes a chunk, prefills, or decodes one token of every row."""
        action = choose(self._load(), self.limits)
        if action in ("encode", "wait"):
            self._encode(wait=action == "wait")
        elif action == "prefill":
            self._prefill()
        elif action == "decode":
            self._decoder.step()
        done = self._outbox.copy()
        self._outbox.clear()
        return done

    def close(self) -> None:
        """Ends every source in flight; what was in flight is not answered."""
        for track in self._tracks:
            track.request.frames.close()
        self._tracks.clear()
        self._decoder.rows.clear()
        self._windows.clear()

    # encode

    def _load(self) -> Load:
        first = self._windows[0][1] if self._windows else None
        return Load(
            frames_ready=any(track.frames_ready() for track in self._tracks),
            frames_waiting=bool(self._tracks),
            prefills=len(self._windows),
            prefill_rows=len(first.prompts) if first else 0,
            rows=len(self._decoder.rows),
            cache_bytes=self._decoder.cache_bytes,
        )

    def _encode(self, wait: bool) -> None:
        """One chunk of frames, of as many media as it takes; `wait` waits for the first medium's frames."""
        chunk: Chunk = []
        broken: list[tuple[Track, MediaError]] = []
        room = self._chunk
        for track in list(self._tracks):
            while room > 0 and (track.frames_ready() or (wait and not chunk and not track.ended)):
                try:
                    frames = track.take(room)
                except MediaError as error:
                    broken.append((track, error))
                    break
                if frames is None:
                    break
                chunk.append((track, frames))
                room -= len(frames.times)
        for stretch in apart(chunk):
            self._encode_chunk([(track, frames) for track, frames in stretch if track in self._tracks])
        for track, error in broken:  # only now: what was seen before it broke counts
            if track in self._tracks:
                self._drop(track, error)
        for track in [t for t in self._tracks if t.ended]:
            self._end(track)
            if track.request.sink is not None:
                track.request.sink.end()
            self._finish_windows(track, float("inf"))

    def _encode_chunk(self, chunk: Chunk) -> None:
        """Encodes frames and adds them to their windows; halves itself when memory runs out."""
        if not chunk:
            return
        packs = [track.pack for track, frames in chunk for _ in range(len(frames.times))]
        done = unless_out_of_memory(self._encoded, chunk, packs)
        if done is None:
            self._retry_halves(chunk, len(packs))
            return
        sight, encoded = done
        self.frames_encoded += len(packs)
        start = 0
        for track, frames in chunk:
            stop = start + len(frames.times)
            if track in self._tracks:
                fused = encoded.fused[start:stop, : len(track.pack)]
                self._keep(track, frames, sight.part(start, stop), Encoded(encoded.tokens[start:stop], fused))
            start = stop
        for track in {id(track): track for track, _ in chunk if track in self._tracks}.values():
            self._check_context(track)
        for track, frames in chunk:
            if track in self._tracks:
                self._finish_windows(track, float(frames.times[-1]))

    def _encoded(self, chunk: Chunk, packs: Sequence[TextPack]) -> tuple[VisionPass, Encoded]:
        sight = self._sight(chunk)
        return sight, encode_features(self.model.model, sight.features, packs)

    def _retry_halves(self, chunk: Chunk, size: int) -> None:
        if size == 1:
            track = chunk[0][0]
            error = ItemError("out_of_memory", "one frame does not fit the memory; fewer prompts need less")
            self._drop(track, error, "generate")
            return
        self._chunk = max(1, min(self._chunk, size) // 2)
        for part in halves(chunk):
            self._encode_chunk([(track, frames) for track, frames in part if track in self._tracks])

    def _sight(self, chunk: Chunk) -> VisionPass:
        """A chunk of pixels or of features behind the vision tower; known features do not go through it again."""
        pixels = [self._pixels(track, frames) for track, frames in chunk if isinstance(frames, FrameChunk)]
        if not pixels:
            return known(chunk, self.model.dtype, self.model.device)
        collected = any(track.request.sink is not None for track, _ in chunk)
        projection = self._image_projection if collected else None
        return see(self.model.model, torch.cat(pixels).to(self.model.dtype), projection)

    def _keep(self, track: Track, frames: AnyChunk, sight: VisionPass, encoded: Encoded) -> None:
        """Adds some of a medium's frames to its windows and to its sink, or fails it."""

        def keep() -> bool:
            track.add(encoded.tokens, encoded.fused, frames.times)
            if track.request.sink is not None:
                collect(track.request.sink, frames, sight, encoded.tokens)
            return True

        try:
            if unless_out_of_memory(keep) is None:
                raise ItemError("out_of_memory", "what is kept of its frames does not fit the memory")
        except ItemError as error:
            self._drop(track, error, "generate")

    def _pixels(self, track: Track, frames: FrameChunk) -> torch.Tensor:
        """A medium's frames as the vision tower takes them, float32 `[n, parts, 3, H, W]` on the device."""
        raw = self._upload(frames.pixels)
        preprocessor = self.processor.preprocessor
        if track.request.kind == "video":
            return preprocessor.frames(raw)
        return torch.stack([preprocessor.image(image) for image in raw])

    def _check_context(self, track: Track) -> None:
        """Fails each prompt as soon as a window's frames and it cannot fit the context; nobody waits for the rest."""
        new, lengths = track.request.generation.max_new_tokens, track.pack.prompt_lengths
        longest = max(lengths.values(), default=0)
        full = [window for window in track.windows if self._room.too_long(longest, new, window.frame_count)]
        for window in full:
            errors = {
                prompt: self._room.too_long(lengths[prompt], new, window.frame_count) for prompt in window.prompts
            }
            failed = {prompt: error for prompt, error in errors.items() if error is not None}
            window.drop_prompts(failed)
            for prompt, error in failed.items():
                self._outbox.append(track.request.failure(prompt, window.index, error))
        if full and track.request.sink is None and not any(window.groups for window in track.windows):
            self._end(track)

    def _finish_windows(self, track: Track, now: float) -> None:
        for window in track.complete(now):
            if not window.groups:
                continue
            if window.frame_count:
                self._windows.append((track, window))
            else:
                error = MediaError("empty", f"no frame between {window.window.start:g} and {window.window.end:g} s")
                self._fail_window(track, window, error)

    # prefill

    def _prefill(self) -> None:
        """The next windows through the LLM: short prefixes together, a long one alone."""
        per_frame = self.model.config.vision_tokens_per_frame
        batch = [self._windows.popleft()]
        rows = len(batch[0][1].prompts)
        while self._windows and all(w.frame_count * per_frame <= SHORT_PREFIX for _, w in (batch[0], self._windows[0])):
            rows += len(self._windows[0][1].prompts)
            if rows + len(self._decoder.rows) > self.limits.rows:
                break
            batch.append(self._windows.popleft())
        self._prefill_batch(batch)

    def _prefill_batch(self, batch: Sequence[tuple[Track, WindowSum]]) -> None:
        done = unless_out_of_memory(self._prefilled, batch)
        if done is None:
            if len(batch) == 1:
                error = ItemError("out_of_memory", "the frames and prompts do not fit the memory")
                self._fail_window(*batch[0], error, "generate")
                return
            half = len(batch) // 2
            self._prefill_batch(batch[:half])
            self._prefill_batch(batch[half:])
            return
        self._decoder.advance(*done)
        for _, window in batch:
            window.release()

    def _prefilled(self, batch: Sequence[tuple[Track, WindowSum]]) -> tuple[list[Generation], torch.Tensor]:
        """The rows of some windows and the logits of each row's first token, `[n, vocab]`."""
        groups = [(track, window, group) for track, window in batch for group in window.groups]
        cache, logits = prefill(self.model, [item for one in batch for item in prefill_items(*one)])
        rows: list[Generation] = []
        for medium, (track, window, group) in enumerate(groups):
            for slot, prompt in enumerate(group.prompts):
                generator = row_generator(track.request.generation)
                at = medium * cache.rows_per_medium + slot
                rows.append(Generation(track, window, prompt, cache, at, generator))
        return rows, logits[[row.number for row in rows]]

    # outcomes

    def _drop(self, track: Track, error: ItemError, stage: str | None = None) -> None:
        """Fails whatever of a medium is not answered yet and is not being answered."""
        self._end(track)
        if track.request.sink is not None:
            track.request.sink.fail(stage or getattr(error, "stage", "generate"), error.kind, str(error))
        for window in track.windows:
            self._fail_window(track, window, error, stage)

    def _end(self, track: Track) -> None:
        """Takes no more frames of a medium."""
        track.request.frames.close()
        self._tracks.remove(track)

    def _fail_window(self, track: Track, window: WindowSum, error: ItemError, stage: str | None = None) -> None:
        for prompt in window.prompts:
            self._outbox.append(track.request.failure(prompt, window.index, error, stage))
