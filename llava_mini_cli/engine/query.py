"""Queries as vectors in CLIP's shared space: a text, a picture, or both.

Loads the halves of CLIP that are needed and nothing of the language model. Knows nothing of archives.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from llava_mini_cli.errors import CheckpointError, UsageError
from llava_mini_cli.hub import find_model, find_tower
from llava_mini_cli.model.checkpoint import load_tower, tower_name
from llava_mini_cli.model.clip_space import TextTower, embed_images, load_image_projection
from llava_mini_cli.model.preprocess import Preprocessor
from llava_mini_cli.model.processor import load_preprocessor
from llava_mini_cli.model.weight_headers import member, read_json
from llava_mini_cli.pieces import PieceLayout


class QueryEncoder:
    """Makes vectors of queries with the CLIP of one model."""

    def __init__(self, model: str, revision: str | None = None) -> None:
        """Raises `ModelNotFound` where the model or its CLIP directory is not there."""
        self._checkpoint = find_model(model, revision)
        file = member(self._checkpoint, "config.json")
        self._tower: Path = find_tower(tower_name(read_json(file), file), self._checkpoint)

    def text(self, text: str) -> NDArray[np.float32]:
        """A text, `[shared]` of length 1.

        Raises:
            CheckpointError: CLIP's text half is not there. UsageError: the text is longer than CLIP reads.
        """
        try:
            return self._text_tower.embed_query(text).numpy()
        except ValueError as error:
            raise UsageError(f"the query cannot be searched for: {error}") from error

    @torch.inference_mode()
    def picture(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """A picture, `[height, width, 3]` or in pieces, looked at as `index` does, `[shared]` of length 1.

        Raises:
            CheckpointError: CLIP's image projection is not there.
        """
        tower = load_tower(self._checkpoint)
        projection = load_image_projection(self._tower, tower.vision_tower.config.hidden_size)
        if projection is None:
            raise CheckpointError(f"{self._tower}: the CLIP checkpoint has no visual_projection, which searching needs")
        raw = torch.from_numpy(pixels)
        pieces = self._preprocessor.normalised(raw) if raw.dim() == 4 else self._preprocessor.image(raw)
        _, hidden = tower.see(pieces[-1:])
        return embed_images(tower.summary(hidden), projection)[0].numpy()

    @property
    def layout(self) -> PieceLayout:
        """The pieces in which a picture may be given."""
        return self._preprocessor.layout

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        return load_preprocessor(self._checkpoint)

    @cached_property
    def _text_tower(self) -> TextTower:
        return TextTower.load(self._tower)
