"""Reading and writing checkpoints in the published layout, tensor by tensor: one copy of the weights in memory.

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
from typing import Any, Self

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPVisionConfig, GenerationConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.hub import find_model, find_tower, weight_source
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.vision import VisionTower

logger = logging.getLogger(__name__)

TOWER_MODULE = "model.vision_tower.vision_tower."  # where the tower sits in our module tree
TOWER_FILE = TOWER_MODULE + "vision_model."  # and under which names a checkpoint holds it
NOT_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")  # buffers that old checkpoints carry along
HF_ONLY = frozenset(  # keywords of transformers' from_pretrained that mean nothing here
    {"trust_remote_code", "adapter_kwargs", "low_cpu_mem_usage", "use_safetensors", "weights_only", "force_download"}
)


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
        """Raises when a tensor is missing; makes the buffers that no file holds."""
        missing = [key for key in self.wanted if key not in self.loaded]
        if missing:
            raise CheckpointError(
                f"{checkpoint}: {len(missing)} of {len(self.wanted)} tensors missing, among them "
                f"{missing[0]} {list(self.wanted[missing[0]].shape)}"
            )
        if self.unexpected:
            count, first = len(self.unexpected), self.unexpected[0]
            logger.warning("%s: %d tensors not used, among them %s", checkpoint, count, first)


def _our_tower_name(key: str) -> str | None:
    """Our name of a tensor in a CLIP directory, plain or nested; None for CLIP's text side and heads."""
    if key.startswith(("text_", "visual_projection", "logit_scale")):
        return None
    return TOWER_MODULE + key.removeprefix("vision_model.")


def load_weights(model: nn.Module, checkpoint: Path, dtype: torch.dtype, device: torch.device, local: bool) -> None:
    """Fills a meta-device `LlavaMiniForConditionalGeneration` from a checkpoint directory.

    Raises:
        CheckpointError, ModelNotFound
    """
    config = model.config
    assert isinstance(config, LlavaMiniConfig)
    loader = _Loader(model, dtype, device)
    own_tower = config.unfreeze_mm_vision_tower
    for path in weight_files(checkpoint):
        for key, tensor in read_tensors(path):
            if key.startswith(TOWER_MODULE):
                if own_tower:
                    loader.put(TOWER_MODULE + key.removeprefix(TOWER_FILE).removeprefix(TOWER_MODULE), tensor, path)
            else:
                loader.put(key, tensor, path)
    if not any(key.startswith(TOWER_MODULE) for key in loader.loaded):
        if own_tower:
            logger.warning("%s: holds no vision tower of its own; taking %s", checkpoint, config.mm_vision_tower)
        for path in weight_files(find_tower(config.mm_vision_tower, checkpoint, local_files_only=local)):
            for key, tensor in read_tensors(path):
                name = _our_tower_name(key)
                if name is not None:
                    loader.put(name, tensor, path)
    if config.tie_word_embeddings and "lm_head.weight" not in loader.loaded:
        loader.put("lm_head.weight", model.get_parameter("model.embed_tokens.weight").data, checkpoint)
    loader.finish(checkpoint)
    _make_buffers(model, config, device)


def load_tower(checkpoint: Path, *, local_files_only: bool = False) -> VisionTower:
    """The vision tower of a checkpoint by itself, float32 on the CPU; the language model's weights are not read.

    Raises:
        CheckpointError, ModelNotFound
    """
    config = load_config(checkpoint, local_files_only=local_files_only)
    with torch.device("meta"):
        tower = VisionTower(config)
    state = _own_tower(checkpoint) if config.unfreeze_mm_vision_tower else {}
    if not state:
        directory = find_tower(config.mm_vision_tower, checkpoint, local_files_only=local_files_only)
        named = (
            (_our_tower_name(key), tensor) for path in weight_files(directory) for key, tensor in read_tensors(path)
        )
        state = {name.removeprefix(TOWER_MODULE): tensor.float() for name, tensor in named if name is not None}
    state = {key: tensor for key, tensor in state.items() if not key.endswith(NOT_WEIGHTS)}
    try:
        tower.vision_tower.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint}: {' '.join(str(error).split())}") from error
    embeddings = tower.get_submodule("vision_tower.embeddings")
    embeddings.position_ids = torch.arange(config.patch_grid**2 + 1)[None]
    return tower.eval()


