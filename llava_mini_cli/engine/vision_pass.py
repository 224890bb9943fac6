"""What the vision tower sees of a chunk of frames, and what is handed to whoever collects it.

Features are what the compressor and the projector take; CLIP's own embedding of a frame comes from the same pass, by
the layers behind the selected one. Knows nothing of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava_mini_cli.engine.request import EncodedFrames, FeatureChunk, FrameSink
from llava_mini_cli.engine.tower import hidden_states, summary
from llava_mini_cli.engine.track import Chunk
from llava_mini_cli.errors import ItemError
from llava_mini_cli.media.clip import FrameChunk
from llava_mini_cli.model.clip_space import embed_images
from llava_mini_cli.model.modeling import LlavaMiniModel

FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class VisionPass:
    """A chunk of frames behind the vision tower."""

    features: torch.Tensor  # [F, parts, N, mm_hidden_size]
    embeddings: torch.Tensor | None = None  # float32 [F, shared], where asked for

    def part(self, start: int, stop: int) -> "VisionPass":
        """That of some of the frames."""
        embeddings = None if self.embeddings is None else self.embeddings[start:stop]
        return VisionPass(self.features[start:stop], embeddings)


@torch.inference_mode()
def see(model: LlavaMiniModel, pixels: torch.Tensor, projection: torch.Tensor | None) -> VisionPass:
    """Pixels `[F, parts, 3, H, W]` through the vision tower, once; with a projection, CLIP's own embeddings too.

    The embedding of a frame that is cut into pieces is that of the whole frame.
    """
    frames, parts = pixels.shape[:2]
    tower = model.vision_tower
    hidden = hidden_states(tower, pixels.flatten(0, 1)).unflatten(0, (frames, parts))
    features = (hidden if tower.keep_cls else hidden[:, :, 1:]).to(pixels.dtype)
    if projection is None:
        return VisionPass(features)
    return VisionPass(features, embed_images(summary(tower, hidden[:, -1]), projection))


def known(chunk: Chunk, dtype: torch.dtype, device: torch.device) -> VisionPass:
    """The sight of a chunk whose features were stored."""
    stored = [frames.features for _, frames in chunk if isinstance(frames, FeatureChunk)]
    return VisionPass(torch.cat([torch.from_numpy(features).to(device, dtype) for features in stored]))


def apart(chunk: Chunk) -> Sequence[Chunk]:
    """A chunk in stretches that hold either pixels or features."""
    stretches: list[Chunk] = []
    for part in chunk:
        if stretches and isinstance(stretches[-1][-1][1], FrameChunk) == isinstance(part[1], FrameChunk):
            stretches[-1].append(part)
        else:
            stretches.append([part])
    return stretches


def collect(sink: FrameSink, frames: FrameChunk | FeatureChunk, sight: VisionPass, tokens: torch.Tensor) -> None:
    """Gives a sink what became of some frames of its medium.

    Args:
        sight: of these frames alone; tokens `[n, C * C, hidden]`.

    Raises:
        ItemError: a value is too large for 16 bits.
    """
    if tokens.abs().max() > FLOAT16_MAX:
        raise ItemError("out_of_range", "a vision token has a value that does not fit float16")
    features = None
    if sink.features is not None:
        kept = sight.features.half() if sink.features == "float16" else sight.features.float()
        if not kept.isfinite().all():
            raise ItemError("out_of_range", "a vision feature has a value that does not fit float16; store float32")
        features = kept.cpu().numpy()
    embeddings = None if sight.embeddings is None else sight.embeddings.cpu().numpy()
    sink.add(EncodedFrames(frames.times, tokens.half().cpu().numpy(), embeddings, features))
