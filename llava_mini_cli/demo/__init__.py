"""The demo world: rendered scenes with known truth, questions about them, and the small model trained on them.

Knows no torch: scenes, wording and the place of the shipped model only. `train` makes the model from these.
"""

from pathlib import Path


def model_dir() -> Path:
    """Directory of the demo checkpoint that ships inside the package (`--model demo`)."""
    return Path(__file__).parent / "model"
