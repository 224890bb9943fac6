"""How much memory a model needs, from its config.json and the sizes of its files. Loads neither tensors nor torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.errors import ModelNotFound
from llava_mini_cli.hub import find_model, find_tower
from llava_mini_cli.plain_files import read_object

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CUDA_DEVICE = Path("/dev/nvidiactl")  # there when the driver is


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model in the number format that a run would use."""

    tokens_per_frame: int
    context: int  # positions that the model has
    position_bytes: int  # of the keys and values of one position
    token_bytes: int  # of a vision token as the language model reads it
    weights_bytes: int

    def memory_bytes(self, frames: int, questions: int, new_tokens: int) -> int:
        """Bytes that a medium holds while its questions are answered together, next to the weights."""
        vision = frames * self.tokens_per_frame
        return vision * (self.position_bytes + self.token_bytes) + questions * new_tokens * self.position_bytes


def footprint_of(options: ModelOptions) -> Footprint | None:
    """The sizes of a model that is on this disk, or None."""
    try:
        model = find_model(options.model, options.revision, local_files_only=True)
        config: dict[str, Any] = read_object(model / "config.json")
        width = number_bytes(options)
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return Footprint(
            tokens_per_frame=config.get("compressor_size", 1) ** 2,
            context=config["max_position_embeddings"],
            position_bytes=2 * config["num_hidden_layers"] * heads * dim * width,
            token_bytes=config["hidden_size"] * width,
            weights_bytes=_weights_bytes(model, config, width),
        )
    except (ModelNotFound, OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return None  # a run says what is wrong with it; an estimate does without


def number_bytes(options: ModelOptions) -> int:
    """Bytes of one number: as asked for, or what `auto` takes on this machine."""
    if options.dtype != "auto":
        return _BYTES[options.dtype]
    on_cuda = options.device.startswith("cuda") or (options.device == "auto" and _CUDA_DEVICE.exists())
    return 2 if on_cuda else 4


def _weights_bytes(model: Path, config: dict[str, Any], width: int) -> int:
    """Bytes of the language model and the vision tower, in the run's number format."""
    stored = _BYTES.get(config.get("dtype") or config.get("torch_dtype") or "", 2)
    size = _files_bytes(model) * width // stored
    try:
        tower = find_tower(config.get("mm_vision_tower"), model, local_files_only=True)
    except ModelNotFound:
        return size
    return size + _files_bytes(tower) * width // stored


def _files_bytes(folder: Path) -> int:
    """Bytes of the weights' files in one folder: safetensors where there are some, else torch's."""
    for pattern in ("*.safetensors", "*.bin"):
        size = sum(file.stat().st_size for file in folder.glob(pattern))
        if size:
            return size
    return 0
