"""The options that commands share, declared once. Imports nothing heavy, so that --help is quick."""

from typing import Annotated, Literal

import typer

from llava_mini_cli.commands.times import parse_time
from llava_mini_cli.config import DecoderName, DTypeName, PromptLayout, Quantization

DEFAULT_MODEL = "ICTNLP/llava-mini-llama-3.1-8b"

FailOn = Literal["any", "all", "never"]
FormatName = Literal["jsonl", "parquet"]

_MODEL, _FRAMES, _ANSWER, _OUTPUT = "Model", "Frames", "Answer", "Output"

Media = Annotated[list[str], typer.Argument(metavar="MEDIA...", help="Videos, images, or folders of them.")]
Prompts = Annotated[
    list[str] | None,
    typer.Option("-p", "--prompt", metavar="[NAME=]TEXT", help="A question; may be repeated.", show_default=False),
]

Model = Annotated[
    str,
    typer.Option(
        "-m", "--model", metavar="PATH|HUB_ID", envvar="LLAVA_MINI_MODEL", help="The model.", rich_help_panel=_MODEL
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a hub id.", show_default=False, rich_help_panel=_MODEL),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MODEL)
]
DType = Annotated[
    DTypeName, typer.Option("--dtype", help="auto: bfloat16 on CUDA, float32 on the CPU.", rich_help_panel=_MODEL)
]
Layout = Annotated[
    PromptLayout,
    typer.Option("--prompt-layout", help="reference: as the published script builds it.", rich_help_panel=_MODEL),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Frames encoded at once.", show_default="chosen", rich_help_panel=_MODEL),
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(
        "--quantize",
        help="Weights of the language layers; needs the [quantize] extra.",
        show_default="no",
        rich_help_panel=_MODEL,
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the layers first; pays on long runs.", rich_help_panel=_MODEL)
]

Fps = Annotated[float, typer.Option("--fps", help="Frames sampled a second of video.", rich_help_panel=_FRAMES)]
MaxFrames = Annotated[
    int | None,
    typer.Option("--max-frames", help="At most so many frames a video.", show_default="all", rich_help_panel=_FRAMES),
]
Start = Annotated[
    float | None,
    typer.Option(
        "--start",
        parser=parse_time,
        metavar="TIME",
        help="Begin here: 90, 1:30 or 1m30s.",
        show_default=False,
        rich_help_panel=_FRAMES,
    ),
]
End = Annotated[
    float | None,
    typer.Option(
        "--end", parser=parse_time, metavar="TIME", help="End here.", show_default=False, rich_help_panel=_FRAMES
    ),
]
Decoder = Annotated[DecoderName, typer.Option("--decoder", help="What decodes videos.", rich_help_panel=_FRAMES)]
DecodeTimeout = Annotated[
    float,
    typer.Option(
        "--decode-timeout",
        parser=parse_time,
        metavar="TIME",
        help="A decoder without a new frame for so long is killed.",
        rich_help_panel=_FRAMES,
    ),
]

MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.", rich_help_panel=_ANSWER)
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="0 always gives the likeliest token.", rich_help_panel=_ANSWER)
]
TopP = Annotated[
    float, typer.Option("--top-p", help="Nucleus mass, with a temperature above 0.", rich_help_panel=_ANSWER)
]
Seed = Annotated[int, typer.Option("--seed", help="Of the draws, with a temperature above 0.", rich_help_panel=_ANSWER)]

Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE|-",
        help="FILE.jsonl or FILE.parquet; - is standard output.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Format = Annotated[
    FormatName | None,
    typer.Option("-f", "--format", help="Instead of the suffix.", show_default=False, rich_help_panel=_OUTPUT),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output file that exists.", rich_help_panel=_OUTPUT)
]
FailOnOption = Annotated[
    FailOn, typer.Option("--fail-on", help="Failed items that make the exit code 3.", rich_help_panel=_OUTPUT)
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.", rich_help_panel=_OUTPUT)]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say more, the libraries' warnings too.", rich_help_panel=_OUTPUT)
]