def _own_tower(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The tower's tensors that a checkpoint holds itself, by their names in the tower."""
    state: dict[str, torch.Tensor] = {}
    for path in weight_files(checkpoint):
        for key, tensor in read_tensors(path, TOWER_MODULE):
            state[key.removeprefix(TOWER_FILE).removeprefix(TOWER_MODULE)] = tensor.float()
    return state


def _make_buffers(model: nn.Module, config: LlavaMiniConfig, device: torch.device) -> None:
    """The buffers that are computed, not stored: rotary frequencies and CLIP's position numbers."""
    trunk = model.get_submodule("model")
    trunk.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    embeddings = model.get_submodule(TOWER_MODULE + "embeddings")
    embeddings.position_ids = torch.arange(config.patch_grid**2 + 1, device=device)[None]


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA when there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA that has it (float16 on older), float32 on the CPU."""
    if isinstance(name, torch.dtype):
        return name
    if name != "auto":
        return getattr(torch, name)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


class CheckpointMixin:
    """`from_pretrained` and `save_pretrained` for the published layout, in place of transformers' own."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: LlavaMiniConfig | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: Any = None,
        revision: str | None = None,
        local_files_only: bool = False,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a checkpoint from a directory or hub id, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory, a hub id, or `demo`.
            config: in place of the checkpoint's own, but for `vision_config`, a fact of the weights.
            dtype: a torch dtype, its name, or `auto`: bfloat16 on CUDA that has it, float32 on the CPU
                (whatever dtype the file has).
            device: `cpu` by default; `auto` is CUDA when there is one. `device_map` is read the same way.
            attn_implementation: `sdpa` (default), `eager`.

        Raises:
            ModelNotFound, CheckpointError: one line that names the file, key or shapes at fault.
        """
        unknown = [key for key in kwargs if key not in HF_ONLY and not key.startswith("_")]
        if unknown:
            raise TypeError(f"from_pretrained() does not know {unknown[0]!r}")
        checkpoint = find_model(str(pretrained_model_name_or_path), revision, local_files_only=local_files_only)
        own = load_config(checkpoint, local_files_only=local_files_only)
        if config is None:
            config = own
        else:
            config = LlavaMiniConfig.from_fields({**config.to_dict(), "vision_config": own.vision.to_dict()})
        place = device if device is not None else device_map
        target = place if isinstance(place, torch.device) else pick_device(_device_name(place))
        number = pick_dtype(dtype or torch_dtype or "auto", target)
        config._attn_implementation = attn_implementation or "sdpa"  # pyright: ignore[reportPrivateUsage]
        config.dtype = number
        with torch.device("meta"):
            model: Any = cls(config)  # pyright: ignore[reportCallIssue]  the mixin's other base takes it
        load_weights(model, checkpoint, number, target, local_files_only)
        model.generation_config = _generation_config(checkpoint, config)
        model.name_or_path = str(pretrained_model_name_or_path)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, max_shard_size: str | int = "5GB", **kwargs: Any) -> None:
        """Writes the published layout, the tower included, as safetensors.

        The result stands alone: `vision_config` is in its configuration and `unfreeze_mm_vision_tower`
        is set, so no other directory is needed. Save the processor to the same place.
        """
        model: Any = self
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = LlavaMiniConfig.from_fields({**model.config.to_dict(), "unfreeze_mm_vision_tower": True})
        config.architectures = ["LlavaMiniLlamaForCausalLM"]
        config.dtype = model.dtype
        config.save_pretrained(directory)
        model.generation_config.save_pretrained(directory)
        state = {
            TOWER_FILE + key.removeprefix(TOWER_MODULE) if key.startswith(TOWER_MODULE) else key: value
            for key, value in (kwargs.get("state_dict") or model.state_dict()).items()
        }
        save_torch_state_dict(state, directory, max_shard_size=max_shard_size)


def _device_name(place: Any) -> str:
    if isinstance(place, dict):
        place = next(iter(place.values()))
    return "cpu" if place is None else str(place)


def _generation_config(checkpoint: Path, config: LlavaMiniConfig) -> GenerationConfig:
    """End-of-sequence ids from the checkpoint; sampling settings reset, as greedy is the default here."""
    path = checkpoint / "generation_config.json"
    fields = read_json(path) if path.exists() else {}
    end = fields.get("eos_token_id", config.eos_token_id)
    first = end[0] if isinstance(end, list) else end
    pad = fields.get("pad_token_id", config.pad_token_id)
    return GenerationConfig(
        bos_token_id=fields.get("bos_token_id", config.bos_token_id),
        eos_token_id=end,
        pad_token_id=first if pad is None else pad,
    )
