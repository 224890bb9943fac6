"""Pixels and text to the model's inputs, and ids back to text: the counterpart of a transformers processor.

Reads no files of media: images and frames come as arrays or Pillow images.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature

from llava_mini_cli.config import PromptLayout
from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.hub import find_model, find_tower
from llava_mini_cli.model.checkpoint import load_config
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.preprocess import Preprocessor
from llava_mini_cli.model.prompt_layouts import IMAGE, PromptBuilder
from llava_mini_cli.model.tokenizer_files import load_tokenizer
from llava_mini_cli.model.weight_headers import member, read_json

PREPROCESSOR_FILE = "preprocessor_config.json"
Picture = Any  # a Pillow image, or a uint8 array or tensor [H, W, 3] (or [H, W], grey)


def load_preprocessor(
    checkpoint: Path, config: LlavaMiniConfig | None = None, *, local_files_only: bool = False
) -> Preprocessor:
    """CLIP's settings from the checkpoint's `preprocessor_config.json`, else from the tower's directory.

    Raises:
        ModelNotFound, CheckpointError
    """
    config = config or load_config(checkpoint, local_files_only=local_files_only)
    source = member(checkpoint, PREPROCESSOR_FILE)
    if not source.exists():
        tower = find_tower(config.mm_vision_tower, checkpoint, local_files_only=local_files_only)
        source = member(tower, PREPROCESSOR_FILE)
    found = Preprocessor.from_fields(
        read_json(source),
        source,
        splits=config.resolution_ratio,
        pad=config.image_aspect_ratio == "pad",
        frame_size=config.video_frame_size,
    )
    if found.crop != (config.vision.image_size,) * 2:
        crop, size = " x ".join(map(str, found.crop)), config.vision.image_size
        raise CheckpointError(f"{source}: crop_size {crop}: must be image_size of the vision tower, {size}")
    return found


class LlavaMiniProcessor:
    """Prepares batches for `LlavaMiniForConditionalGeneration`."""

    def __init__(self, tokenizer: Any, preprocessor: Preprocessor, config: LlavaMiniConfig) -> None:
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        **_: Any,
    ) -> Self:
        """From a checkpoint directory, a hub id, or `demo`.

        CLIP's settings come from the checkpoint's `preprocessor_config.json`, else from the tower's directory.

        Raises:
            ModelNotFound, CheckpointError
        """
        checkpoint = find_model(str(pretrained_model_name_or_path), revision, local_files_only=local_files_only)
        config = load_config(checkpoint, local_files_only=local_files_only)
        preprocessor = load_preprocessor(checkpoint, config, local_files_only=local_files_only)
        tokenizer = load_tokenizer(checkpoint, config)
        if PromptBuilder(tokenizer).family == "llama3" and not tokenizer.chat_template:
            raise CheckpointError(f"{checkpoint / 'tokenizer_config.json'}: no chat_template")
        return cls(tokenizer, preprocessor, config)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes the tokenizer's files and `preprocessor_config.json`."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(directory)
        clip = self.preprocessor
        fields = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": clip.shortest_edge},
            "crop_size": {"height": clip.crop[0], "width": clip.crop[1]},
            "image_mean": list(clip.mean),
            "image_std": list(clip.std),
            "rescale_factor": clip.rescale,
            "resample": 3,
        }
        (directory / PREPROCESSOR_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

    def prompts(self, layout: PromptLayout = "trained") -> PromptBuilder:
        """The prompt builder for a layout."""
        return PromptBuilder(self.tokenizer, layout, self.config.mm_use_im_start_end, self.config.vocab_size)

    def __call__(
        self,
        images: Picture | Sequence[Picture] | None = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        prompt_layout: PromptLayout = "trained",
        padding_side: str = "left",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Inputs for `generate` or `forward`; one image or one video for each text.

        Args:
            images: one picture or a list of them: Pillow, or uint8 `[H, W, 3]` (`[H, W]` grey).
            text: a question or a list of them, laid out by `prompt_layout`; a text that holds `<image>` is
                taken as a whole prompt and tokenised as the reference does it.
            videos: one video or a list of them: sampled frames, uint8 `[T, H, W, 3]` or a list of pictures.
            padding_side: of `input_ids`.

        Returns:
            input_ids int64 `[B, S]`, attention_mask int64 `[B, S]`, and with media pixel_values float32
            `[F, parts, 3, H, W]` and frame_counts int64 `[B]`.

        Raises:
            ValueError: images and videos together, or counts of media and texts that differ.
            PromptError: a question that cannot be asked.
        """
        if text is None or (images is not None and videos is not None):
            raise ValueError("give a text, and images or videos but not both")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', not {return_tensors!r}")
        texts = [text] if isinstance(text, str) else list(text)
        media = self._images(images) if images is not None else self._videos(videos) if videos is not None else None
        if media is not None and len(media) != len(texts):
            raise ValueError(f"{len(texts)} texts for {len(media)} images or videos")
        ids = [self._ids(one, prompt_layout, media is not None) for one in texts]
        batch: dict[str, torch.Tensor] = dict(_pad(ids, self.pad_token_id, padding_side))
        if media is not None:
            batch["pixel_values"] = torch.cat(media)
            batch["frame_counts"] = torch.tensor([one.shape[0] for one in media])
        return BatchFeature(batch)

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's padding id, or its end-of-sequence id."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def decode(self, ids: torch.Tensor | Sequence[int], prompt_layout: PromptLayout = "trained") -> str:
        """The answer in generated ids, without special tokens and assistant header, stripped."""
        plain = cast(list[int], ids.tolist()) if isinstance(ids, torch.Tensor) else list(ids)
        return self.prompts(prompt_layout).answer_text(plain)

    def batch_decode(self, ids: torch.Tensor | Sequence[Sequence[int]], **kwargs: Any) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, kwargs.get("prompt_layout", "trained")) for row in ids]

    def _ids(self, text: str, layout: PromptLayout, has_media: bool) -> list[int]:
        if IMAGE in text:
            return self.prompts("reference").prompt_ids(text)
        prompts = self.prompts(layout)
        if has_media:
            return prompts.question_ids(text)
        return prompts.prompt_ids(prompts.prompt_text(text).replace(f"{IMAGE}\n", "", 1))

    def _images(self, images: Any) -> list[torch.Tensor]:
        many = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        pictures = [pixels_of(image) for image in images] if many else [pixels_of(images)]
        return [self.preprocessor.image(picture)[None] for picture in pictures]

    def _videos(self, videos: Any) -> list[torch.Tensor]:
        stacked = [_frames_of(video) for video in videos] if _is_list_of_videos(videos) else [_frames_of(videos)]
        return [self.preprocessor.frames(frames) for frames in stacked]


