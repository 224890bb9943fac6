"""What options ask of a device, tried on a model of a few numbers before the real one is looked for.

A device, a number format, a format of quantised weights and a compiler either work here or do not, whatever tables
say; a trial tells in a fraction of a second (a compiler in some).
"""

from functools import cache
from typing import Any

import torch

from llava_mini_cli.config import DTypeName, ModelOptions, Quantization
from llava_mini_cli.engine.attention import attend_causally
from llava_mini_cli.engine.dense import NOT_COMPILED, finish, normalised, project
from llava_mini_cli.engine.devices import first_sentence, try_cards, try_device
from llava_mini_cli.engine.quantize import quantize
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.pretrained import pick_dtype

ROWS = (1, 16)  # of the products that are tried: a decoding step, and text
WIDTH = 256  # of the language model: kernels of 4 bits have groups of 128 weights
_PICTURE = 28  # pixels


def try_options(options: ModelOptions) -> torch.device:
    """The device that options mean, once all that they ask of it was tried.

    Raises:
        UsageError: it is not there, or cannot do what is asked for; the text names the option.
    """
    device = try_device(options.device)
    try_cards(options, device)
    kind = None if options.llm == "vllm" else options.quantize  # vLLM quantises its half by itself
    if (options.dtype, kind, options.compile) != ("auto", None, False):
        _try_model(str(device), options.dtype, kind, options.compile)
    return device


@cache
@torch.inference_mode()
def _try_model(device: str, dtype: DTypeName, kind: Quantization | None, compile: bool) -> None:
    """Has a tiny model compute as the real one will. Raises `UsageError`."""
    place = torch.device(device)
    if compile and kind is not None and place.type == "cpu":
        raise UsageError(NOT_COMPILED)
    number = pick_dtype(dtype, place)
    try:
        model: Any = _tiny_model(place).to(number)
        _run(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"--dtype {dtype}: not to be had on {device} ({first_sentence(error)})") from error
    if kind is not None:
        quantize(model, kind)
        try:
            _run(model)
        except (ImportError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            words = f"not to be had for {number} on {device} ({first_sentence(error)})"
            raise UsageError(f"--quantize {kind}: {words}") from error
    if compile:
        _try_compiler(model, kind)


def _tiny_model(device: torch.device) -> Any:
    """A model of the same modules, with one layer of each kind and random weights."""
    config = LlavaMiniConfig(
        vocab_size=8,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=max(ROWS),
        prefusion_layer_num=1,
        mm_hidden_size=32,
        compressor_num_heads=2,
        vision_config={  # pyright: ignore[reportArgumentType]
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": _PICTURE,
            "patch_size": 14,
        },
    )
    config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # draws change no answer
        model: Any = LlavaMiniForConditionalGeneration(config)
    return model.to(device).eval()


def _run(model: LlavaMiniForConditionalGeneration) -> None:
    """One picture and one layer of the language model. Raises what torch does, and `RuntimeError` for no numbers."""
    place: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
    inner: Any = model.model
    layer = inner.layers[0]
    results = [inner.encode_vision(torch.zeros(1, 1, 3, _PICTURE, _PICTURE, **place)).compressed]
    for rows in ROWS:
        hidden = torch.linspace(-1, 1, rows * WIDTH).reshape(1, rows, WIDTH).to(**place)
        rotary = inner.rotary_emb(hidden, torch.arange(rows, device=model.device)[None])
        queries, keys, values = project(layer, normalised(layer.input_layernorm, hidden), rotary)
        results.append(finish(layer, hidden, attend_causally(queries, keys, values).transpose(1, 2).flatten(2)))
    if not all(bool(result.isfinite().all()) for result in results):
        raise RuntimeError("its results are no numbers")


def _try_compiler(model: LlavaMiniForConditionalGeneration, kind: Quantization | None) -> None:
    """Compiles one product. Raises `UsageError` where torch.compile does not work on this machine."""
    from torch._dynamo.exc import TorchDynamoException  # heavy, and only wanted here

    # A function of its own: the real ones must not use up how often torch compiles one anew.
    def product(linear: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden) + 1

    layer: Any = model.model.layers[0]
    hidden = torch.ones(2, WIDTH, dtype=model.dtype, device=model.device)
    try:
        torch.compile(product)(layer.self_attn.q_proj, hidden).sum().item()
    except (TorchDynamoException, RuntimeError, ImportError) as error:
        both = "--compile" if kind is None else f"--compile with --quantize {kind}"
        raise UsageError(f"{both}: torch.compile failed ({first_sentence(error)})") from error
