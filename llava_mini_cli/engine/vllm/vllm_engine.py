"""vLLM's engine as it is made here, and its terms for a unit of work."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from llava_mini_cli.engine.vllm.messages import GRAMMAR, PENALTY, Start, Unit
from llava_mini_cli.engine.vllm.plugin import ARCHITECTURE

BLOCK = 32  # positions that are shared or not, on a CPU
WATCHED_EVERY = 8  # tokens of an answer that may have to be stopped
_HELD = "llava_mini_cli.engine.vllm.held_scores:HeldScores"


def make_engine(start: Start) -> Any:
    """vLLM's engine, in this process. Its configuration is written to a temporary file, from which vLLM reads it."""
    from vllm import EngineArgs
    from vllm.usage.usage_lib import UsageContext  # pyright: ignore[reportMissingModuleSource]
    from vllm.v1.engine.llm_engine import LLMEngine  # pyright: ignore[reportMissingModuleSource]

    config = Path(mkdtemp())
    (config / "config.json").write_text(start.config)
    on_cpu = {} if start.on_cuda else {"block_size": BLOCK, "enforce_eager": True}
    arguments = EngineArgs(
        model=start.checkpoint,
        hf_config_path=str(config),
        hf_overrides={"architectures": [ARCHITECTURE]},
        generation_config="vllm",
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
        dtype=start.dtype,
        quantization=start.quantization,
        max_model_len=-1,  # what fits the keys and values of those that the model has
        max_num_seqs=start.sequences,
        tensor_parallel_size=start.tensor_parallel,
        gpu_memory_utilization=start.memory_share,
        kv_cache_memory_bytes=start.cache_bytes,
        logits_processors=[_HELD],
        async_scheduling=False,  # the processor reads the tokens so far
        additional_config={
            "checkpoint": start.checkpoint,
            "layout": start.layout,
            "end_ids": list(start.end_ids),
        },
        disable_log_stats=True,
        **on_cpu,
    )
    # Whose defaults are those of work that nobody waits at: more positions of prompts in one step.
    return LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)


def sampling_params(unit: Unit, ends: Sequence[int]) -> Any:
    """How a unit is to be sampled, in vLLM's terms; `ends`: the tokens that end an answer."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingModuleSource]

    extra: dict[str, Any] = {} if unit.penalty == 1 else {PENALTY: unit.penalty}
    if unit.grammar is not None:
        extra[GRAMMAR] = list(unit.grammar)
    return SamplingParams(
        max_tokens=unit.new_tokens,
        temperature=unit.temperature,
        top_p=unit.top_p,
        seed=unit.seed if unit.temperature > 0 else None,
        stop_token_ids=list(ends),
        # Of the token that was taken at least, which tells whether the scores were numbers.
        logprobs=None if unit.wanted else 0,
        logprob_token_ids=list(unit.wanted) or None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        stream_interval=WATCHED_EVERY if unit.is_watched else unit.new_tokens,
        extra_args=extra or None,
    )
