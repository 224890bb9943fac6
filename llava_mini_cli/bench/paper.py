"""The paper's figures of efficiency (arXiv 2501.03895): Vicuna-7B, CLIP ViT-L/14, 336 px. Knows no torch.

FLOPs are in millions of millions, of one image and one question. How Table 14 divides the total of LLaVA-Mini between
pre-fusion and the language model is left out: it does not agree with what Table 6 says of layers of pre-fusion.
"""

from llava_mini_cli.bench.shapes import LARGE_CLIP, VICUNA_7B

COMPONENTS = ("tower", "projection", "compression", "prefusion", "llm", "total")
TABLE_6: dict[tuple[int, int], float] = {  # totals by layers of pre-fusion and vision tokens
    (0, 1): 0.96,
    (0, 16): 1.16,
    (0, 64): 1.79,
    (0, 144): 2.85,
    (1, 1): 1.21,
    (2, 1): 1.46,
    (4, 1): 1.96,
}
LLAVA_TOTAL = {336: 8.55, 672: 40.49}  # Table 14, by pixels
MINI_TOTAL_HD = {1: 7.19}  # Table 14, 672 px, by vision tokens
TABLE_14: dict[tuple[str, int], dict[str, float]] = {  # components by model and pixels
    ("LLaVA-1.5", 336): {"tower": 0.349, "projection": 0.024, "llm": 8.177, "total": LLAVA_TOTAL[336]},
    ("LLaVA-Mini", 336): {"tower": 0.349, "projection": 0.024, "compression": 0.001, "total": TABLE_6[4, 1]},
}

CARDS = ("RTX 3090", "A100", "A800")
TABLE_13: dict[int, tuple[float, float, float]] = {  # milliseconds by vision tokens, on CARDS; 576: LLaVA-1.5
    576: (198.75, 113.04, 87.43),
    1: (64.52, 38.64, 27.43),
    4: (65.52, 38.84, 27.71),
    16: (68.97, 39.28, 28.92),
    64: (80.10, 46.23, 34.65),
}
MEMORY_MB = {"LLaVA-1.5": 360.0, "LLaVA-Mini": 0.6}  # of an image or frame


def is_the_papers(llm: dict[str, object], clip: dict[str, object]) -> bool:
    """True of the language model and the tower that the paper's figures are of."""
    same_llm = all(llm.get(key) == value for key, value in VICUNA_7B.items() if key != "max_position_embeddings")
    return same_llm and all(clip.get(key) == value for key, value in LARGE_CLIP.items())
