"""From options to a running engine: the model is found, loaded and put on its device."""

import torch

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.dense import EAGER, compile_dense
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.engine.products import choose_products, measured_rates
from llava_mini_cli.engine.quantize import quantize
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.engine.trials import try_options
from llava_mini_cli.errors import ModelError, ModelNotFound
from llava_mini_cli.hub import find_model, find_tower
from llava_mini_cli.model.clip_space import load_image_projection
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor

CPU_CHUNK_FRAMES = 8
CUDA_CHUNK_FRAMES = 32
GENERATIONS = 64
MEDIA = 64
CPU_CACHE_BYTES = 4 << 30
CUDA_CACHE_SHARE = 0.5  # of the memory that is free once the model is loaded


def load_engine(options: ModelOptions, *, collects: bool = False) -> Engine:
    """Loads a model and makes an engine around it.

    Args:
        collects: requests will have sinks, so CLIP's image projection is loaded too, where the tower has one.

    Raises:
        UsageError: a device that is not there, or cannot do what is asked for.
        ModelError: the model cannot be had, or does not fit into memory; one line says why.
    """
    device = try_options(options)
    processor = LlavaMiniProcessor.from_pretrained(options.model, revision=options.revision)
    model = unless_out_of_memory(
        LlavaMiniForConditionalGeneration.from_pretrained,
        options.model,
        revision=options.revision,
        dtype=options.dtype,
        device=device,
    )
    if model is None:
        raise ModelError(f"model {options.model}: no memory left on {device} for its weights")
    if options.quantize is not None:
        quantize(model, options.quantize)
    projection = _projection(options, model.config) if collects else None
    return make_engine(model, processor, options, _revision(options), projection)


def _projection(options: ModelOptions, config: LlavaMiniConfig) -> torch.Tensor | None:
    """CLIP's image projection; None where the tower's directory is the vision half alone, or there is none."""
    try:
        directory = find_tower(config.mm_vision_tower, find_model(options.model, options.revision))
    except ModelNotFound:
        return None  # a checkpoint that stands alone holds the tower's own weights
    return load_image_projection(directory, config.vision.hidden_size)


def make_engine(
    model: LlavaMiniForConditionalGeneration,
    processor: LlavaMiniProcessor,
    options: ModelOptions,
    revision: str | None = None,
    image_projection: torch.Tensor | None = None,
) -> Engine:
    """An engine around a loaded model, its bounds chosen for the device."""
    on_cuda = model.device.type == "cuda"
    chunk = options.batch_size or (CUDA_CHUNK_FRAMES if on_cuda else CPU_CHUNK_FRAMES)
    limits = Limits(
        chunk_frames=chunk,
        generations=GENERATIONS,
        media=max(MEDIA, chunk),
        cache_bytes=int(torch.cuda.mem_get_info(model.device)[0] * CUDA_CACHE_SHARE) if on_cuda else CPU_CACHE_BYTES,
    )
    prompts = processor.prompts(options.prompt_layout)
    if options.compile:
        dense = compile_dense(model)
    else:
        choose_products(model, measured_rates(model.config, model.device))
        dense = EAGER
    return Engine(model, processor, prompts, limits, revision, dense, image_projection)


def _revision(options: ModelOptions) -> str | None:
    """The commit of a hub snapshot; None for a directory."""
    directory = find_model(options.model, options.revision)
    return directory.name if directory.parent.name == "snapshots" else None
