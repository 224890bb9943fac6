"""`from_pretrained` and `save_pretrained`: a checkpoint in the published layout to a model and back.

The layout itself is `checkpoint.py`'s.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import GenerationConfig

from llava_mini_cli.errors import CheckpointError, ModelError, UsageError, first_line
from llava_mini_cli.hub import find_model
from llava_mini_cli.memory_there import MemoryThere, memory_there
from llava_mini_cli.model.checkpoint import TOWER_FILE, LayerMaker, load_config, load_weights, look_at_weights
from llava_mini_cli.model.config_rules import token_faults
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.fields import GENERATION, checked_fields
from llava_mini_cli.model.tensor_shapes import TOWER_MODULE
from llava_mini_cli.model.weight_headers import Stored, member, read_json

HF_ONLY = frozenset(  # keywords of transformers' from_pretrained that mean nothing here
    {"trust_remote_code", "adapter_kwargs", "low_cpu_mem_usage", "use_safetensors", "weights_only", "force_download"}
)


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA when there is one, else the CPU. Raises `UsageError` for a name that torch does not know."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: {first_line(error)}") from error


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA that has it (float16 on older), float32 on the CPU.

    Raises `UsageError` for a name that is no number format of torch.
    """
    if isinstance(name, torch.dtype):
        return name
    if name != "auto":
        number = getattr(torch, name, None)
        if not isinstance(number, torch.dtype):
            raise UsageError(f"--dtype {name}: torch has no such number format")
        return number
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
        maker: LayerMaker | None = None,
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
            maker: makes layers of their weights while these are read, in a format of its own.

        Raises:
            UsageError: a device or number format that torch does not know.
            ModelNotFound, CheckpointError: one line that names the file, key or shapes at fault.
        """
        unknown = [key for key in kwargs if key not in HF_ONLY and not key.startswith("_")]
        if unknown:
            raise TypeError(f"from_pretrained() does not know {unknown[0]!r}")
        place = device if device is not None else device_map
        target = place if isinstance(place, torch.device) else pick_device(_device_name(place))
        number = pick_dtype(dtype or torch_dtype or "auto", target)
        checkpoint = find_model(str(pretrained_model_name_or_path), revision, local_files_only=local_files_only)
        own = load_config(checkpoint, local_files_only=local_files_only)
        if config is None:
            config = own
        else:
            config = LlavaMiniConfig.from_fields({**config.to_dict(), "vision_config": own.vision.to_dict()})
        config._attn_implementation = attn_implementation or "sdpa"  # pyright: ignore[reportPrivateUsage]
        config.dtype = number
        generation = generation_config(checkpoint, config)
        stored = look_at_weights(checkpoint, config, local_files_only=local_files_only)
        if maker is None:
            check_memory(stored, number, target, checkpoint)
        with torch.device("meta"):
            model: Any = cls(config)  # pyright: ignore[reportCallIssue]  the mixin's other base takes it
        load_weights(model, checkpoint, number, target, local_files_only=local_files_only, maker=maker)
        model.generation_config = generation
        model.name_or_path = str(pretrained_model_name_or_path)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, max_shard_size: str | int = "5GB", **kwargs: Any) -> None:
        """Writes the published layout, the tower included, as safetensors.

        The result stands alone: `vision_config` is in its configuration and `unfreeze_mm_vision_tower`
        is set, so no other directory is needed. Save the processor to the same place.

        Raises:
            ModelError: the weights are held in a format that is none of the published layout's.
        """
        model: Any = self
        if _is_reduced(model):
            raise ModelError("a model whose weights were reduced to fewer bits cannot be saved; load it without")
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
        if config.tie_word_embeddings:  # one tensor of two names, of which the layout has that of the table alone
            state.pop("lm_head.weight", None)
        save_torch_state_dict(state, directory, max_shard_size=max_shard_size)


def _is_reduced(model: nn.Module) -> bool:
    """True where layers hold packed weights, or parameters are no plain tensors."""
    return any(hasattr(module, "packed") for module in model.modules()) or any(
        type(parameter.data) is not torch.Tensor for parameter in model.parameters()
    )


def check_memory(stored: Mapping[str, Stored], dtype: torch.dtype, device: torch.device, checkpoint: Path) -> None:
    """Makes sure that a model's weights have room, before any of them is read. `load_engine` counts work as well.

    Tensors that need not be converted stay in their file on a CPU, which here may be larger than memory.

    Raises:
        CheckpointError: they need more than there is.
    """
    on_cpu = device.type == "cpu"
    needed = sum(prod(one.shape) * dtype.itemsize for one in stored.values() if not on_cpu or one.dtype != dtype)
    there = memory_there() if on_cpu else None
    if device.type == "cuda":
        there = MemoryThere(torch.cuda.mem_get_info(device)[0], str(device))
    if there is not None and needed > there.bytes:
        size = f"{needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}"
        left = f"{there.source} leaves {there.bytes / 2**30:.1f} GiB"
        raise CheckpointError(f"{checkpoint}: the weights take {size}, and {left}")


def _device_name(place: Any) -> str:
    if isinstance(place, dict):
        place = next(iter(place.values()))
    return "cpu" if place is None else str(place)


def generation_config(checkpoint: Path, config: LlavaMiniConfig) -> GenerationConfig:
    """End-of-sequence ids from the checkpoint; sampling settings reset, as greedy is the default here.

    Raises:
        CheckpointError: an id that cannot be one; the text names the file and the field.
    """
    path = member(checkpoint, "generation_config.json")
    fields = checked_fields(read_json(path), GENERATION, path) if path.exists() else {}
    for fault in token_faults(fields, config.vocab_size):
        raise CheckpointError(f"{path}: {fault}")
    end = fields.get("eos_token_id", config.eos_token_id)
    first = end[0] if isinstance(end, list) else end
    pad = fields.get("pad_token_id", config.pad_token_id)
    return GenerationConfig(
        bos_token_id=fields.get("bos_token_id", config.bos_token_id),
        eos_token_id=end,
        pad_token_id=first if pad is None else pad,
    )
