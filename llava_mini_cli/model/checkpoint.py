"""Checkpoints in the published layout, read tensor by tensor: one copy of the weights in memory.

    <checkpoint>/config.json, *.safetensors (or .bin), sharded or not, tokenizer files
    <mm_vision_tower>/config.json, weights          plain CLIP vision model, or a whole CLIP model

Which tower counts: with `unfreeze_mm_vision_tower` the tower tensors of the checkpoint itself;
otherwise those of `mm_vision_tower`, and any in the checkpoint are ignored.
"""

import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPVisionConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.hub import find_tower, weight_source
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.vision import VisionTower

logger = logging.getLogger(__name__)

TOWER_MODULE = "model.vision_tower.vision_tower."  # where the tower sits in our module tree
TOWER_FILE = TOWER_MODULE + "vision_model."  # and under which names a checkpoint holds it
NOT_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")  # buffers that old checkpoints carry along
TEXT_HALF = ("text_", "visual_projection", "logit_scale")  # of a whole CLIP; the vision tower does not have them


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises:
        CheckpointError: it is missing, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: no {path.name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def load_config(checkpoint: Path, *, local_files_only: bool = False) -> LlavaMiniConfig:
    """The configuration of a checkpoint, its `vision_config` filled in from the tower's directory.

    Raises:
        CheckpointError: no LLaVA-Mini configuration, or a field of the wrong type.
        ModelNotFound: the tower is nowhere.
    """
    fields = read_json(checkpoint / "config.json")
    if fields.get("model_type") != LlavaMiniConfig.model_type:
        raise CheckpointError(f"{checkpoint}: a {fields.get('model_type')!r} model, not {LlavaMiniConfig.model_type!r}")
    if fields.get("vision_config") is None:
        tower = find_tower(fields.get("mm_vision_tower"), checkpoint, local_files_only=local_files_only)
        fields["vision_config"] = _tower_config(tower)
    try:
        return LlavaMiniConfig.from_fields(fields)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{checkpoint / 'config.json'}: {' '.join(str(error).split())}") from error


def _tower_config(tower: Path) -> CLIPVisionConfig:
    fields = read_json(tower / "config.json")
    fields = fields.get("vision_config", fields)
    return CLIPVisionConfig(**{key: value for key, value in fields.items() if key != "model_type"})


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a directory, safetensors before torch pickles, sharded or not.

    Raises:
        CheckpointError: there are none, or a shard that the index names is missing.
    """
    source = weight_source(directory)
    if source is None:
        words = "no weights (model.safetensors or pytorch_model.bin, or shards with an index)"
        raise CheckpointError(f"{directory}: {words}")
    if source.suffix != ".json":
        return [source]
    names = sorted(set(read_json(source).get("weight_map", {}).values()))
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise CheckpointError(f"{directory}: {len(missing)} of {len(names)} shards missing: {missing[0]}")
    return [directory / name for name in names]


def read_tensors(path: Path, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a weight file whose names begin with `prefix`, one at a time, on the CPU.

    Raises:
        CheckpointError: the file is damaged, or a pickle that holds more than tensors.
    """
    try:
        with path.open("rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                raise CheckpointError(f"{path}: a git-lfs pointer, not the weights; run git lfs pull")
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  a safe_open handle is no mapping
                    if key.startswith(prefix):
                        yield key, tensors.get_tensor(key)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            while state:
                key, tensor = state.popitem()
                if key.startswith(prefix):
                    yield key, tensor
    except (SafetensorError, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged or unreadable ({str(error).splitlines()[0]})") from error


class _Loader:
    """Fills a model that was built on the meta device, checking every name and shape."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self.model = model
        self.dtype = dtype
        self.device = device
        self.wanted = dict(model.named_parameters())
        self.loaded: set[str] = set()
        self.unexpected: list[str] = []

    def put(self, key: str, tensor: torch.Tensor, source: Path) -> None:
        """One tensor under our own name; tensors that the model does not have are noted."""
        place = self.wanted.get(key)
        if place is None:
            if not key.endswith(NOT_WEIGHTS):
                self.unexpected.append(key)
            return
        if place.shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {key} has shape {list(tensor.shape)}, the configuration asks for {list(place.shape)}"
            )
        owner, _, name = key.rpartition(".")
        # The position table is interpolated in float32 whatever the model's dtype.
        dtype = torch.float32 if name == "pos_embed" else self.dtype
        value = nn.Parameter(tensor.to(self.device, dtype), requires_grad=place.requires_grad)
        setattr(self.model.get_submodule(owner), name, value)
        self.loaded.add(key)

    def finish(self, checkpoint: Path) -> None:
        """Raises when a tensor is missing; warns of those that the model does not have."""
        missing = [key for key in self.wanted if key not in self.loaded]
        if missing:
            raise CheckpointError(
                f"{checkpoint}: {len(missing)} of {len(self.wanted)} tensors missing, among them "
                f"{missing[0]} {list(self.wanted[missing[0]].shape)}"
            )
        if self.unexpected:
            count, first = len(self.unexpected), self.unexpected[0]
            logger.warning("%s: %d tensors not used, among them %s", checkpoint, count, first)


def _tower_tensors(checkpoint: Path, config: LlavaMiniConfig, local: bool) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """The vision tower's tensors under their names in CLIP's vision model, and the file that holds each."""
    if config.unfreeze_mm_vision_tower:
        found = False
        for path in weight_files(checkpoint):
            for key, tensor in read_tensors(path, TOWER_MODULE):
                if not key.endswith(NOT_WEIGHTS):
                    found = True
                    yield key.removeprefix(TOWER_FILE).removeprefix(TOWER_MODULE), tensor, path
        if found:
            return
        logger.warning("%s: holds no vision tower of its own; taking %s", checkpoint, config.mm_vision_tower)
    for path in weight_files(find_tower(config.mm_vision_tower, checkpoint, local_files_only=local)):
        for key, tensor in read_tensors(path):
            if not key.startswith(TEXT_HALF):
                yield key.removeprefix("vision_model."), tensor, path


def load_weights(
    model: nn.Module, checkpoint: Path, dtype: torch.dtype, device: torch.device, *, local_files_only: bool = False
) -> None:
    """Fills a meta-device `LlavaMiniForConditionalGeneration` from a checkpoint directory.

    Raises:
        CheckpointError, ModelNotFound
    """
    config = model.config
    assert isinstance(config, LlavaMiniConfig)
    loader = _Loader(model, dtype, device)
    for path in weight_files(checkpoint):
        for key, tensor in read_tensors(path):
            if not key.startswith(TOWER_MODULE):
                loader.put(key, tensor, path)
    for name, tensor, path in _tower_tensors(checkpoint, config, local_files_only):
        loader.put(TOWER_MODULE + name, tensor, path)
    loader.finish(checkpoint)
    if config.tie_word_embeddings:
        model.get_submodule("lm_head").weight = model.get_parameter("model.embed_tokens.weight")
    model.get_submodule("model").rotary_emb = LlamaRotaryEmbedding(config).to(device)
    _number_positions(model.get_submodule(TOWER_MODULE + "embeddings"), config, device)


def load_tower(checkpoint: Path, *, local_files_only: bool = False) -> VisionTower:
    """The vision tower of a checkpoint by itself, float32 on the CPU; the language model's weights are not read.

    Raises:
        CheckpointError, ModelNotFound
    """
    config = load_config(checkpoint, local_files_only=local_files_only)
    with torch.device("meta"):
        tower = VisionTower(config)
    device = torch.device("cpu")
    loader = _Loader(tower.vision_tower, torch.float32, device)
    for name, tensor, path in _tower_tensors(checkpoint, config, local_files_only):
        loader.put(name, tensor, path)
    loader.finish(checkpoint)
    _number_positions(tower.get_submodule("vision_tower.embeddings"), config, device)
    return tower.eval()


def _number_positions(embeddings: nn.Module, config: LlavaMiniConfig, device: torch.device) -> None:
    """CLIP's position numbers, a buffer that no file holds."""
    embeddings.position_ids = torch.arange(config.patch_grid**2 + 1, device=device)[None]
