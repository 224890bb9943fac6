"""A video as a clip: one thread reads a decoder's child process, turns to the other decoder when the first fails, and
says what could not be read.

Knows how to go on after a failure; knows nothing of containers or of the decoders' commands.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llava_mini_cli.errors import PASSING_KINDS, MediaError
from llava_mini_cli.handover import HandOver, StoppedError
from llava_mini_cli.media.bounds import shortage
from llava_mini_cli.media.child import Child, KilledError, StalledError
from llava_mini_cli.media.clip import Clip, ClipInfo, FrameChunk
from llava_mini_cli.media.decoders import Decoder, DecoderError, Name, Pixels, Plan
from llava_mini_cli.media.endings import SignalledError, started, twice
from llava_mini_cli.media.scan import clean
from llava_mini_cli.media.timeline import Selection

CHUNKS_WAITING = 2  # while the engine takes another one
JOIN_S = 5.0  # the decoder is dead by then, unless the kernel cannot end it

# The last is what decord says of AV1.
_UNKNOWN_CODEC = ("Unknown decoder", "Decoder not found", "no decoder found", "cannot find video stream")


@dataclass(frozen=True)
class Decoding:
    """The decisions that are made before a video's first frame is decoded."""

    plan: Plan
    selection: Selection
    order: Sequence[Name]  # decoders to try, first first
    decoders: Mapping[Name, Decoder]
    timeout: float  # seconds without a frame
    chunk_frames: int
    suspicion: str | None  # what is known to be missing from the file; None: nothing
    doubt: str | None  # why frames may be wrong, or look otherwise than they should; None: no reason
    scene_threshold: float | None = None  # score of a frame at which a scene begins; None: frames have no scores


