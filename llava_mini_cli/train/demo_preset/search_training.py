"""The CLIP's second stage: scores that tell what a picture shows from what it almost shows.

CLIP's contrast within a batch teaches which of many texts fits best, not whether one fits at all, which is what a
threshold on the score asks. So every pair of picture and text of a batch is also judged by its truth, texts with one
thing changed among them (a sigmoid for each pair, as in SigLIP, Zhai et al. 2023); the contrast leaves out pairs that
are true by chance. What LLaVA-Mini reads stays as it is: only the layers behind it, the projections and the text half
are trained.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import CLIPModel, PreTrainedTokenizerBase

from llava_mini_cli.demo.render import random_look
from llava_mini_cli.demo.scenes import CANVAS, Scene, Split, random_scene
from llava_mini_cli.demo.videos import random_video
from llava_mini_cli.train.demo_preset.pixels import RenderedData, normalised, picture
from llava_mini_cli.train.demo_preset.search_text import coded_scene, coded_text, search_text, truth_table, untrue_text
from llava_mini_cli.train.demo_preset.tower_training import SELECT, text_ids

BRIEF = 20  # seconds of the longest video
UNTRUE = 2  # texts with one thing changed, for each picture
SQUASHED = 0.5  # share of pictures that take the road of video frames, which are what is searched most
FRAMES = 0.6  # share of pictures that are frames of videos, where things move and come and go
SCORE = 0.7  # cosine that parts what is shown from what is not, at the beginning


class Example(NamedTuple):
    """A picture, uint8 `[72, 72, 3]`, with its coded scene, and texts, a true one first, with their coded contents."""

    pixels: NDArray[np.uint8]
    scene: NDArray[np.int64]
    texts: tuple[str, ...]
    said: tuple[NDArray[np.int64], ...]


class SearchData(RenderedData[Example]):
    """Pictures with texts that are true and texts that almost are; the same index always gives the same one."""

    def __getitem__(self, index: int) -> Example:
        rng = self.generator(index)
        scene = video_scene(rng, self.split) if rng.random() < FRAMES else random_scene(rng, self.split)
        edge, look = int(rng.choice(CANVAS[self.split])), random_look(rng, scene.background)
        pixels = picture(rng, scene, look, edge, squash=rng.random() < SQUASHED)
        true = search_text(rng, scene)
        texts = (true, *(untrue_text(rng, true, scene) for _ in range(UNTRUE)))
        said = tuple(coded_text(text) for text in texts)
        return Example(pixels, coded_scene(scene), tuple(text.words() for text in texts), said)


def video_scene(rng: np.random.Generator, split: Split) -> Scene:
    """A moment of a random video at which something is seen."""
    while True:
        video = random_video(rng, split, longest=BRIEF)
        scene = video.scene(float(rng.uniform(0, video.seconds)))
        if scene.things:
            return scene


class SearchCollator:
    """Examples of `SearchData` to a batch of tensors."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        said = [said for example in examples for said in example.said]
        return {
            "pixel_values": normalised(np.stack([example.pixels for example in examples])),
            **text_ids(self.tokenizer, (text for example in examples for text in example.texts)),
            "truth": torch.from_numpy(truth_table([example.scene for example in examples], said)),
        }


class SearchTrainer(nn.Module):
    """A CLIP whose scores are trained on truth; `clip` is the result."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.threshold = nn.Parameter(torch.tensor(SCORE))
        clip.vision_model.requires_grad_(False)
        clip.vision_model.encoder.layers[SELECT + 1 :].requires_grad_(True)
        clip.vision_model.post_layernorm.requires_grad_(True)

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, truth: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The loss, and the shares of the true pairs and of the changed texts that a threshold gets right.

        Args:
            pixel_values: float `[B, 3, 72, 72]`.
            input_ids, attention_mask: int64 `[B * (1 + UNTRUE), S]`, each picture's texts one after another.
            truth: bool `[B, B * (1 + UNTRUE)]`.
        """
        clip = self.clip
        seen = clip.vision_model(pixel_values=pixel_values).pooler_output
        image = functional.normalize(clip.visual_projection(seen).float(), dim=-1)
        said = clip.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        text = functional.normalize(clip.text_projection(said).float(), dim=-1)
        logits = (image @ text.T - self.threshold) * clip.logit_scale.exp().clamp(max=100)
        each = functional.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
        own = torch.eye(len(image), dtype=torch.bool, device=truth.device).repeat_interleave(1 + UNTRUE, dim=1)
        changed = own & ~truth
        others = ~(truth | changed)
        loss = each[truth].mean() + each[changed].mean() + each[others].mean()
        pairs = torch.arange(len(image), device=truth.device)
        first = pairs * (1 + UNTRUE)  # each picture's own true text
        chance = truth.clone()
        chance[pairs, first] = False
        scores = logits.masked_fill(chance, -torch.inf)
        loss = loss + functional.cross_entropy(scores, first) + functional.cross_entropy(scores[:, first].T, pairs)
        right = (logits > 0) == truth
        return {
            "loss": loss,
            "found": right[truth].float().mean(),
            "refused": right[changed].float().mean(),
            "first": (scores[:, first].argmax(0) == pairs).float().mean(),
            "threshold": self.threshold.detach(),
        }
