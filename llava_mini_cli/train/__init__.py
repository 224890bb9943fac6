"""Training: the paper's stages on transformers' Trainer, and the demo model's own. Needs the `[train]` extra."""
