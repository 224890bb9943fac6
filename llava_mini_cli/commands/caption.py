"""`llava-mini caption MEDIA...`: a description of videos and images."""

from llava_mini_cli.commands import options as opt
from llava_mini_cli.commands.run import TalkOptions, run_questions
from llava_mini_cli.config import GenerationOptions, ModelOptions, SamplingOptions
from llava_mini_cli.formats.job import Prompt
from llava_mini_cli.formats.prompts import parse_prompts

CAPTION_PROMPT = Prompt("Please describe what is shown in detail.", name="caption")


def caption(
    media: opt.Media,
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
    """Describe videos and images.

    The built-in prompt is "Please describe what is shown in detail."; -p asks something else instead.
    """
    return run_questions(
        media,
        parse_prompts(prompt) if prompt else (CAPTION_PROMPT,),
        ModelOptions(model, revision, device, dtype, prompt_layout, batch_size, quantize, compile),
        SamplingOptions(fps, max_frames, start, end, decoder, decode_timeout),
        GenerationOptions(max_new_tokens, temperature, top_p, seed),
        TalkOptions(output, format, overwrite, fail_on, quiet, verbose),
    )
