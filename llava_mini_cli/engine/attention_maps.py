"""What the model looks at: the compressor's attention over frames' patches, and pre-fusion's from a question's words.

The plain path, a frame at a time, with every weight made: for looking at, not for answering.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from llava_mini_cli.engine.dense import normalised, project
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.left_out import patch_centres
from llava_mini_cli.media.clip import MediaKind
from llava_mini_cli.model.compressor import QueryCompressor
from llava_mini_cli.model.modeling import LlavaMiniModel, stitch
from llava_mini_cli.model.prefusion import additive_mask, is_padding, text_positions
from llava_mini_cli.model.prompt_layouts import PromptBuilder
from llava_mini_cli.pieces import PieceLayout

_FILLERS = ("a", "Zz")  # questions beside which it shows where a prompt holds its question

Word = tuple[str, list[int]]  # a word, and the places of its tokens in the prompt


@dataclass(frozen=True)
class AttentionMaps:
    """The attention over the patches of some frames. All that one row attends to adds up to 1."""

    words: tuple[str, ...]  # of the question; () without one
    queries: (
        NDArray[np.float32] | None
    )  # [F, C * C, N], mean of the heads; None: the model averages in place of queries
    fusion: NDArray[np.float32]  # [F, layers, words, P], mean of the heads and of a word's tokens; the rest is on text
    centres: NDArray[np.float64]  # [P, 2] pixels of the upright picture, across and down, of each patch's middle
    raster: int  # patches along each edge of the raster that the queries see; these are the first of the P patches


@torch.inference_mode()
def attention_maps(
    engine: Engine, kind: MediaKind, frames: Sequence[NDArray[np.uint8]], size: tuple[int, int], question: str | None
) -> AttentionMaps:
    """The attention over frames of one medium.

    Args:
        frames: uint8 `[height, width, 3]`, a picture as it is, or frames of a video, squashed to `engine.frame_size`.
        size: width and height of the medium as players show it, pixels.
        question: as it would be asked; None: the queries alone are looked at.

    Raises:
        PromptError: the question cannot be asked.
    """
    trunk = engine.model.model
    words = [] if question is None else question_words(engine.prompts, question)
    ids = torch.tensor([engine.prompts.question_ids(question)], device=trunk.device) if question is not None else None
    queries: list[NDArray[np.float32]] = []
    fusion: list[NDArray[np.float32]] = []
    for frame in frames:
        features = _features(engine, kind, frame)
        if isinstance(trunk.compressor, QueryCompressor):
            _, weights = trunk.compressor(_raster(features), need_weights=True)
            queries.append(_array(cast(torch.Tensor, weights)[0]))
        if ids is not None:
            fusion.append(_by_words(trunk, features, ids, words))
    centres = _centres(engine, kind, size)
    grid = trunk.config.patch_grid * trunk.config.resolution_ratio
    nothing = np.zeros((len(frames), len(trunk.prefusion_layers), 0, len(centres)), np.float32)
    shown = tuple(word for word, _ in words)
    return AttentionMaps(
        shown, np.stack(queries) if queries else None, np.stack(fusion) if fusion else nothing, centres, grid
    )


def question_words(prompts: PromptBuilder, question: str) -> list[Word]:
    """The words of a question, with the places of their tokens among the prompt's ids."""
    ids = prompts.question_ids(question)
    others = [prompts.question_ids(filler) for filler in _FILLERS]
    start = min(_alike(ids, other) for other in others)
    stop = len(ids) - min(_alike(ids[start:][::-1], other[::-1]) for other in others)
    places = [place for place in range(start, stop) if ids[place] >= 0]  # without the one where the frames go
    own: dict[int, list[int]] = {}
    for count, place in enumerate(places, start=1):
        # A token may be a part of a character: how many words there are is told all the same.
        begun = prompts.tokenizer.decode([ids[one] for one in places[:count]]).split()
        own.setdefault(max(len(begun) - 1, 0), []).append(place)
    words = prompts.tokenizer.decode([ids[place] for place in places]).split()
    return [(word, own[number]) for number, word in enumerate(words) if number in own]


