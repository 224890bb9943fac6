"""FLOPs per image at the paper's setting, counted by torch on meta tensors: nothing is computed.

    python benchmarks/flops.py

Setting of the paper's Table 14: Vicuna-7B, CLIP ViT-L/14 at 336 px, C = 1, 4 pre-fusion layers, 43 text tokens. The
counter counts a matrix product of [m, k] and [k, n] as 2 * m * k * n, and attention without regard to the mask.
"""

import json
import sys

import torch
from random_models import LARGE_CLIP, VICUNA_7B, CountedPrompts, build_llava_15, build_ours
from torch.utils.flop_counter import FlopCounterMode

from llava_mini_cli.engine.encode import encode_features
from llava_mini_cli.engine.generate import PrefillItem, prefill
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.model import LlavaMiniForConditionalGeneration

TEXT_TOKENS = 43
QUESTION_TOKENS = 20
TERA = 1e12
PAPER = {  # Table 14
    "llava-mini": {
        "vision tower": 0.349,
        "projection": 0.024,
        "compression": 0.001,
        "modality pre-fusion": 1.125,
        "llm": 0.461,
        "total": 1.96,
    },
    "llava-1.5": {"vision tower": 0.349, "projection": 0.024, "llm": 8.177, "total": 8.55},
}


def engine_flops(model: LlavaMiniForConditionalGeneration, questions: int) -> dict[str, float]:
    """TFLOPs of one image with some questions through the engine, by component."""
    prompts = CountedPrompts(TEXT_TOKENS - QUESTION_TOKENS, QUESTION_TOKENS)
    pack = pack_prompts([prompts.question_ids(str(number)) for number in range(questions)])
    pixels = torch.zeros(1, 1, 3, 336, 336, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        features = model.model.vision_tower(pixels[:, 0])[:, None]
    tower = counter.get_total_flops()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        encoded = encode_features(model.model, features, [pack])
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    fusing = counter.get_total_flops()
    (group,) = pack.groups
    shared = pack.segments[group.shared]
    text = encoded.fused[0]
    prefix = torch.cat([text[shared.start : shared.stop - 1], encoded.tokens[0]])
    tails = tuple(text[pack.segments[tail].start : pack.segments[tail].stop] for tail in group.tails)
    counter = FlopCounterMode(display=False)
    with counter:
        prefill(model, [PrefillItem(prefix, tails)])
    llm = counter.get_total_flops()
    compressor, projector = (by_module.get(name, 0) for name in ("QueryCompressor", "Sequential"))
    return {
        "vision tower": tower / TERA,
        "projection": projector / TERA,
        "compression": compressor / TERA,
        "modality pre-fusion": (fusing - compressor - projector) / TERA,
        "llm": llm / TERA,
        "total": (tower + fusing + llm) / TERA,
    }


def plain_flops(model: LlavaMiniForConditionalGeneration) -> float:
    """TFLOPs of one image and one question through the plain path's forward, vision tower cut as in the engine."""
    ids = torch.zeros(1, TEXT_TOKENS + 1, dtype=torch.int64, device="meta")
    pixels = torch.zeros(1, 1, 3, 336, 336, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        _, fused = model.model.fuse(pixels, model.model.embed_text(ids), ids)
        model(inputs_embeds=fused)
    return counter.get_total_flops() / TERA


def llava_15_flops() -> float:
    """TFLOPs of one image and one question through transformers' LLaVA-1.5, by its parts on meta tensors."""
    model = build_llava_15(VICUNA_7B, LARGE_CLIP).requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        features = model.model.vision_tower(torch.zeros(1, 3, 336, 336, device="meta")).last_hidden_state[:, 1:]
        projected = model.model.multi_modal_projector(features)
        text = torch.zeros(1, TEXT_TOKENS, projected.shape[-1], device="meta")
        model.lm_head(model.model.language_model(inputs_embeds=torch.cat([projected, text], 1)).last_hidden_state)
    return counter.get_total_flops() / TERA


def main() -> None:
    with torch.device("meta"):
        model = build_ours(VICUNA_7B, LARGE_CLIP).requires_grad_(False)
        one, two = engine_flops(model, 1), engine_flops(model, 2)
        report = {
            "setting": f"Vicuna-7B, 336 px, C = 1, 4 pre-fusion layers, {TEXT_TOKENS} text tokens; TFLOPs per image",
            "engine": {name: round(value, 4) for name, value in one.items()},
            "further question of 20 tokens": round(two["total"] - one["total"], 4),
            "plain path": round(plain_flops(model), 4),
            "LLaVA-1.5 in transformers": round(llava_15_flops(), 4),
            "paper": PAPER,
        }
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
