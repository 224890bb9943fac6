"""Frames of many media through the encode phase, chunk by chunk: the half of the engine in front of prefill.

    frames of any media -> one chunk -> encode -> the windows and the sink of each medium -> complete windows

A chunk is halved when memory runs out. What comes out is returned: windows whose frames are all encoded, and failures.
Knows nothing of the language model's answers.
"""

from collections.abc import Iterator, Sequence

import torch

from llava_mini_cli.engine.admit import ContextLimit
from llava_mini_cli.engine.encode import Encoded, encode, encode_features
from llava_mini_cli.engine.memory import Upload, unless_out_of_memory
from llava_mini_cli.engine.pack import TextPack
from llava_mini_cli.engine.request import EncodedFrames, Failure, FrameSink
from llava_mini_cli.engine.track import Chunk, Complete, SeenFrames, SomeFrames, Track, apart, halves
from llava_mini_cli.errors import ItemError, MediaError
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.model.modeling import LlavaMiniModel
from llava_mini_cli.model.preprocess import Preprocessor

FLOAT16_MAX = torch.finfo(torch.float16).max


class FrameEncoder:
    """Encodes the frames of the media that were added, until each is done with."""

    def __init__(
        self,
        model: LlavaMiniModel,
        preprocessor: Preprocessor,
        context: ContextLimit,
        chunk_frames: int,
        image_projection: torch.Tensor | None = None,
    ) -> None:
        self.tracks: list[Track] = []  # media with frames still to come
        self.frames_encoded = 0  # since it was made
        self._model = model
        self._preprocessor = preprocessor
        self._context = context
        self._chunk_frames = chunk_frames  # halves when memory runs out
        self._image_projection = image_projection  # CLIP's, for requests with a sink; None: it has none
        self._upload = Upload(model.device)

    def frames_ready(self) -> bool:
        """True if some medium's next frames can be had without waiting."""
        return any(track.frames_ready() for track in self.tracks)

    def step(self, wait: bool) -> Iterator[Failure | Complete]:
        """Encodes one chunk of frames, of as many media as it takes; to be read to its end.

        Args:
            wait: waits for the first medium's frames if none are ready.
        """
        chunk, broken = self._take(wait)
        for stretch in apart(chunk):
            yield from self._encode_chunk(stretch)
        for track, error in broken:  # only now: what was seen before it broke counts
            if track in self.tracks:
                yield from self._drop(track, error)
        for track in [track for track in self.tracks if track.ended]:
            self._end(track)
            if track.request.sink is not None:
                track.request.sink.end()
            yield from self._complete(track, float("inf"))

    def close(self) -> None:
        """Ends every source."""
        for track in self.tracks.copy():
            self._end(track)

    def _take(self, wait: bool) -> tuple[Chunk, list[tuple[Track, MediaError]]]:
        """The frames of the next chunk, and the media that broke on the way."""
        chunk: Chunk = []
        broken: list[tuple[Track, MediaError]] = []
        missing = self._chunk_frames
        for track in self.tracks:
            while missing > 0 and (track.frames_ready() or (wait and not chunk and not track.ended)):
                try:
                    frames = track.take(missing)
                except MediaError as error:
                    broken.append((track, error))
                    break
                if frames is None:
                    break
                chunk.append((track, frames))
                missing -= len(frames.times)
        return chunk, broken

    def _encode_chunk(self, chunk: Chunk) -> Iterator[Failure | Complete]:
        """Encodes frames with all prompts, and hands out the windows that they complete."""
        yield from self._encode_pass(chunk, 0)
        for track in dict.fromkeys(track for track, _ in chunk):
            if track in self.tracks:
                yield from self._check_context(track)
        for track, frames in chunk:
            if track in self.tracks:
                yield from self._complete(track, float(frames.times[-1]))

    def _encode_pass(self, chunk: Chunk, number: int) -> Iterator[Failure]:
        """Encodes frames with the prompts of one pass, then those of the passes behind it, which see no pixels again.

        Goes on in halves when memory runs out.
        """
        chunk = [(track, frames) for track, frames in chunk if track in self.tracks and number < len(track.packs)]
        if not chunk:
            return
        packs = [track.packs[number] for track, frames in chunk for _ in range(len(frames.times))]
        encoded = unless_out_of_memory(self._encoded, chunk, packs)
        if encoded is None:
            yield from self._encode_halves(chunk, number, len(packs))
            return
        self.frames_encoded += len(packs) if number == 0 else 0
        again: Chunk = []
        start, part = 0, encoded
        for track, frames in chunk:
            stop = start + len(frames.times)
            if track in self.tracks:
                part = encoded.part(start, stop, len(track.packs[number]))
                yield from self._keep(track, frames, part, number)
                again.append((track, SeenFrames(part.features, frames.times)))
            start = stop
        del encoded, part  # before the next pass needs as much again
        yield from self._encode_pass(again, number + 1)

    def _encode_halves(self, chunk: Chunk, number: int, size: int) -> Iterator[Failure]:
        if size == 1:
            error = ItemError("out_of_memory", "one frame does not fit the memory; fewer prompts need less")
            yield from self._drop(chunk[0][0], error, "generate")
            return
        self._chunk_frames = min(self._chunk_frames, size // 2)
        for part in halves(chunk):
            yield from self._encode_pass(part, number)

    def _encoded(self, chunk: Chunk, packs: Sequence[TextPack]) -> Encoded:
        """A chunk of pixels, or of features, which do not go through the vision tower again."""
        pixels = [self._pixels(track, frames) for track, frames in chunk if isinstance(frames, FrameChunk)]
        if pixels:
            collected = any(track.request.sink is not None for track, _ in chunk)
            projection = self._image_projection if collected else None
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
        return torch.stack([self._preprocessor.image(image) for image in raw])

    def _keep(self, track: Track, frames: SomeFrames, encoded: Encoded, number: int) -> Iterator[Failure]:
        """Adds some of a medium's frames to its windows and to its sink, or fails it."""

        def keep() -> bool:
            track.add(encoded.tokens, encoded.fused, frames.times, number)
            if track.request.sink is not None and number == 0:
                collect(track.request.sink, frames, encoded)
            return True

        try:
            if unless_out_of_memory(keep) is None:
                raise ItemError("out_of_memory", "what is kept of its frames does not fit the memory")
        except ItemError as error:
            yield from self._drop(track, error, "generate")

    def _check_context(self, track: Track) -> Iterator[Failure]:
        """Fails each prompt as soon as a window's frames and it cannot fit the context; nobody waits for the rest."""
        new, lengths = track.request.generation.max_new_tokens, {}
        for pack in track.packs:
            lengths |= pack.prompt_lengths
        longest = max(lengths.values(), default=0)
        full = [window for window in track.windows if self._context.too_long(longest, new, window.frame_count)]
        for window in full:
            found = ((one, self._context.too_long(lengths[one], new, window.frame_count)) for one in window.prompts)
            errors = {prompt: error for prompt, error in found if error is not None}
            window.drop_prompts(errors)
            yield from (track.request.failure(prompt, window.index, error) for prompt, error in errors.items())
        if full and track.request.sink is None and not any(window.groups for window in track.windows):
            self._end(track)

    def _complete(self, track: Track, now: float) -> Iterator[Failure | Complete]:
        """The windows of a medium that end at or before `now`, seconds."""
        for window in track.complete(now):
            if window.frame_count and window.groups:
                yield track, window
            else:
                start, end = window.window.start, window.window.end
                yield from track.failures(window, MediaError("empty", f"no frame between {start:g} and {end:g} s"))

    def _drop(self, track: Track, error: ItemError, stage: str | None = None) -> Iterator[Failure]:
        """Fails whatever of a medium is not answered yet and is not being answered."""
        self._end(track)
        if track.request.sink is not None:
            track.request.sink.fail(stage or error.stage, error.kind, str(error))
        for window in track.windows:
            yield from track.failures(window, error, stage)

    def _end(self, track: Track) -> None:
        """Takes no more frames of a medium."""
        track.request.frames.close()
        self.tracks.remove(track)


def collect(sink: FrameSink, frames: SomeFrames, encoded: Encoded) -> None:
    """Gives a sink what became of some frames of its medium; `encoded` is of these frames alone.

    Raises:
        ItemError: a value is too large for 16 bits.
    """
    if encoded.tokens.abs().max() > FLOAT16_MAX:
        raise ItemError("out_of_range", "a vision token has a value that does not fit float16")
    features = None
    if sink.features is not None:
        kept = encoded.features.half() if sink.features == "float16" else encoded.features.float()
        if not kept.isfinite().all():
            raise ItemError("out_of_range", "a vision feature has a value that does not fit float16; store float32")
        features = kept.cpu().numpy()
    embeddings = None if encoded.embeddings is None else encoded.embeddings.cpu().numpy()
    sink.add(EncodedFrames(frames.times, encoded.tokens.half().cpu().numpy(), embeddings, features))