def text_attention(trunk: LlavaMiniModel, features: torch.Tensor, ids: torch.Tensor) -> list[torch.Tensor]:
    """The attention of each text position in every pre-fusion layer, mean of the heads.

    Args:
        features: `[1, parts, N, mm_hidden_size]`, as the vision tower gives them.
        ids: int64 `[1, T]`; ids <= 0 are padding.

    Returns:
        float32 `[T, V + T]` a layer: patches first, then compressed tokens, then text. Each row adds up to 1.
    """
    vision = trunk.project_vision(features).sequence()
    length = vision.shape[1]
    hidden = torch.cat([vision, trunk.embed_text(ids).to(vision.dtype)], dim=1)
    positions = torch.cat([torch.arange(length, device=ids.device)[None], text_positions(ids, length)], dim=1)
    seen = torch.cat([torch.ones_like(positions[:, :length], dtype=torch.bool), ~is_padding(ids)], dim=1)
    causal = torch.ones(positions.shape[1], positions.shape[1], dtype=torch.bool, device=ids.device).tril()
    mask = additive_mask(causal & seen[:, None, None, :], hidden.dtype)
    rotary = trunk.rotary_emb(hidden, positions)
    found: list[torch.Tensor] = []
    for layer in (cast(LlamaDecoderLayer, layer) for layer in trunk.prefusion_layers):
        queries, keys, _ = project(layer, normalised(layer.input_layernorm, hidden), rotary, length)
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
        scores = queries.float() @ keys.float().transpose(2, 3) * layer.self_attn.scaling
        found.append((scores + mask[:, :, length:].float()).softmax(-1).mean(1)[0])
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    return found


def _by_words(
    trunk: LlavaMiniModel, features: torch.Tensor, ids: torch.Tensor, words: Sequence[Word]
) -> NDArray[np.float32]:
    """`[layers, words, P]`."""
    patches = trunk.config.patch_grid**2 * trunk.config.parts_per_frame
    layers = [
        [weights[places, :patches].mean(0) for _, places in words] for weights in text_attention(trunk, features, ids)
    ]
    if not layers:
        return np.zeros((0, len(words), patches), np.float32)
    return _array(torch.stack([torch.stack(layer) for layer in layers]))


def _features(engine: Engine, kind: MediaKind, frame: NDArray[np.uint8]) -> torch.Tensor:
    """What the vision tower makes of a frame, `[1, parts, N, mm_hidden_size]`."""
    trunk, made = engine.model.model, torch.from_numpy(np.ascontiguousarray(frame)).to(engine.model.device)
    preprocessor = engine.processor.preprocessor
    pixels = preprocessor.frames(made[None]) if kind == "video" else preprocessor.image(made)[None]
    return trunk.vision_tower(pixels.to(trunk.dtype).flatten(0, 1)).unflatten(0, (1, -1))


def _raster(features: torch.Tensor) -> torch.Tensor:
    """What the compressor attends to, `[1, N, mm_hidden_size]`."""
    if features.shape[1] == 1:
        return features[:, 0]
    return stitch(features[:, :-1], round(features.shape[2] ** 0.5))


def _centres(engine: Engine, kind: MediaKind, size: tuple[int, int]) -> NDArray[np.float64]:
    layout, grid = engine.still, engine.model.config.patch_grid
    if kind == "image":
        return patch_centres(layout, size, grid)
    edge = engine.frame_size  # to which a video's frames are squashed, and never letterboxed
    squashed = PieceLayout(layout.shortest_edge, layout.crop, layout.splits)
    return patch_centres(squashed, (edge, edge), grid) * np.array(size) / edge


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items two sequences begin with alike."""
    return next(
        (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )


def _array(weights: torch.Tensor) -> NDArray[np.float32]:
    return weights.float().cpu().numpy()