def pixels_of(picture: Picture) -> torch.Tensor:
    """A picture as uint8 `[H, W, 3]`.

    Raises:
        ValueError: not a picture of 8 bits.
    """
    if isinstance(picture, Image.Image):
        picture = np.array(picture.convert("RGB"))
    pixels = torch.as_tensor(picture)
    if pixels.dim() == 2:
        pixels = pixels[..., None].expand(-1, -1, 3)
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    return pixels


def _frames_of(video: Any) -> torch.Tensor:
    frames = [pixels_of(frame) for frame in video]
    if not frames:
        raise ValueError("a video has at least one frame")
    return torch.stack(frames)


def _is_list_of_videos(videos: Any) -> bool:
    if isinstance(videos, list | tuple):
        first: Any = videos[0] if videos else None
        return isinstance(first, list | tuple) or getattr(first, "ndim", 0) == 4
    return getattr(videos, "ndim", 0) == 5


def _pad(rows: list[list[int]], pad: int, side: str) -> dict[str, torch.Tensor]:
    """Ragged rows as a padded batch and its mask, int64 `[B, S]` each."""
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    ones = [torch.ones_like(tensor) for tensor in tensors]
    fill = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": fill(tensors, batch_first=True, padding_value=pad, padding_side=side),
        "attention_mask": fill(ones, batch_first=True, padding_side=side),
    }
