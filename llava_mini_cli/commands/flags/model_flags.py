"""Options for the model, and for the device that it runs on."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from llava_mini_cli.commands.config_files import HARMLESS
from llava_mini_cli.commands.sizes import parse_size
from llava_mini_cli.config import PUBLISHED, DTypeName, LanguageModelName, ModelOptions, PromptLayout, Quantization

DEFAULT_MODEL = PUBLISHED

_option = partial(typer.Option, rich_help_panel="Model")
_model = partial(_option, "-m", "--model", metavar="PATH|HUB_ID", envvar="LLAVA_MINI_MODEL")

Model = Annotated[
    str, _model(help="Model that answers: a folder, the id of a model on the Hugging Face hub, or demo, a tiny one.")
]
MovedModel = Annotated[
    str | None,
    _model(
        help="Model that the archive was made with, if it has moved.",
        show_default="as the archive says",
        rich_help_panel="Archive",
    ),
]
StartModel = Annotated[
    str | None,
    _model(
        help="Model to start from: a checkpoint folder or the id of a model on the hub.", rich_help_panel="Training"
    ),
]


@dataclass(frozen=True)
class ModelFlags:
    """The fields of `ModelOptions`, as options."""

    model: Model = DEFAULT_MODEL
    revision: Annotated[str | None, _option(help="Branch, tag or commit of a model on the hub.")] = (
        ModelOptions.revision
    )
    device: Annotated[
        str,
        _option(metavar="NAME", help="Device that computes: cpu, cuda, cuda:N, or auto, the GPU if there is one."),
        HARMLESS,
    ] = ModelOptions.device
    dtype: Annotated[
        DTypeName,
        _option(
            help="Number format of the computation; auto is bfloat16 on CUDA, and on the CPU float32 or bfloat16, "
            "whichever is quicker and fits the memory, or else weights in int8."
        ),
        HARMLESS,
    ] = ModelOptions.dtype
    prompt_layout: Annotated[
        PromptLayout,
        _option(help="Text around each question: as in the model's training, or as in the authors' reference script."),
        HARMLESS,
    ] = ModelOptions.prompt_layout
    batch_size: Annotated[
        int | None, _option(help="Number of frames to encode at once.", show_default="chosen automatically")
    ] = ModelOptions.batch_size
    quantize: Annotated[
        Quantization | None,
        _option(
            help="Number format that weights are reduced to, to save memory; int8 is often quicker on a CPU. On a GPU "
            "it needs the extra llava-mini-cli\\[quantize]; fp8 is for GPUs, and for --llm vllm.",
            show_default="none",
        ),
    ] = ModelOptions.quantize
    compile: Annotated[bool, _option(help="Compilation of the model: a later start, then a faster run.")] = (
        ModelOptions.compile
    )
    llm: Annotated[
        LanguageModelName,
        _option(
            help="Language model that answers: own, vllm (extra llava-mini-cli\\[vllm]), or auto: vllm on "
            "CUDA where it is installed."
        ),
    ] = ModelOptions.llm
    tensor_parallel: Annotated[
        int,
        _option(
            metavar="N",
            help="Number of cards that vLLM spreads the language model over: the one of --device and those behind it.",
        ),
    ] = ModelOptions.tensor_parallel
    gpu_memory: Annotated[
        float | None,
        _option(
            metavar="SHARE",
            help="Share of a card's memory, up to 1, that vLLM takes for its weights, keys and values.",
            show_default="what the rest of the model leaves",
        ),
    ] = ModelOptions.gpu_memory
    prepared_size: Annotated[
        int,
        _option(
            parser=parse_size,
            metavar="SIZE",
            help="Disk space for weights that --quantize packed on a CPU, kept so that later runs start at once; 0 "
            "keeps none.",
            show_default=f"{ModelOptions.prepared_bytes >> 30}GB",
        ),
    ] = ModelOptions.prepared_bytes

    def options(self) -> ModelOptions:
        """The options, checked. Raises `UsageError`."""
        fields = dict(vars(self))
        return ModelOptions(prepared_bytes=fields.pop("prepared_size"), **fields)
