"""Frames of many media through the encode phase, chunk by chunk: the half of the engine in front of prefill.

    frames of any media -> one chunk -> encode -> the windows and the sink of each medium -> complete windows

What is to be done is handed out in pieces (`work`). What comes out is kept until it is fetched: windows whose frames
are all encoded, and failures. Knows nothing of the language model's answers.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import isinf
from typing import Literal

import torch

from llava_mini_cli.engine.admit import ContextLimit
from llava_mini_cli.engine.encode import Encoded, encode, encode_features
from llava_mini_cli.engine.memory import Upload
from llava_mini_cli.engine.pack import TextPack
from llava_mini_cli.engine.request import EncodedFrames, Failure, Window
from llava_mini_cli.engine.track import Chunk, Complete, SeenFrames, SomeFrames, Track, apart, halves
from llava_mini_cli.engine.work import More, Once, Piece
from llava_mini_cli.engine.work_room import WorkRoom
from llava_mini_cli.errors import ItemError, MediaError
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.model.modeling import LlavaMiniModel
from llava_mini_cli.model.preprocess import Preprocessor

NOT_KEPT = "what is kept of its frames does not fit the memory"
GROW_AFTER = 64  # chunks without a shortage after which one of twice the size is tried: a shortage may pass
FLOAT16_MAX = torch.finfo(torch.float16).max


class FrameEncoder:
    """Encodes the frames of the media that were added, until each is done with."""

    def __init__(
        self,
        model: LlavaMiniModel,
        preprocessor: Preprocessor,
        context: ContextLimit,
        chunk_frames: int,
        room: WorkRoom,
        image_projection: torch.Tensor | None = None,
    ) -> None:
        self.tracks: list[Track] = []  # media with frames still to come
        self.windows: deque[Complete] = deque()  # whose frames are all encoded, to be prefilled
        self.failures: list[Failure] = []  # to be handed out
        self.frames_encoded = 0  # since it was made
        self._model = model
        self._preprocessor = preprocessor
        self._context = context
        self._most_frames = chunk_frames  # of a chunk
        self._chunk_frames = chunk_frames  # halves when memory runs out, and grows again
        self._done_well = 0  # chunks since it did either
        self._room = room
        self._image_projection = image_projection  # CLIP's, where embeddings are wanted; None: it has none
        self._upload = Upload(model.device)
        self._asked: Track | None = None  # the medium whose frames are taken

    def frames_ready(self) -> bool:
        """True if some medium's next frames can be had without waiting."""
        return any(track.frames_ready() for track in self.tracks)

    def step(self, wait: bool) -> More:
        """Encodes one chunk of frames, of as many media as it takes.

        Args:
            wait: waits for the first medium's frames if none are ready.
        """
        return [self._taking([], wait)]

    def close(self) -> None:
        """Ends every source."""
        for track in self.tracks.copy():
            self._end(track)

    def _taking(self, chunk: Chunk, wait: bool) -> Piece:
        """`chunk` holds what was taken already, also when memory runs out on the way."""

        def cannot() -> More:
            assert self._asked is not None
            self._asked.error = MediaError("out_of_memory", "there is no memory for its next frames")
            return [self._taking(chunk, wait)]

        return Piece(partial(self._take, chunk, wait), cannot)

    def _take(self, chunk: Chunk, wait: bool) -> More:
        """Takes the frames of the next chunk; media that broke are dropped behind it, as what was seen counts."""
        for track in self.tracks:
            self._asked = track
            self._take_of(track, chunk, wait)
        encoding = [piece for stretch in apart(chunk) for piece in self._encode_chunk(stretch)]
        return [*encoding, *(self._of(track, self._end_or_drop) for track in self.tracks)]

    def _take_of(self, track: Track, chunk: Chunk, wait: bool) -> None:
        missing = self._chunk_frames - sum(len(frames.times) for _, frames in chunk)
        while missing > 0 and track.error is None:
            if not (track.frames_ready() or (wait and not chunk and not track.ended)):
                return
            try:
                frames = track.take(missing)
            except MediaError as error:
                track.error = error
                return
            if frames is None:
                return
            chunk.append((track, frames))
            missing -= len(frames.times)

    def _of(self, track: Track, function: Callable[[Track], More]) -> Piece:
        """A piece about one medium, which is dropped if there is no memory for it."""
        return Piece(partial(function, track), self._dropping(track))

    def _dropping(self, track: Track) -> Callable[[], More]:
        return partial(self._drop, track, ItemError("out_of_memory", NOT_KEPT), "generate")

    def _encode_chunk(self, chunk: Chunk) -> More:
        """Encodes frames with all prompts, and hands out the windows that they complete."""
        last = {track: float(frames.times[-1]) for track, frames in chunk}
        settled = [self._of(track, partial(self._settle, now=now)) for track, now in last.items()]
        return [self._pass(chunk, 0), *settled]

    def _pass(self, chunk: Chunk, number: int) -> Piece:
        return Piece(
            partial(self._encode_pass, chunk, number),
            partial(self._fail_pass, chunk, number),
            partial(self._encode_halves, chunk, number),
        )

    def _encode_pass(self, chunk: Chunk, number: int) -> More:
        """Encodes frames with the prompts of one pass, then of those behind it, which see no pixels again."""
        chunk = [(track, frames) for track, frames in chunk if track in self.tracks and number < len(track.packs)]
        if not chunk:
            return ()
        packs = [track.packs[number] for track, frames in chunk for _ in range(len(frames.times))]
        self._room.encode(len(packs), max(map(len, packs)))
        encoded = self._encoded(chunk, packs)
        self._grow()
        keeping: list[Piece] = []
        again: Chunk = []
        start = 0
        for track, frames in chunk:
            stop = start + len(frames.times)
            part = encoded.part(start, stop, len(track.packs[number]))
            keeping.append(self._of(track, partial(self._keep, frames=frames, encoded=part, number=number)))
            again.append((track, SeenFrames(part.features, frames.times)))
            start = stop
        return [*keeping, self._pass(again, number + 1)]

    def _grow(self) -> None:
        self._done_well += 1
        if self._done_well >= GROW_AFTER:
            self._chunk_frames, self._done_well = min(2 * self._chunk_frames, self._most_frames), 0

    def _encode_halves(self, chunk: Chunk, number: int) -> More:
        """The chunk, or the prompts about a single frame, in two; none of a single prompt."""
        size = sum(len(frames.times) for _, frames in chunk)
        if size > 1:
            parts = halves(chunk)
            self._chunk_frames, self._done_well = min(self._chunk_frames, size // 2), 0
            return [self._pass(part, number) for part in parts]
        return [self._pass(chunk, number)] if chunk[0][0].split_pass(number) else ()

    def _fail_pass(self, chunk: Chunk, number: int) -> More:
        """Drops the prompt of a pass that does not fit with a frame; the medium, if its frames are wanted, too."""
        ((track, _),) = chunk
        error = ItemError("out_of_memory", "one frame does not fit the memory; fewer prompts need less")
        asked = [pack for other, pack in enumerate(track.packs) if other != number and pack.groups]
        if not asked or (number == 0 and track.request.sink is not None) or not track.packs[number].groups:
            return self._drop(track, error, "generate")
        failures = track.pass_failures(number, error, "generate")
        again = [self._pass(chunk, number)]
        track.refuse([prompt for group in track.packs[number].groups for prompt in group.prompts], error, "generate")
        track.drop_pass(number)
        self.failures += failures
        return again

    def _encoded(self, chunk: Chunk, packs: Sequence[TextPack]) -> Encoded:
        """A chunk of pixels, or of features, which do not go through the vision tower again."""
        pixels = [self._pixels(track, frames) for track, frames in chunk if isinstance(frames, FrameChunk)]
        if pixels:
            projection = self._image_projection if any(track.wants_embeddings for track, _ in chunk) else None
            return encode(self._model, torch.cat(pixels).to(self._model.dtype), packs, projection)
        stored = [
            frames.features if isinstance(frames, SeenFrames) else torch.from_numpy(frames.features)
            for _, frames in chunk
            if not isinstance(frames, FrameChunk)
        ]
        features = torch.cat([part.to(self._model.device, self._model.dtype) for part in stored])
        return encode_features(self._model, features, packs)

    def _pixels(self, track: Track, frames: FrameChunk) -> torch.Tensor:
        """A medium's frames as the vision tower takes them, float32 `[n, parts, 3, H, W]` on the device."""
        raw = self._upload(frames.pixels)
        if track.request.kind == "video":
            return self._preprocessor.frames(raw)
        if raw.dim() == 5:  # a picture in pieces
            return torch.stack([self._preprocessor.normalised(made) for made in raw])
        return torch.stack([self._preprocessor.image(image) for image in raw])

    def _keep(self, track: Track, frames: SomeFrames, encoded: Encoded, number: int) -> More:
        """Adds some of a medium's frames to its windows and to its sink, or fails it."""
        if track not in self.tracks:
            return ()
        sink = track.request.sink if number == 0 else None
        try:
            collected = None if sink is None else collect(sink.features, frames, encoded)
            if number == 0:
                track.see(frames, encoded.embeddings)
                if track.request.watcher is not None and isinstance(frames, FrameChunk):
                    track.request.watcher.saw(frames)
        except ItemError as error:
            return self._drop(track, error, None if isinstance(error, MediaError) else "generate")
        following: list[Piece] = []
        if sink is not None and collected is not None:
            following = [Piece(Once(partial(sink.add, collected)), self._dropping(track))]
        count = len(frames.times) if number == 0 else 0
        if track.request.size is not None:
            track.features = encoded.features
        track.add(encoded.tokens, encoded.fused, frames.times, number)
        self.frames_encoded += count
        return following

    def _settle(self, track: Track, now: float) -> More:
        """Hands out the windows of a medium that are complete, and fails prompts that do not fit the context."""
        if track in self.tracks:
            self._check_context(track)
        if track in self.tracks:
            self._complete(track, now)
        return ()

    def _check_context(self, track: Track) -> None:
        """Fails each prompt as soon as a window's frames and it cannot fit the context; nobody waits for the rest."""
        lengths: dict[int, int] = {}
        for pack in track.packs:
            lengths |= pack.prompt_lengths
        longest = max((length + track.new_tokens[one][0] for one, length in lengths.items()), default=0)
        full = [window for window in track.windows if self._context.too_long(longest, 0, window.frame_count)]
        for window in full:
            asked = ((one, lengths[one], *track.new_tokens[one]) for one in window.prompts)
            found = ((one, self._context.too_long(text, new, window.frame_count, of)) for one, text, new, of in asked)
            errors = {prompt: error for prompt, error in found if error is not None}
            failures = [track.request.failure(prompt, window.index, error) for prompt, error in errors.items()]
            window.drop_prompts(errors)
            self.failures += failures
        is_over = not (track.coming or track.is_growing or any(one.groups for one in track.windows))
        if full and is_over and track.request.sink is None:
            self._end(track)

    def _complete(self, track: Track, now: float) -> None:
        """The windows of a medium that end at or before `now`, seconds."""
        complete: list[Complete] = []
        failures: list[Failure] = []
        track.begin(now)
        for window in track.due(now):
            if window.frame_count and window.groups:
                complete.append((track, window))
            elif window.groups:
                failures += track.failures(window, MediaError("empty", f"no frame {_stretch(window.window)}"))
        track.complete(now)
        failures += track.failed
        track.failed = []
        self.windows += complete
        self.failures += failures

    def _end_or_drop(self, track: Track) -> More:
        """Ends a medium of which there are no more frames."""
        if track not in self.tracks or not (track.ended or track.error):
            return ()
        if track.error is not None:
            return self._drop(track, track.error)
        self._complete(track, float("inf"))
        self._end(track)
        sink = track.request.sink
        if sink is None:
            return ()
        failed = partial(sink.fail, "generate", "out_of_memory", NOT_KEPT)
        return [Piece(Once(sink.end), partial(_told, failed))]

    def _drop(self, track: Track, error: ItemError, stage: str | None = None) -> More:
        """Fails whatever of a medium is not answered yet and is not being answered."""
        if track not in self.tracks:
            return ()
        failures = [one for number in range(len(track.packs)) for one in track.pass_failures(number, error, stage)]
        failures += track.failed_late()
        telling: list[Piece] = []
        if track.request.sink is not None:
            failed = partial(track.request.sink.fail, stage or error.stage, error.kind, str(error))
            telling = [Piece(partial(_told, failed), partial(_told, failed))]
        self._end(track)
        track.windows, track.begun = [], len(track.request.windows)
        self.failures += failures
        return telling

    def _end(self, track: Track) -> None:
        """Takes no more frames of a medium."""
        track.request.frames.close()
        self.tracks.remove(track)


def collect(kind: Literal["float16", "float32"] | None, frames: SomeFrames, encoded: Encoded) -> EncodedFrames:
    """What a sink is given of some frames of its medium, its features as `kind`; `encoded` is of these frames alone.

    Raises:
        ItemError: a value is too large for 16 bits.
    """
    if encoded.tokens.abs().max() > FLOAT16_MAX:
        raise ItemError("out_of_range", "a vision token has a value that does not fit float16")
    features = None
    if kind is not None:
        kept = encoded.features.half() if kind == "float16" else encoded.features.float()
        if not kept.isfinite().all():
            raise ItemError("out_of_range", "a vision feature has a value that does not fit float16; store float32")
        features = kept.cpu().numpy()
    embeddings = None if encoded.embeddings is None else encoded.embeddings.cpu().numpy()
    return EncodedFrames(frames.times, encoded.tokens.half().cpu().numpy(), embeddings, features)


def _stretch(window: Window) -> str:
    return f"from {window.start:g} s on" if isinf(window.end) else f"between {window.start:g} and {window.end:g} s"


def _told(function: Callable[[], None]) -> More:
    function()
    return ()
