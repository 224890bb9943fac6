"""`llava-mini ask MEDIA... QUESTION`: one or more questions about videos and images."""

from pathlib import Path
from typing import Annotated

import typer

from llava_mini_cli.commands import options as opt
from llava_mini_cli.commands.run import TalkOptions, run_questions
from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.errors import UsageError
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.prompts import checked_prompt, parse_prompts

Arguments = Annotated[
    list[str],
    typer.Argument(
        metavar="MEDIA... QUESTION",
        help="Videos, images or folders of them, then the question; with -p every one is a medium.",
    ),
]


def ask(
    arguments: Arguments,
    prompt: opt.Prompts = None,
    output: opt.Output = None,
    format: opt.Format = None,
    overwrite: opt.Overwrite = False,
    fail_on: opt.FailOnOption = "any",
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    model: opt.Model = opt.DEFAULT_MODEL,
    revision: opt.Revision = None,
    device: opt.Device = "auto",
    dtype: opt.DType = "auto",
    prompt_layout: opt.Layout = "trained",
    batch_size: opt.BatchSize = None,
    quantize: opt.Quantize = None,
    compile: opt.Compile = False,
    fps: opt.Fps = SamplingOptions.fps,
    max_frames: opt.MaxFrames = None,
    start: opt.Start = None,
    end: opt.End = None,
    decoder: opt.Decoder = "auto",
    decode_timeout: opt.DecodeTimeout = SamplingOptions.decode_timeout,
    max_new_tokens: opt.MaxNewTokens = GenerationOptions.max_new_tokens,
    temperature: opt.Temperature = GenerationOptions.temperature,
    top_p: opt.TopP = GenerationOptions.top_p,
    seed: opt.Seed = GenerationOptions.seed,
) -> int:
    """Ask a question about videos and images.

    One medium and one question at a terminal: the answer as plain text. Otherwise: one JSON line for each answer.
    """
    media, prompts = split_arguments(arguments, prompt or [])
    return run_questions(
        media,
        prompts,
        ModelOptions(model, revision, device, dtype, prompt_layout, batch_size, quantize, compile),
        SamplingOptions(fps, max_frames, start, end, decoder, decode_timeout),
        GenerationOptions(max_new_tokens, temperature, top_p, seed),
        TalkOptions(output, format, overwrite, fail_on, quiet, verbose),
    )


def split_arguments(arguments: list[str], prompts: list[str]) -> tuple[list[str], tuple[Prompt, ...]]:
    """Media and questions. Without -p the last argument is the question.

    Raises:
        UsageError: no question, or what looks like a forgotten one.
    """
    if prompts:
        return arguments, parse_prompts(prompts)
    *media, question = arguments
    prompt = checked_prompt(question)
    if Path(question).is_dir():
        raise UsageError(f"'{question}' is a folder, not a question: the question comes last, or with -p")
    if not media and not Path(question).exists():
        raise UsageError(f"there is no medium: llava-mini ask MEDIA... QUESTION (got only '{question}')")
    if Path(question).exists():
        raise UsageError(f"'{question}' is a file, not a question: the question comes last, or with -p")
    return media, (prompt,)