class VideoClip(Clip):
    """The sampled frames of a video; a `Clip`. Its decoder starts at once and waits when nobody takes its frames."""

    def __init__(self, info: ClipInfo, decoding: Decoding) -> None:
        self.info = info
        self.warnings: list[str] = []
        self.cuts = None if decoding.scene_threshold is None else []
        self._decoding = decoding
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._closed = False
        self._chunks = HandOver(self._produce, CHUNKS_WAITING, "frames")

    def __iter__(self) -> Iterator[FrameChunk]:
        """Chunks in time order.

        Raises:
            MediaError: not a single frame can be had; or some are missing, and the reason lies in the moment.
        """
        try:
            yield from self._chunks
        finally:
            self.close()

    def ready(self) -> bool:
        """True if the next chunk (or the end, or an error) can be had without waiting."""
        return self._chunks.ready()

    def close(self) -> None:
        """Kills the decoder's process and waits for the thread that reads it."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
        self._chunks.stop()
        self._chunks.join(JOIN_S)

    def _produce(self, chunks: HandOver[FrameChunk]) -> None:
        packer = _Packer(self._decoding, chunks, self.cuts)
        failure: MediaError | None = None
        passing: MediaError | None = None  # a failure that lies in the moment
        for name in self._decoding.order:
            failure = self._decode(name, packer)
            if failure is None or (self.cuts is None and packer.passed == len(self._decoding.plan.pts)):
                break
            passing = failure if failure.kind in PASSING_KINDS else passing
        if passing is not None and (self.cuts is not None or packer.given < len(self._decoding.plan.pts)):
            raise passing  # a part of the frames, or of the cuts, would be answers that another run would not give
        if failure is not None and packer.given == 0:
            raise failure
        packer.hand_over_rest()
        self._account(packer, failure)

    def _decode(self, name: Name, packer: "_Packer") -> MediaError | None:
        """Runs one decoder over the frames that are still missing; returns the failure that the next one may mend."""
        decoder = self._decoding.decoders[name]

        try:
            twice(lambda: self._read_rest(decoder, packer))
        except MediaError as error:
            return error
        except StalledError:
            waited = f"{name} gave no frame for {self._decoding.timeout:g} s"
            self.warnings.append(f"{waited} and was stopped")
            return MediaError("timeout", waited)
        except DecoderError as error:
            return _failure(str(error))
        except KilledError:
            raise StoppedError from None
        if packer.given == 0:
            reason = f" ({clean(packer.complaints[0])})" if packer.complaints else ""
            return MediaError("corrupt", f"no frame could be decoded{reason}")
        return None

    def _read_rest(self, decoder: Decoder, packer: "_Packer") -> None:
        """Has one decoder read the frames that are still missing, if any."""
        rest = packer.rest(self._decoding.plan)
        for part in decoder.parts(rest) if rest.pts else ():
            self._read(decoder, part, packer)

    def _read(self, decoder: Decoder, part: Plan, packer: "_Packer") -> None:
        child = self._start(decoder, part)
        missing = packer.passed - packer.given
        try:
            for pts, pixels in decoder.read(child, part):
                packer.add(pts, pixels)
            packer.complaints.extend(child.said)
        except (DecoderError, StalledError, SignalledError) as error:
            if (short := shortage(child.said, child.memory)) is not None:
                raise short from None
            if isinstance(error, SignalledError):
                packer.complaints.extend(child.said)  # about frames that were given, and are not read again
                if packer.passed - packer.given > missing:  # ffmpeg leaves some out before its last, when told to end
                    raise error.as_media_error() from None
            raise
        else:
            if (short := shortage(child.said, child.memory)) is not None:
                raise short
        finally:
            self._end(child)

    def _start(self, decoder: Decoder, plan: Plan) -> Child:
        with self._lock:
            if self._closed:
                raise StoppedError
            self._child = started(decoder.command(plan), self._decoding.timeout)
            return self._child

    def _end(self, child: Child) -> None:
        with self._lock:
            self._child = None
            child.close()

    def _account(self, packer: "_Packer", failure: MediaError | None) -> None:
        """Adds warnings that say which frames are missing, and why."""
        decoding = self._decoding
        wanted = len(decoding.plan.pts)
        if packer.given < wanted:
            reason = f": {failure}" if failure else f": {clean(packer.complaints[0])}" if packer.complaints else ""
            self.warnings.append(f"{packer.given} of {wanted} frames could be decoded{reason}")
        elif failure is not None and self.cuts is not None:
            self.warnings.append(f"scenes at the end may be missing: {failure}")
        elif packer.complaints and decoding.suspicion is None:
            self.warnings.append(f"the video is damaged; frames may be, too ({clean(packer.complaints[0])})")
        self.warnings += filter(None, (decoding.suspicion, decoding.doubt))


class _Packer:
    """Puts frames, each as often as it was sampled, into chunks."""

    def __init__(self, decoding: Decoding, chunks: HandOver[FrameChunk], cuts: list[float] | None) -> None:
        selection = decoding.selection
        self._selection = selection
        self._chunk_frames = decoding.chunk_frames
        self._chunks = chunks
        self._plan = decoding.plan
        self._threshold = decoding.scene_threshold
        self._cuts = cuts
        self._scored: int | None = None  # ticks of the last frame whose score is known
        self._waiting: deque[tuple[int, Pixels]] = deque()  # frames whose score is not known yet
        self._frames: list[Pixels] = []
        self._times: list[float] = []
        self._distinct = np.unique(selection.pts)
        self.given = 0  # distinct frames that were had
        self.passed = 0  # distinct frames that were had or are behind those that were
        self.complaints: list[str] = []

    def add(self, pts: int, pixels: Pixels) -> None:
        """Takes a frame, unless it or one behind it was had: chunks are in time order, each frame once."""
        passed = int(np.searchsorted(self._distinct, pts, side="right"))
        if passed <= self.passed:
            return
        self.given += 1
        self.passed = passed
        if self._cuts is None or (self._scored is not None and pts < self._scored):
            self._put(pts, pixels)
        else:
            self._waiting.append((pts, pixels))

    def rest(self, plan: Plan) -> Plan:
        """What of the plan is missing still; with scores at least its last frame, as cuts may lie behind that."""
        if self._cuts is None:
            return plan.rest(self.passed)
        rest = plan.rest(min(self.passed, len(plan.pts) - 1))
        return replace(rest, scored=self._take_score, since=self._scored)

    def _take_score(self, pts: int, score: float) -> None:
        """A frame's score. The frames before it need not wait any more; others may have its very time."""
        assert self._cuts is not None
        assert self._threshold is not None
        if self._scored is not None and pts < self._scored:
            return
        self._scored = pts
        if score >= self._threshold and (cut := self._plan.seconds(pts)) not in self._cuts[-1:]:
            self._cuts.append(cut)
        while self._waiting and self._waiting[0][0] < pts:
            self._put(*self._waiting.popleft())

    def _put(self, pts: int, pixels: Pixels) -> None:
        first = int(np.searchsorted(self._selection.pts, pts, side="left"))
        last = int(np.searchsorted(self._selection.pts, pts, side="right"))
        for time in self._selection.times[first:last]:
            self._frames.append(pixels)
            self._times.append(float(time))
            if len(self._frames) == self._chunk_frames:
                self.flush()

    def hand_over_rest(self) -> None:
        """Hands over what there is, and frames that wait for scores too."""
        while self._waiting:
            self._put(*self._waiting.popleft())
        self.flush()

    def flush(self) -> None:
        if self._frames:
            self._chunks.put(FrameChunk(np.stack(self._frames), np.array(self._times)))
            self._frames, self._times = [], []


def _failure(text: str) -> MediaError:
    """A decoder's last words as an error of the right kind."""
    if any(sign in text for sign in _UNKNOWN_CODEC):
        return MediaError("unsupported_codec", f"the video's codec cannot be decoded ({text})")
    return MediaError("corrupt", text)
