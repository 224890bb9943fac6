"""CLIP's shared space of pictures and texts, in which archives are searched.

The projection of pictures and the whole text half come from the CLIP checkpoint that `mm_vision_tower` names, if it
holds them; a checkpoint of the vision half alone has neither. Knows nothing of archives or of the language model.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.model.checkpoint import read_json, read_tensors, weight_files

IMAGE_PROJECTION = "visual_projection.weight"
TEXT_PROJECTION = "text_projection.weight"
TEXT_PREFIX = "text_model."
WORDINGS = ("{text}", "{text}.", "{capital}.")  # ways to write a query, averaged: captions are written in all of them


def load_image_projection(tower: Path) -> torch.Tensor | None:
    """The matrix `[shared, width]` from CLIP's summary of a picture into the shared space; None where there is none.

    Raises:
        CheckpointError: the tower's weights are missing or damaged.
    """
    for path in weight_files(tower):
        for _, tensor in read_tensors(path, IMAGE_PROJECTION):
            return tensor.float()
    return None


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
        fields = read_json(tower / "config.json")
        state = {key: tensor.float() for path in weight_files(tower) for key, tensor in read_tensors(path, "text_")}
        projection = state.pop(TEXT_PROJECTION, None)
        parts = {
            "text_config in config.json": "text_config" in fields,
            "text_model weights": bool(state),
            "text_projection": projection is not None,
            "tokenizer": any((tower / name).exists() for name in ("tokenizer.json", "vocab.json")),
        }
        missing = [name for name, there in parts.items() if not there]
        if missing or projection is None:
            raise CheckpointError(
                f"{tower}: the CLIP checkpoint has no {', no '.join(missing)}; searching by text needs a whole CLIP "
                f"(text half, projections and tokenizer) there, such as openai/clip-vit-large-patch14-336"
            )
        config = CLIPTextConfig(**{key: value for key, value in fields["text_config"].items() if key != "model_type"})
        model = CLIPTextModel(config)
        _fill(model, {key.removeprefix(TEXT_PREFIX): tensor for key, tensor in state.items()}, tower)
        tokenizer = AutoTokenizer.from_pretrained(str(tower))
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


def _fill(model: nn.Module, state: dict[str, torch.Tensor], tower: Path) -> None:
    """Puts the tensors into the text model."""
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{tower}: {' '.join(str(error).split())}") from error
    if missing:
        raise CheckpointError(f"{tower}: {len(missing)} tensors of the text half are missing, among them {missing[0]}")
