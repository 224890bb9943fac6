"""Checkpoints in the published layout, read tensor by tensor: one copy of the weights in memory.

    <checkpoint>/config.json, *.safetensors (or .bin), sharded or not, tokenizer files
    <mm_vision_tower>/config.json, weights          plain CLIP vision model, or a whole CLIP model

Which tower counts: with `unfreeze_mm_vision_tower` the tower tensors of the checkpoint itself;
otherwise those of `mm_vision_tower`, and any in the checkpoint are ignored.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_mini_cli.errors import CheckpointError, first_line
from llava_mini_cli.hub import find_tower
from llava_mini_cli.model.compressed import Compressed
from llava_mini_cli.model.config_rules import model_config
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.fields import CONFIG, checked_fields, shown
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE, Shape, model_shapes, vision_shapes
from llava_mini_cli.model.vision import VisionTower
from llava_mini_cli.model.weight_headers import (
    Stored,
    check_start,
    check_zip,
    compare,
    member,
    read_json,
    stored_tensors,
    weight_files,
)

logger = logging.getLogger(__name__)

TOWER_FILE = TOWER_MODULE + "vision_model."  # the names under which a checkpoint holds the tower
NOT_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")  # buffers that old checkpoints carry along
TEXT_HALF = ("text_", "visual_projection", "logit_scale")  # of a whole CLIP; the vision tower does not have them
LANGUAGE_MODEL = ("model.layers.", "lm_head.")  # how the names of its layers begin
MAKING = 2  # layers that are made of their weights at once


class LayerMaker(Protocol):
    """Makes layers of the weights that a file holds, in place of those that are filled with them as they are."""

    def layer(self, name: str, empty: nn.Module, weight: torch.Tensor) -> nn.Module | Callable[[], nn.Module] | None:
        """A layer that is there already, a function that makes it in another thread, or None: it is filled as it is.

        Args:
            weight: as stored; on a CPU it is a part of the mapped file where that can be. Biases are added afterwards.
        """
        ...

    def made(self, name: str, layer: nn.Module) -> None:
        """Tells of a layer that such a function has made."""
        ...


def load_config(checkpoint: Path, *, local_files_only: bool = False) -> LlavaMiniConfig:
    """The configuration of a checkpoint, its `vision_config` filled in from the tower's directory.

    Raises:
        CheckpointError: no LLaVA-Mini configuration, or a field that cannot be used; the text names file and field.
        ModelNotFound: the tower is nowhere.
    """
    file = member(checkpoint, "config.json")
    fields = read_json(file)
    if fields.get("model_type") != LlavaMiniConfig.model_type:
        raise CheckpointError(
            f"{checkpoint}: a {shown(fields.get('model_type'))} model, not {LlavaMiniConfig.model_type!r}"
        )
    vision, place = fields.get("vision_config"), file
    if vision is None:
        tower = find_tower(tower_name(fields, file), checkpoint, local_files_only=local_files_only)
        place = member(tower, "config.json")
        fields_of_tower = read_json(place)
        vision = fields_of_tower.get("vision_config", fields_of_tower)
    if not isinstance(vision, dict):
        raise CheckpointError(f"{place}: vision_config {shown(vision)}: must be an object")
    return model_config(fields, cast("dict[str, Any]", vision), file, place)


def tower_name(fields: Mapping[str, Any], file: Path) -> str | None:
    """The `mm_vision_tower` of a configuration. Raises `CheckpointError` where it is no text."""
    return checked_fields(fields, {"mm_vision_tower": CONFIG["mm_vision_tower"]}, file).get("mm_vision_tower")


def read_tensors(path: Path, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a weight file whose names begin with `prefix`, one at a time, on the CPU.

    Raises:
        CheckpointError: the file is damaged, or a pickle that holds more than tensors.
    """
    try:
        check_start(path)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  a safe_open handle is no mapping
                    if key.startswith(prefix):
                        yield key, tensors.get_tensor(key)
        else:
            check_zip(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            while state:
                key, tensor = state.popitem()
                if key.startswith(prefix):
                    yield key, tensor
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle can have the libraries raise anything
        raise CheckpointError(f"{path}: damaged or unreadable ({first_line(error)})") from error


class _Loader:
    """Fills a model that was built on the meta device, checking every name and shape."""

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        maker: LayerMaker | None = None,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """`threads`: those that make its layers."""
        self.model = model
        self.dtype = dtype
        self.device = device
        self.wanted = dict(model.named_parameters())
        self.loaded: set[str] = set()
        self.unexpected: list[str] = []
        self._maker = maker
        self._threads = threads
        self._making: deque[tuple[str, Future[nn.Module]]] = deque()

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
        self.loaded.add(key)
        owner, _, name = key.rpartition(".")
        if name == "weight" and self._make(owner, tensor):
            return
        # The position table is interpolated in float32 whatever the model's dtype.
        dtype = torch.float32 if name == "pos_embed" else self.dtype
        value = nn.Parameter(tensor.to(self.device, dtype), requires_grad=place.requires_grad)
        setattr(self.model.get_submodule(owner), name, value)

    def _make(self, name: str, weight: torch.Tensor) -> bool:
        """Has a layer made of its weight; False where it is to be filled with it."""
        if self._maker is None or self._threads is None:
            return False
        layer = self._maker.layer(name, self.model.get_submodule(name), weight)
        if layer is None:
            return False
        if isinstance(layer, nn.Module):
            self._place(name, layer)
        else:
            self._making.append((name, self._threads.submit(layer)))
            self._place_made(MAKING)
        return True

    def _place_made(self, left: int) -> None:
        """Puts layers that are being made into the model, all but the last few."""
        while self._maker is not None and len(self._making) > left:
            name, job = self._making.popleft()
            layer = job.result()
            self._maker.made(name, layer)
            self._place(name, layer)

    def _place(self, name: str, layer: nn.Module) -> None:
        bias = getattr(self.model.get_submodule(name), "bias", None)
        if bias is not None and not bias.is_meta:
            layer.bias = bias
        self.model.set_submodule(name, layer)

    def tie(self) -> None:
        """Gives the head the table of embeddings for its weight."""
        table = self.model.get_parameter("model.embed_tokens.weight")
        if not self._make("lm_head", table):
            self.model.get_submodule("lm_head").weight = table

    def finish(self, checkpoint: Path) -> None:
        """Puts in what is still being made. Raises when a tensor is missing; warns of those that the model lacks."""
        self._place_made(0)
        missing = [key for key in self.wanted if key not in self.loaded]
        if missing:
            raise CheckpointError(
                f"{checkpoint}: {len(missing)} of {len(self.wanted)} tensors missing, among them "
                f"{missing[0]} {list(self.wanted[missing[0]].shape)}"
            )
        if self.unexpected:
            count, first = len(self.unexpected), self.unexpected[0]
            logger.warning("%s: %d tensors not used, among them %s", checkpoint, count, first)


def look_at_weights(
    checkpoint: Path, config: LlavaMiniConfig, *, local_files_only: bool = False, is_on_vllm: bool = False
) -> dict[str, Stored]:
    """What the weight files hold of a model, compared with its configuration before a module is made of it.

    Args:
        is_on_vllm: vLLM reads the language model, whose layers then may be quantised in any way that it knows.

    Returns:
        The tensors of the model under our own names; of a quantised layer, its weight.

    Raises:
        CheckpointError: tensors are missing or have another shape. ModelNotFound: the tower is nowhere.
    """
    stored, wanted = stored_tensors(checkpoint), model_shapes(config)
    compressed = Compressed(checkpoint, _but_tower(config), LANGUAGE_MODEL if is_on_vllm else ())
    found = {name: one for name, one in compressed.seen(stored).items() if not name.startswith(TOWER_MODULE)}
    for name, tensor in _tower_headers(stored, checkpoint, config, local_files_only).items():
        found[TOWER_MODULE + name] = tensor
    compare({name: shape for name, shape in wanted.items() if name not in compressed.kept}, found, checkpoint)
    return {name: found[name] for name in wanted}


def _but_tower(config: LlavaMiniConfig) -> dict[str, Shape]:
    """The tensors that a configuration asks for, without the vision tower's."""
    return {name: shape for name, shape in model_shapes(config).items() if not name.startswith(TOWER_MODULE)}


def _compressed_tower(checkpoint: Path, config: LlavaMiniConfig) -> Compressed:
    """The quantised layers of the vision tower that a checkpoint itself holds, under either of its names there."""
    shapes = vision_shapes(config.vision).items()
    return Compressed(checkpoint, {home + key: shape for home in (TOWER_FILE, TOWER_MODULE) for key, shape in shapes})


def _tower_headers(
    stored: Mapping[str, Stored], checkpoint: Path, config: LlavaMiniConfig, local: bool
) -> dict[str, Stored]:
    """The vision tower's tensors under their names in CLIP's vision model, from the checkpoint or the tower."""
    if config.unfreeze_mm_vision_tower:
        seen = _compressed_tower(checkpoint, config).seen(stored)
        own = {_tower_key(key): tensor for key, tensor in seen.items() if _is_towers(key)}
        if own:
            return own
    tower = find_tower(config.mm_vision_tower, checkpoint, local_files_only=local)
    return {key.removeprefix("vision_model."): tensor for key, tensor in stored_tensors(tower).items()}


def _is_towers(key: str) -> bool:
    """True for a tensor of the vision tower in a checkpoint that holds it."""
    return key.startswith(TOWER_MODULE) and not key.endswith(NOT_WEIGHTS)


def _tower_key(key: str) -> str:
    return key.removeprefix(TOWER_FILE).removeprefix(TOWER_MODULE)


def _tower_tensors(checkpoint: Path, config: LlavaMiniConfig, local: bool) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """The vision tower's tensors under their names in CLIP's vision model, and the file that holds each."""
    if config.unfreeze_mm_vision_tower:
        found = False
        for key, tensor, path in _compressed_tower(checkpoint, config).read(_all_tensors(checkpoint, TOWER_MODULE)):
            if _is_towers(key):
                found = True
                yield _tower_key(key), tensor, path
        if found:
            return
        logger.warning("%s: holds no vision tower of its own; taking %s", checkpoint, config.mm_vision_tower)
    for key, tensor, path in _all_tensors(find_tower(config.mm_vision_tower, checkpoint, local_files_only=local)):
        if not key.startswith(TEXT_HALF):
            yield key.removeprefix("vision_model."), tensor, path


def _all_tensors(directory: Path, prefix: str = "") -> Iterator[tuple[str, torch.Tensor, Path]]:
    """The tensors of all weight files of a directory whose names begin with `prefix`, and the file that holds each."""
    for path in weight_files(directory):
        for key, tensor in read_tensors(path, prefix):
            yield key, tensor, path


def load_weights(
    model: nn.Module,
    checkpoint: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    local_files_only: bool = False,
    maker: LayerMaker | None = None,
) -> None:
    """Fills a meta-device `LlavaMiniForConditionalGeneration` from a checkpoint directory.

    Raises:
        CheckpointError, ModelNotFound
    """
    config = model.config
    assert isinstance(config, LlavaMiniConfig)
    with ThreadPoolExecutor(min(MAKING, torch.get_num_threads())) as threads:
        loader = _Loader(model, dtype, device, maker, threads)
        # A model without layers turns frames into tokens and does no more: what answers is elsewhere.
        elsewhere = (TOWER_MODULE,) if config.num_hidden_layers else (TOWER_MODULE, *LANGUAGE_MODEL)
        for key, tensor, path in Compressed(checkpoint, _but_tower(config)).read(_all_tensors(checkpoint)):
            if not key.startswith(elsewhere):
                loader.put(key, tensor, path)
        for name, tensor, path in _tower_tensors(checkpoint, config, local_files_only):
            loader.put(TOWER_MODULE + name, tensor, path)
        if config.tie_word_embeddings:
            loader.tie()
        loader.finish(checkpoint)
    model.get_submodule("model").rotary_emb = LlamaRotaryEmbedding(config).to(device)
    _number_positions(model.get_submodule(TOWER_MODULE + "embeddings"), config, device)


def load_tower(checkpoint: Path, *, local_files_only: bool = False) -> VisionTower:
    """The vision tower of a checkpoint by itself, float32 on the CPU; the language model's weights are not read.

    Raises:
        CheckpointError, ModelNotFound
    """
    config = load_config(checkpoint, local_files_only=local_files_only)
    stored = stored_tensors(checkpoint) if config.unfreeze_mm_vision_tower else {}
    compare(vision_shapes(config.vision), _tower_headers(stored, checkpoint, config, local_files_only), checkpoint)
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
