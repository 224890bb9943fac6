"""Checkpoints whose linear layers are quantised, as tools write them: those of llm-compressor by its own library."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_FP8 = {**_INT8, "type": "float"}
_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
SCHEMES: dict[str, dict[str, Any]] = {  # by the names that llm-compressor has for them
    "W8A8": {"format": "int-quantized", "weights": _INT8, "input_activations": _TOKEN},
    "W4A16": {"format": "pack-quantized", "weights": _INT4},
    "W4A16_ASYM": {"format": "pack-quantized", "weights": {**_INT4, "symmetric": False}},
    "W4A16_CHANNEL": {
        "format": "pack-quantized",
        "weights": {**_INT8, "num_bits": 4},
    },
    "W8A16": {"format": "pack-quantized", "weights": _INT8},
    "FP8_DYNAMIC": {"format": "float-quantized", "weights": _FP8, "input_activations": {**_TOKEN, "type": "float"}},
    "FP8_BLOCK": {
        "format": "float-quantized",
        "weights": {**_FP8, "strategy": "block", "block_structure": [128, 128]},
        "input_activations": {**_TOKEN, "type": "float", "strategy": "group", "group_size": 128},
    },
}
IGNORED = ["lm_head", r"re:.*vision_tower.*", r"re:.*mm_projector.*", r"re:.*compressor.*"]


def is_llama_linear(name: str) -> bool:
    """True of the weights of the Llama layers, pre-fusion's among them."""
    return name.startswith(("model.layers.", "model.prefusion_layers.")) and name.endswith("_proj.weight")


def compress(
    source: Path, folder: Path, scheme: str, is_wanted: Callable[[str], bool] = is_llama_linear
) -> dict[str, torch.Tensor]:
    """Writes a checkpoint with the wanted layers quantised.

    Returns:
        The weights that it means, by name, in float32.
    """
    with warnings.catch_warnings(action="ignore"):  # what it imports uses what torch has deprecated
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationScheme

    copytree(source, folder, dirs_exist_ok=True)
    fields = {"targets": ["Linear"], **SCHEMES[scheme]}
    made = QuantizationScheme.model_validate(fields)
    compressor = BaseCompressor.get_value_from_registry(fields["format"])
    tensors, meant = load_file(folder / "model.safetensors"), Tensors()
    for name in [name for name in tensors if is_wanted(name)]:
        module, weight = name.removesuffix(".weight"), tensors.pop(name)
        packed = compressor.compress({"weight": weight.float(), **scales(weight.float(), fields["weights"])}, made)
        meant[name] = compressor.decompress(packed, made)["weight"].float()
        tensors |= {f"{module}.{part}": tensor.contiguous() for part, tensor in packed.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_quantization(folder, quantization(fields))
    return meant


def quantization(scheme: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint with one scheme."""
    return {
        "quant_method": "compressed-tensors",
        "format": scheme["format"],
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": IGNORED,
        "config_groups": {"group_0": {"targets": ["Linear"], **scheme}},
    }


def set_quantization(folder: Path, value: Any) -> None:
    """Puts a `quantization_config` into a checkpoint."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": value}))


def scales(weight: torch.Tensor, args: Mapping[str, Any]) -> Tensors:
    """The scales, and the zero points where there are, that keep the largest of the numbers that share them."""
    columns = weight.shape[1]
    high, width = args.get("block_structure") or (1, args.get("group_size") or columns)
    parts = weight.unflatten(1, (-1, width)).unflatten(0, (-1, high)).transpose(1, 2).flatten(2)
    most = 448.0 if args["type"] == "float" else 2.0 ** (args["num_bits"] - 1) - 1
    if args["symmetric"]:
        return {"weight_scale": (parts.abs().amax(-1) / most).clamp_min(1e-6)}
    low, top = parts.amin(-1).clamp_max(0), parts.amax(-1).clamp_min(0)
    scale = ((top - low) / (2.0 ** args["num_bits"] - 1)).clamp_min(1e-6)
    zero = (-(2.0 ** (args["num_bits"] - 1)) - low / scale).round()
    return {"weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}


def quantise_elsewhere(source: Path, folder: Path, meant: Path, method: str) -> None:
    """Writes a checkpoint as AutoAWQ or GPTQ tools do, four bits in groups of 32, and the plain one that it means.

    Args:
        method: `awq` or `gptq`.
    """
    for place in (folder, meant):
        copytree(source, place, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    plain = dict(tensors)
    for name in [name for name in tensors if name.startswith("model.layers.") and is_llama_linear(name)]:
        weight = tensors.pop(name).float()
        found = scales(weight, {**_INT4, "symmetric": method == "gptq"})
        scale = found["weight_scale"].half().float().repeat_interleave(32, 1)
        zero = 8 + found.get("weight_zero_point", torch.zeros(found["weight_scale"].shape)).float()
        wide = zero.repeat_interleave(32, 1)
        numbers = (weight / scale + wide).round().clamp(0, 15)
        plain[name] = (numbers - wide) * scale
        if method == "awq":
            parts = {"qweight": _in_eights(numbers.T, _AWQ), "qzeros": _in_eights(zero.T, _AWQ)}
        else:
            groups = torch.arange(weight.shape[1], dtype=torch.int32) // 32
            parts = {"qweight": _in_eights(numbers).T, "qzeros": _in_eights(zero.T - 1), "g_idx": groups}
        parts["scales"] = found["weight_scale"].half().T
        tensors |= {name.removesuffix("weight") + part: one.contiguous() for part, one in parts.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, meant / "model.safetensors", metadata={"format": "pt"})
    of_method = {"awq": {"zero_point": True, "version": "gemm"}, "gptq": {"desc_act": False, "sym": True}}
    set_quantization(folder, {"quant_method": method, "bits": 4, "group_size": 32, **of_method[method]})


_AWQ = (0, 2, 4, 6, 1, 3, 5, 7)


def _in_eights(numbers: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Numbers of 4 bits `[R, C]`, eight neighbours of a row in one of 32 bits `[R, C / 8]`."""
    parts = numbers.to(torch.int64).unflatten(1, (-1, 8))[..., list(order)]
    return (parts << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)
