"""Queries by picture are what the plain tower sees; a CLIP without its other half says so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_doubles import noise_video
from safetensors.torch import load_file, save_file
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.engine.query import QueryEncoder
from llava_mini_cli.errors import CheckpointError, UsageError
from llava_mini_cli.model import LlavaMiniForConditionalGeneration, LlavaMiniProcessor


class LongTexts:
    """A text tower that reads nothing."""

    def embed_query(self, text: str) -> torch.Tensor:
        raise ValueError(f"the text has {len(text)} tokens")


def test_a_picture_is_looked_at_as_frames_are(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path)
    encoder, picture = QueryEncoder(str(checkpoint)), noise_video(1, 0)[0]
    with pytest.raises(CheckpointError, match="no visual_projection"):
        encoder.picture(picture)
    with pytest.raises(CheckpointError, match="no text_config"):
        encoder.text("a cat")
    weights = checkpoint / "clip" / "model.safetensors"
    projection = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    save_file({**load_file(weights), "visual_projection.weight": projection}, weights)
    found = encoder.picture(picture)
    model = LlavaMiniForConditionalGeneration.from_pretrained(checkpoint)
    pixels = LlavaMiniProcessor.from_pretrained(checkpoint)(images=picture, text="x")["pixel_values"]
    with torch.no_grad():
        summary = model.model.vision_tower.vision_tower(pixels[:, 0]).pooler_output
    wanted = torch.nn.functional.normalize(summary @ projection.T, dim=-1)[0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_text_that_clip_cannot_read_is_a_usage_error(tmp_path: Path) -> None:
    encoder = QueryEncoder(str(write_tiny_checkpoint(tmp_path)))
    encoder.__dict__["_text_tower"] = LongTexts()
    with pytest.raises(UsageError, match="cannot be searched for: the text has 5 tokens"):
        encoder.text("a cat")
