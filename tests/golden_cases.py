"""Numbers that the reference implementation computed on tiny weights, and the checkpoints to compare with.

`tests/golden/` holds a part of them; the full set beside the repository is used as well when it is there.
The weights are not stored: they follow the recipe of `tiny_checkpoints`.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import recipe_state, recipe_tower, recipe_value

from llava_mini_cli.model.checkpoint import TOWER_FILE, load_config

OWN = Path(__file__).parent / "golden"
FULL = Path(__file__).parents[2] / "shared" / "golden"
ROOTS = [OWN, *([FULL] if FULL.is_dir() else [])]
CASES = ("mini-llama3", "mini-llama3-hd", "mini-vicuna")


@dataclass(frozen=True)
class Scenario:
    """One run of the reference."""

    root: Path
    case: str
    name: str

    def __str__(self) -> str:
        return f"{'own' if self.root == OWN else 'full'}-{self.case}-{self.name}"

    @property
    def folder(self) -> Path:
        return self.root / self.case / "goldens"

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{self.name}.safetensors")

    def inputs(self) -> Any:
        return np.load(self.folder / "inputs.npz")


def scenarios() -> Iterator[Scenario]:
    """Every stored scenario, of every root."""
    for root in ROOTS:
        for case in CASES:
            for path in sorted((root / case / "goldens").glob("*.safetensors")):
                if path.name.count(".") == 1:
                    yield Scenario(root, case, path.stem)


def write_case(case: str, out: Path) -> Path:
    """A case's files with their weights; returns its checkpoint directory."""
    shutil.copytree(OWN / case, out, dirs_exist_ok=True)
    seeds = json.loads((out / "seeds.json").read_text())
    checkpoint = out / "checkpoint"
    config = load_config(checkpoint)
    state = recipe_state(config, seeds["seed"])
    clip = recipe_tower(config, seeds["clip_seed"])
    index = checkpoint / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        for shard in sorted(set(weight_map.values())):
            save_file({key: state[key] for key, name in weight_map.items() if name == shard}, checkpoint / shard)
    else:
        own = config.unfreeze_mm_vision_tower
        save_file(
            {k: v for k, v in state.items() if own or not k.startswith(TOWER_FILE)}, checkpoint / "model.safetensors"
        )
    if "text_config" in json.loads((out / "clip" / "config.json").read_text()):
        clip["text_model.final_layer_norm.weight"] = torch.from_numpy(recipe_value("text.norm.weight", (32,), 1))
        clip["vision_model.embeddings.position_ids"] = torch.arange(config.patch_grid**2 + 1)
        torch.save(clip, out / "clip" / "pytorch_model.bin")
    else:
        save_file(clip, out / "clip" / "model.safetensors")
    return checkpoint
