"""CLIP's shared space of pictures and texts, in which archives are searched.

The projection of pictures and the whole text half come from the CLIP checkpoint that `mm_vision_tower` names, if it
holds them; a checkpoint of the vision half alone has neither. Knows nothing of archives or of the language model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.model.checkpoint import read_tensors
from llava_mini_cli.model.config_rules import text_config
from llava_mini_cli.model.fields import MOST_WIDTH
from llava_mini_cli.model.tensor_shapes import text_shapes
from llava_mini_cli.model.tokenizer_files import load_tokenizer
from llava_mini_cli.model.weight_headers import Stored, compare, member, read_json, stored_tensors, weight_files

IMAGE_PROJECTION = "visual_projection.weight"
TEXT_PROJECTION = "text_projection.weight"
TEXT_PREFIX = "text_model."
WORDINGS = ("{text}", "{text}.", "{capital}.")  # ways to write a query, averaged: captions are written in all of them


def load_image_projection(tower: Path, width: int) -> torch.Tensor | None:
    """The matrix `[shared, width]` from CLIP's summary of a picture into the shared space; None where there is none.

    Raises:
        CheckpointError: the tower's weights are missing or damaged, or the matrix is for another width.
    """
    stored = stored_tensors(tower).get(IMAGE_PROJECTION)
    if stored is None:
        return None
    _check_projection(IMAGE_PROJECTION, stored, width)
    for _, tensor in read_tensors(stored.file, IMAGE_PROJECTION):
        return tensor.float()
    return None


def _check_projection(name: str, stored: Stored, width: int) -> None:
    if len(stored.shape) != 2 or stored.shape[1] != width or not 0 < stored.shape[0] <= MOST_WIDTH:
        raise CheckpointError(
            f"{stored.file}: {name} has shape {list(stored.shape)}, the configuration asks for [shared, {width}]"
        )


def embed_images(summary: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """CLIP's image embeddings, float32 `[B, shared]` of length 1, from summaries `[B, width]`."""
    return functional.normalize(functional.linear(summary.float(), projection.to(summary.device)), dim=-1)


@dataclass(frozen=True)
class TextTower:
    """CLIP's text half: texts -> the shared space."""

    model: CLIPTextModel
    projection: torch.Tensor  # float32 [shared, width]
    tokenizer: Any
    length: int  # most tokens of a text

    @classmethod
    def load(cls, tower: Path) -> "TextTower":
        """From a CLIP directory.

        Raises:
            CheckpointError: the directory holds the vision half alone (the text says what is missing), or is damaged.
        """
        file = member(tower, "config.json")
        fields, stored = read_json(file), stored_tensors(tower)
        parts = {
            "text_config in config.json": "text_config" in fields,
            "text_model weights": any(key.startswith("text_") and key != TEXT_PROJECTION for key in stored),
            "text_projection": TEXT_PROJECTION in stored,
            "tokenizer": any((tower / name).exists() for name in ("tokenizer.json", "vocab.json")),
        }
        missing = [name for name, there in parts.items() if not there]
        if missing:
            raise CheckpointError(
                f"{tower}: the CLIP checkpoint has no {', no '.join(missing)}; searching by text needs a whole CLIP "
                f"(text half, projections and tokenizer) there, such as openai/clip-vit-large-patch14-336"
            )
        config = text_config(fields["text_config"], file)
        _check_text(config, stored, tower)
        model = CLIPTextModel(config)
        state = {key: tensor.float() for path in weight_files(tower) for key, tensor in read_tensors(path, "text_")}
        projection = state.pop(TEXT_PROJECTION)
        _fill(model, {key.removeprefix(TEXT_PREFIX): tensor for key, tensor in state.items()}, tower)
        tokenizer = load_tokenizer(tower, CLIPConfig())
        return cls(model.eval(), projection, tokenizer, int(config.max_position_embeddings))

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> torch.Tensor:
        """Embeddings of texts, float32 `[n, shared]` of length 1.

        Raises:
            ValueError: a text is longer than CLIP reads; it is not cut.
        """
        ids = [self._ids(text) for text in texts]
        longest = max(len(row) for row in ids)
        if longest > self.length:
            raise ValueError(f"the text has {longest} tokens and CLIP reads at most {self.length}")
        pad = self.tokenizer.pad_token_id or 0
        padded = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        summary = self.model(input_ids=padded, attention_mask=mask).pooler_output
        return functional.normalize(functional.linear(summary.float(), self.projection), dim=-1)

    def embed_query(self, text: str) -> torch.Tensor:
        """One query, float32 `[shared]` of length 1: the mean of its `WORDINGS`."""
        plain = text.strip().rstrip(".")
        capital = plain[:1].upper() + plain[1:]
        wordings = [wording.format(text=plain, capital=capital) for wording in WORDINGS]
        return functional.normalize(self.embed(wordings).mean(0), dim=-1)

    def _ids(self, text: str) -> list[int]:
        """Token ids, closed by the end-of-text token at which CLIP reads its summary."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        end = self.tokenizer.eos_token_id
        return ids if ids and ids[-1] == end else [*ids, end]


def _check_text(config: CLIPTextConfig, stored: Mapping[str, Stored], tower: Path) -> None:
    """Makes sure that the tower holds the whole text half, before a module is made of it. Raises `CheckpointError`."""
    wanted = text_shapes(config)
    found = {key.removeprefix(TEXT_PREFIX): tensor for key, tensor in stored.items()}
    missing = [key for key in wanted if key not in found]
    if missing:
        raise CheckpointError(f"{tower}: {len(missing)} tensors of the text half are missing, among them {missing[0]}")
    compare(wanted, found, tower)
    _check_projection(TEXT_PROJECTION, stored[TEXT_PROJECTION], config.hidden_size)


def _fill(model: nn.Module, state: dict[str, torch.Tensor], tower: Path) -> None:
    """Puts the tensors into the text model."""
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{tower}: {' '.join(str(error).split())}") from error
