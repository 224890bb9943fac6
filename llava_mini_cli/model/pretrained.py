"""`from_pretrained` and `save_pretrained`: a checkpoint in the published layout to a model and back.

The layout itself is `checkpoint.py`'s.
"""

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import save_torch_state_dict
from transformers import GenerationConfig

from llava_mini_cli.hub import find_model
from llava_mini_cli.model.checkpoint import TOWER_FILE, TOWER_MODULE, load_config, load_weights, read_json
from llava_mini_cli.model.configuration import LlavaMiniConfig

HF_ONLY = frozenset(  # keywords of transformers' from_pretrained that mean nothing here
    {"trust_remote_code", "adapter_kwargs", "low_cpu_mem_usage", "use_safetensors", "weights_only", "force_download"}
)


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
        load_weights(model, checkpoint, number, target, local_files_only=local_files_only)
        model.generation_config = generation_config(checkpoint, config)
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


def generation_config(checkpoint: Path, config: LlavaMiniConfig) -> GenerationConfig:
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
