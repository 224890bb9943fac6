"""One question of a kind in words, from the templates of its split."""

import numpy as np

from llava_mini_cli.demo.scenes import Split, pick
from llava_mini_cli.demo.templates import AFTER, BEFORE, DECORATED, HELD_OUT, LONG_ANSWERS, TRAIN


def worded(rng: np.random.Generator, split: Split, kind: str, **slots: str) -> str:
    """One question of a kind in a wording of the split, its slots filled."""
    own = "heldout" if split == "heldout" else "train"
    text = pick(rng, (HELD_OUT if own == "heldout" else TRAIN)[kind]).format(**slots)
    text = text[0].upper() + text[1:]
    if kind in LONG_ANSWERS or rng.random() >= DECORATED[own]:
        return text
    if rng.random() < 0.5:
        before = pick(rng, BEFORE[own])
        return before + (text[0].lower() + text[1:] if before.endswith(": ") else text)
    return text + pick(rng, AFTER[own])
