"""Where the scenes of a video begin, as far as its frames have come.

A scene begins where what is looked at does, and at each cut that leaves it, the one before and the rest as long as the
shortest scene. Where the clip does not tell the cuts, as not every frame was decoded, they lie between neighbouring
frames of which CLIP's embeddings are far apart. Knows nothing of engines and decoders.
"""

from bisect import bisect_right
from math import inf

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import SpanOptions
from llava_mini_cli.errors import MediaError

BY_CLIP = "scenes by CLIP distance between the frames that were looked at"


class Scenes:
    """The beginnings of scenes, which are told in order."""

    def __init__(
        self, cuts: list[float] | None, spans: SpanOptions, begin: float, end: float, most: float = inf
    ) -> None:
        """Nothing but the first scene is known.

        Args:
            cuts: the clip's, which grow as its frames come; None: it has none.
            spans: when a cut begins a scene.
            begin, end: seconds between which the video is looked at; `end` may be infinity.
            most: scenes of which there may be no more.
        """
        self.starts = [begin]  # seconds
        self._cuts = cuts
        self._threshold = spans.scene_threshold
        self._shortest = spans.min_scene_len
        self._end = end
        self._most = most
        self._looked_at = 0  # cuts
        self._seen: NDArray[np.float32] | None = None  # [1, shared], the embedding of the last frame
        self._seen_time = -inf

    @property
    def wants_embeddings(self) -> bool:
        """True if the clip does not tell where scenes begin."""
        return self._cuts is None

    def reached(self, time: float) -> None:
        """Begins a scene at each of the clip's cuts up to `time`, seconds. Raises `MediaError`: there are too many."""
        cuts = self._cuts or []
        known = bisect_right(cuts, time, self._looked_at)
        for cut in cuts[self._looked_at : known]:
            self._begin(cut)
        self._looked_at = known

    def saw(self, times: NDArray[np.float64], embeddings: NDArray[np.floating] | None) -> None:
        """Begins a scene at each frame that is far from the one before. Frames that come again change nothing.

        Args:
            times: `[n]` seconds.
            embeddings: `[n, shared]` of length 1.

        Raises:
            MediaError: there are no embeddings, or too many scenes.
        """
        if embeddings is None:
            words = "not every frame was decoded, and there are no CLIP embeddings, as its checkpoint has no projection"
            raise MediaError("no_scenes", f"its scenes are not known: {words}; --scenes-from takes a list of them")
        is_new = times > self._seen_time
        if not is_new.any():
            return
        times, clip = times[is_new], embeddings[is_new].astype(np.float32)
        before = np.concatenate([clip[:1] if self._seen is None else self._seen, clip[:-1]])
        self._seen, self._seen_time = clip[-1:], float(times[-1])
        for time in times[clip_scores(before, clip) >= self._threshold]:
            self._begin(float(time))

    def _begin(self, cut: float) -> None:
        """Begins a scene, unless it or the one before would be too short."""
        before = self.starts[-1]
        if not before < cut < self._end or min(cut - before, self._end - cut) < self._shortest:
            return
        if len(self.starts) == self._most:
            raise MediaError("too_many", f"it has more than {self._most:,} scenes; no more are asked about")
        self.starts.append(cut)


def clip_scores(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far pairs of embeddings `[n, shared]` are apart, `[n]`: 0 alike, 50 at a right angle, 100 opposite."""
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return 50 * (1 - (before * after).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny))
