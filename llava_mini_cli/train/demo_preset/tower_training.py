"""The demo's vision tower: a small CLIP, trained from nothing on rendered scenes.

Two losses: CLIP's own contrastive one between pictures and captions (which text search uses), and one on
every patch of the layer that LLaVA-Mini reads, which asks what thing the patch belongs to.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from llava_mini_cli.demo.render import random_look, render
from llava_mini_cli.demo.scenes import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    RADIUS,
    SHAPES,
    SIZES,
    Scene,
    random_scene,
)
from llava_mini_cli.train.demo_preset.pixels import EDGE, RenderedData, normalised, resized, squashed
from llava_mini_cli.train.demo_preset.search_text import search_text

PATCH = 12
GRID = EDGE // PATCH
WIDTH = 128
SELECT = -2  # hidden state that LLaVA-Mini reads
CLASSES = {  # of a patch: 0 is a patch without a thing, save for colour, whose last classes are the backgrounds
    "colour": len(COLOURS) + len(BACKGROUNDS),
    "shape": len(SHAPES) + 1,
    "size": len(SIZES) + 1,
    "place": 10,
}
TEXT_LENGTH = 64  # tokens of the longest caption
FAR = 1e9


def tower_config(vocabulary: int, bos: int, eot: int, pad: int) -> CLIPConfig:
    """The small CLIP's configuration; the ids are those of the demo tokenizer."""
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": EDGE,
        "patch_size": PATCH,
    }
    text = {
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": vocabulary,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": bos,
        "eos_token_id": eot,
        "pad_token_id": pad,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)


@dataclass(frozen=True)
class PatchTruth:
    """The thing that each of a picture's 36 patches belongs to."""

    classes: np.ndarray[Any, np.dtype[np.int64]]  # [4, 36], rows in the order of `CLASSES`
    centre: np.ndarray[Any, np.dtype[np.float32]]  # [36, 2] x, y of the thing's centre; NaN without one


def patch_truth(scene: Scene) -> PatchTruth:
    """The thing at each patch (the nearest one that covers the patch's centre, nearly), and its attributes."""
    middle = (np.arange(GRID) + 0.5) / GRID
    owner = np.full((GRID, GRID), -1)
    best = np.full((GRID, GRID), FAR)
    for index, thing in enumerate(scene.things):
        away = np.maximum(np.abs(middle[None, :] - thing.x), np.abs(middle[:, None] - thing.y))
        mine = (away < RADIUS[thing.size] + 0.02) & (away < best)
        owner[mine], best[mine] = index, away[mine]
    classes = np.zeros((len(CLASSES), GRID * GRID), dtype=np.int64)
    classes[0] = len(COLOURS) + BACKGROUNDS.index(scene.background)
    centre = np.full((GRID * GRID, 2), np.nan, dtype=np.float32)
    for index, thing in enumerate(scene.things):
        mine = owner.reshape(-1) == index
        shape, size = SHAPES.index(thing.shape), SIZES.index(thing.size)
        classes[0, mine], classes[1, mine], classes[2, mine] = COLOURS.index(thing.colour), shape + 1, size + 1
        classes[3, mine] = thing.cell + 1
        centre[mine] = (thing.x, thing.y)
    return PatchTruth(classes, centre)


class TowerData(RenderedData[dict[str, Any]]):
    """Pictures with captions and patch truth, rendered on demand; the same index always gives the same picture."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = self.generator(index)
        scene = random_scene(rng, self.split)
        edge = int(rng.choice(CANVAS[self.split]))
        pixels = render(scene, random_look(rng, scene.background), edge, rng)
        pixels = resized(squashed(pixels) if rng.random() < 0.2 else pixels)
        truth = patch_truth(scene)
        text = search_text(rng, scene).words()
        return {"pixels": pixels, "classes": truth.classes, "centre": truth.centre, "text": text}


def text_ids(tokenizer: Any, texts: Iterable[str]) -> dict[str, torch.Tensor]:
    """Texts closed by the end-of-turn token as `input_ids` and `attention_mask`, int64 `[n, S]`."""
    closed = [text + tokenizer.eos_token for text in texts]
    found = tokenizer(closed, padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


class TowerCollator:
    """Examples of `TowerData` to a batch of tensors."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": normalised(np.stack([example["pixels"] for example in examples])),
            **text_ids(self.tokenizer, (example["text"] for example in examples)),
            "classes": torch.from_numpy(np.stack([example["classes"] for example in examples])),
            "centre": torch.from_numpy(np.stack([example["centre"] for example in examples])),
        }


class TowerTrainer(nn.Module):
    """A CLIP and the linear heads that its patches are asked through; the heads are thrown away afterwards."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.clip = CLIPModel(config)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, count) for name, count in CLASSES.items()})
        self.centre = nn.Linear(WIDTH, 2)

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        classes: torch.Tensor,
        centre: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The joint loss, and the share of patches whose every class is right.

        Args:
            pixel_values: float `[B, 3, 72, 72]`.
            input_ids, attention_mask: int64 `[B, S]` captions, closed by the end-of-turn token.
            classes: int64 `[B, 4, 36]`; centre: float `[B, 36, 2]`, NaN where there is no thing.
        """
        clip = self.clip
        seen = clip.vision_model(pixel_values=pixel_values, output_hidden_states=True)
        patches = seen.hidden_states[SELECT][:, 1:]
        image = functional.normalize(clip.visual_projection(seen.pooler_output), dim=-1)
        said = clip.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        text = functional.normalize(clip.text_projection(said), dim=-1)
        scores = image @ text.T * clip.logit_scale.exp().clamp(max=100)
        pairs = torch.arange(len(scores), device=scores.device)
        contrast = (functional.cross_entropy(scores, pairs) + functional.cross_entropy(scores.T, pairs)) / 2
        known = ~centre.isnan()
        loss = 0.3 * contrast + 10 * functional.mse_loss(self.centre(patches)[known], centre[known])
        right = torch.ones_like(classes[:, 0], dtype=torch.bool)
        thing = classes[:, 1] > 0
        for row, name in enumerate(CLASSES):
            logits = self.heads[name](patches)
            each = functional.cross_entropy(logits.transpose(1, 2), classes[:, row], reduction="none")
            loss = loss + each[thing].mean() + 0.5 * each[~thing].mean()
            right &= logits.argmax(-1) == classes[:, row]
        found = (scores.argmax(1) == pairs).float().mean()
        return {"loss": loss, "patches_right": right.float().mean(), "captions_found": found}
