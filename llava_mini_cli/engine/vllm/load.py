"""From options to an engine whose language model is on vLLM: our half here, the other in vLLM's process."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LlamaConfig

from llava_mini_cli.config import ModelOptions
from llava_mini_cli.engine.engine import MakeLanguageModel
from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.language_model import LanguageModel
from llava_mini_cli.engine.llm.token_decoder import end_ids
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.engine.vllm.link import Process, VllmEnded
from llava_mini_cli.engine.vllm.messages import Ready, Start
from llava_mini_cli.engine.vllm.quantised import ONLINE
from llava_mini_cli.engine.vllm.vllm_model import VllmLanguageModel
from llava_mini_cli.errors import ModelError, UsageError
from llava_mini_cli.hub import find_model
from llava_mini_cli.model.compressed import FIELD, quantization_of
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import PromptBuilder
from llava_mini_cli.needs import is_installed

SEQUENCES = 256  # answered at once on a card
SEQUENCES_ON_CPU = 64
WORK_BYTES = 4 << 30  # of a card, for our half's work beside its weights
LEAST_SHARE = 0.05
QUIET = "ERROR"  # VLLM_LOGGING_LEVEL where nobody asked for its talk


def takes_vllm(options: ModelOptions, device: torch.device) -> bool:
    """True if options mean vLLM on a device."""
    if options.llm == "auto":
        is_plain = options.quantize is None and not options.compile
        return is_plain and device.type == "cuda" and is_installed("vllm")
    return options.llm == "vllm"


def half_of(config: LlavaMiniConfig) -> LlavaMiniConfig:
    """The configuration of what turns frames into tokens: no layers behind it, and no head of its own."""
    return LlavaMiniConfig.from_fields({**config.to_dict(), "num_hidden_layers": 0, "tie_word_embeddings": True})


def check_spread(config: LlavaMiniConfig, cards: int) -> None:
    """Raises `UsageError` where a model's layers cannot be cut into as many equal parts as there are cards."""
    heads, keys, width = config.num_attention_heads, config.num_key_value_heads or 1, config.intermediate_size
    if heads % cards or width % cards or (keys % cards and cards % keys):
        raise UsageError(
            f"--tensor-parallel {cards}: the model's {heads} heads, {keys} heads of keys and {width} inner numbers "
            f"cannot be shared among {cards} cards equally"
        )


def language_model_config(config: LlavaMiniConfig, quantization: dict[str, Any] | None = None) -> LlamaConfig:
    """The configuration of the language model alone, for vLLM; `quantization`: how a checkpoint's layers are stored."""
    known = LlamaConfig().to_dict().keys() - {"model_type", "architectures"}
    fields: dict[str, Any] = {key: value for key, value in config.to_dict().items() if key in known}
    if quantization is not None:
        fields[FIELD] = quantization
    return LlamaConfig(**fields)


@dataclass(frozen=True)
class Vllm:
    """A language model on vLLM that is there."""

    process: Process
    ready: Ready
    make: MakeLanguageModel

    @property
    def note(self) -> str:
        """What is told of it."""
        return f"vLLM {self.ready.version} answers, with up to {self.ready.positions} positions"


def start_vllm(
    model: LlavaMiniForConditionalGeneration,
    prompts: PromptBuilder,
    options: ModelOptions,
    config: LlavaMiniConfig,
    limits: Limits,
) -> Vllm:
    """Starts vLLM's process and waits for it.

    Args:
        model: our half, loaded.
        config: of the whole model.

    Raises:
        ModelError: vLLM cannot load the model; one line says why.
    """
    ends = end_ids(model)
    checkpoint = find_model(options.model, options.revision)
    on_cuda = model.device.type == "cuda"
    start = Start(
        checkpoint=str(checkpoint.absolute()),
        config=language_model_config(config, quantization_of(checkpoint)).to_json_string(),
        dtype=str(model.dtype).removeprefix("torch."),
        on_cuda=on_cuda,
        card=model.device.index or 0,
        sequences=SEQUENCES if on_cuda else SEQUENCES_ON_CPU,
        tensor_parallel=options.tensor_parallel,
        cache_bytes=None if on_cuda else limits.cache_bytes // options.tensor_parallel,
        memory_share=options.gpu_memory or (_share(model.device) if on_cuda else LEAST_SHARE),
        layout=prompts.layout,
        end_ids=tuple(sorted(ends)),
        quantization=None if options.quantize is None else ONLINE[options.quantize],
    )
    try:
        process = Process(start, is_verbose=os.environ.get("VLLM_LOGGING_LEVEL") != QUIET)
        ready = process.wait()
    except VllmEnded as error:
        raise ModelError(f"model {options.model}: vLLM cannot load it ({error})") from error
    except OSError as error:
        raise ModelError(f"model {options.model}: vLLM's process cannot be started ({error})") from error

    def make(labels: LabelIds, grammars: Grammars) -> LanguageModel:
        return VllmLanguageModel(process, model.model, prompts, labels, grammars, ends)

    return Vllm(process, ready, make)


def bounded(limits: Limits, *, on_cuda: bool) -> Limits:
    """The bounds of a run whose keys and values are vLLM's: it takes in what keeps vLLM busy."""
    work = None if limits.work_bytes is None else max(1, limits.work_bytes - limits.cache_bytes)
    return replace(limits, generations=4 * SEQUENCES, work_bytes=work, takes_turns=not on_cuda)


def _share(device: torch.device) -> float:
    """The share of a card that vLLM may take, its weights included."""
    free, total = torch.cuda.mem_get_info(device)
    return max(LEAST_SHARE, (free - WORK_BYTES) / total)
