"""From options to a running engine: the model is found, loaded and put on its device."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import torch

from llava_mini_cli.config import ModelOptions, Quantization
from llava_mini_cli.engine.choose_format import Choice, choose_format
from llava_mini_cli.engine.dense import EAGER, compile_dense
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.fit import NUMBER_BYTES
from llava_mini_cli.engine.llm.sampling import YesNo
from llava_mini_cli.engine.memory import MOST_KEPT, keep_freed_memory, unless_out_of_memory
from llava_mini_cli.engine.prepared import prepared_supply
from llava_mini_cli.engine.products import choose_products, int8_kernel, measured_rates
from llava_mini_cli.engine.quantize import Packing, quantize
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.engine.trials import try_options
from llava_mini_cli.engine.vllm.load import bounded, check_spread, half_of, start_vllm, takes_vllm
from llava_mini_cli.engine.vllm.quantised import as_on_vllm
from llava_mini_cli.engine.work_bytes import Sizes, Work, bounds
from llava_mini_cli.errors import ModelError, ModelNotFound, UsageError
from llava_mini_cli.hub import find_model, find_tower
from llava_mini_cli.memory_there import held_bytes, memory_there
from llava_mini_cli.model.checkpoint import load_config, look_at_weights
from llava_mini_cli.model.clip_space import load_image_projection
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor
from llava_mini_cli.model.weight_headers import Stored

CUDA_CHUNK_FRAMES = 32
GENERATIONS = 64  # at most, and as many as have room for ANSWER positions each
ANSWER = 512
MEDIA = 64
AMPLE = 6 * MOST_KEPT  # bytes for work on a CPU, of which some may be kept for the next piece
CUDA_CACHE_SHARE = 0.5  # of the memory that is free once the model is loaded


def load_engine(
    options: ModelOptions, *, collects: bool = False, compares: bool = False, yes_no: bool = False
) -> Engine:
    """Loads a model and makes an engine around it.

    Args:
        collects: requests will want CLIP's embeddings, so its image projection is loaded too, where the tower has one.
        compares: their sinks compare frames by it, so a tower without one is refused before weights are read.
        yes_no: how likely yes is will be asked for, so a tokenizer that cannot tell is refused before weights are read.

    Raises:
        UsageError: a device that is not there or cannot do what is asked for, or a model that does not fit into memory.
        ModelError: the model cannot be had, or memory ran out on the way; one line says why.
    """
    device = try_options(options)
    choice = unless_out_of_memory(_choose, options, device)
    processor = LlavaMiniProcessor.from_pretrained(options.model, revision=options.revision)
    if yes_no:
        YesNo.of_prompts(processor.prompts(options.prompt_layout))
    projection = _projection(options) if collects else None
    if compares and projection is None:
        raise UsageError("--dedupe compares CLIP embeddings, and this model's CLIP has no image projection")
    on_vllm = takes_vllm(options, device)
    if on_vllm and choice is not None and choice.kind != choice.number:
        raise UsageError(f"--llm vllm: only in {choice.kind} would the model fit the memory, which vLLM does not have")
    model = choice and unless_out_of_memory(_load_half if on_vllm else _load_model, options, choice, device)
    if model is None:
        raise ModelError(f"model {options.model}: no memory left on {device} for its weights")
    return make_engine(model, processor, options, _revision(options), projection, choice)


def _choose(options: ModelOptions, device: torch.device) -> Choice:
    """How the weights are going to be held; none of them is read."""
    checkpoint = find_model(options.model, options.revision)
    config = load_config(checkpoint)
    is_on_vllm = takes_vllm(options, device)
    stored: Mapping[str, Stored] = look_at_weights(checkpoint, config, is_on_vllm=is_on_vllm)
    if is_on_vllm:
        check_spread(config, options.tensor_parallel)
        options, stored = as_on_vllm(options, stored, device, checkpoint)
    return choose_format(options, config, stored, device)


def _load_model(options: ModelOptions, choice: Choice, device: torch.device) -> LlavaMiniForConditionalGeneration:
    kind = None if choice.kind in NUMBER_BYTES else cast(Quantization, choice.kind)
    load = partial(
        LlavaMiniForConditionalGeneration.from_pretrained,
        options.model,
        revision=options.revision,
        dtype=choice.dtype,
        device=device,
    )
    if kind is not None and device.type == "cpu":
        kernel = int8_kernel(measured_rates(load_config(find_model(options.model, options.revision)), device))
        with prepared_supply(options, kind, kernel) as supply:
            return load(maker=Packing(kind, choice.dtype, kernel, supply))
    model = load()
    if kind is not None:
        quantize(model, kind)
    return model


def _load_half(options: ModelOptions, choice: Choice, device: torch.device) -> LlavaMiniForConditionalGeneration:
    """What turns frames into tokens; the language model is loaded by vLLM."""
    config = half_of(load_config(find_model(options.model, options.revision)))
    return LlavaMiniForConditionalGeneration.from_pretrained(
        options.model, revision=options.revision, dtype=choice.dtype, device=device, config=config
    )


def _projection(options: ModelOptions) -> torch.Tensor | None:
    """CLIP's image projection; None where the tower's directory is the vision half alone, or there is none."""
    checkpoint = find_model(options.model, options.revision)
    config = load_config(checkpoint)
    try:
        directory = find_tower(config.mm_vision_tower, checkpoint)
    except ModelNotFound:
        return None  # a checkpoint that stands alone holds the tower's own weights
    return load_image_projection(directory, config.vision.hidden_size)


def make_engine(
    model: LlavaMiniForConditionalGeneration,
    processor: LlavaMiniProcessor,
    options: ModelOptions,
    revision: str | None = None,
    image_projection: torch.Tensor | None = None,
    choice: Choice | None = None,
) -> Engine:
    """An engine around a loaded model, its bounds chosen for the device and for the memory that is left.

    `choice`: None: the weights are in the model's number format, and all of them in memory.
    """
    is_half = model.config.num_hidden_layers == 0  # and the language model is on vLLM
    config = load_config(find_model(options.model, options.revision)) if is_half else model.config
    limits = _limits(model, config, options, choice)
    if limits.work_bytes is not None and limits.work_bytes >= AMPLE:
        keep_freed_memory()
    prompts = processor.prompts(options.prompt_layout)
    if options.compile:
        dense = compile_dense(model)
    else:
        choose_products(model, measured_rates(config, model.device))
        dense = EAGER
    kind, note = (None, None) if choice is None else (choice.kind, choice.note)
    if not is_half:
        return Engine(model, processor, prompts, limits, revision, dense, image_projection, kind, note)
    vllm = start_vllm(model, prompts, options, config, limits)
    limits, note = bounded(limits, on_cuda=model.device.type == "cuda"), vllm.note
    return Engine(model, processor, prompts, limits, revision, dense, image_projection, kind, note, vllm.make)


def _limits(
    model: LlavaMiniForConditionalGeneration, config: LlavaMiniConfig, options: ModelOptions, choice: Choice | None
) -> Limits:
    """The bounds of a run: shares of what is left beside the weights on a CPU; a card says itself when it is full.

    `config`: of the whole model, of which `model` may be a half.
    """
    there, on_cuda = memory_there(), model.device.type == "cuda"
    own, mapped = (0, 0) if choice is None or on_cuda else (choice.need.own, choice.need.mapped)
    left = None if there is None else max(0, there.bytes - max(held_bytes(), own) - mapped)
    is_packed = choice is not None and choice.kind not in NUMBER_BYTES
    work = Work.of(Sizes.of(config.to_dict()), model.dtype.itemsize, is_packed=is_packed)
    found = bounds(left, work, options.batch_size)
    if on_cuda:
        cache_bytes = int(torch.cuda.mem_get_info(model.device)[0] * CUDA_CACHE_SHARE)
        found = replace(found, chunk_frames=options.batch_size or CUDA_CHUNK_FRAMES, cache_bytes=cache_bytes)
        found = replace(found, work_bytes=None)
    return Limits(
        chunk_frames=found.chunk_frames,
        generations=max(1, min(GENERATIONS, found.cache_bytes // (ANSWER * work.cached))),
        media=max(MEDIA, found.chunk_frames),
        cache_bytes=found.cache_bytes,
        media_bytes=found.media_bytes,
        work_bytes=found.work_bytes,
    )


def _revision(options: ModelOptions) -> str | None:
    """The commit of a hub snapshot; None for a directory."""
    directory = find_model(options.model, options.revision)
    return directory.name if directory.parent.name == "snapshots" else None
