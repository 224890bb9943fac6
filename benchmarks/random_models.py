"""Random-weight models of stated shapes for the benchmarks: ours, and transformers' own LLaVA-1.5 with the same parts.

Prompts are given in token counts, so that no tokenizer decides the figures.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_mini_cli.bench.shapes import NO_END
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.products import choose_products, measure
from llava_mini_cli.engine.rates import Rates
from llava_mini_cli.engine.scheduler import Limits
from llava_mini_cli.model import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini_cli.model.preprocess import Preprocessor
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def build_ours(llm: dict[str, Any], clip: dict[str, Any]) -> LlavaMiniForConditionalGeneration:
    """LLaVA-Mini of these shapes, C = 1, 4 pre-fusion layers, on the current default device."""
    config = LlavaMiniConfig.from_fields(
        {**llm, **NO_END, "vision_config": clip, "mm_hidden_size": clip["hidden_size"]}
    )
    config._attn_implementation = "sdpa"
    return LlavaMiniForConditionalGeneration(config).eval()


def build_llava_15(llm: dict[str, Any], clip: dict[str, Any]) -> LlavaForConditionalGeneration:
    """transformers' LLaVA-1.5 with the same tower and language model."""
    config = LlavaConfig(
        text_config=LlamaConfig(**{**llm, **NO_END}),
        vision_config=CLIPVisionConfig(**clip),
        image_token_index=llm["vocab_size"] - 1,
    )
    return LlavaForConditionalGeneration(config).eval()


@dataclass(frozen=True)
class CountedPrompts:
    """Prompts of a stated number of tokens: question "7" is the seventh, different from the others in every token."""

    before: int  # text tokens before the frames
    after: int  # and behind them

    def question_ids(self, question: str) -> list[int]:
        """As `PromptBuilder.question_ids`."""
        first = 100 + 37 * int("".join(filter(str.isdigit, question)))
        return [*range(10, 10 + self.before), IMAGE_TOKEN_ID, *range(first, first + self.after)]

    def text_ids(self, question: str) -> list[int]:
        """As `PromptBuilder.text_ids`."""
        return [token for token in self.question_ids(question) if token != IMAGE_TOKEN_ID]

    def answer_text(self, ids: list[int]) -> str:
        """As `PromptBuilder.answer_text`."""
        return " ".join(map(str, ids))


def build_engine(
    model: LlavaMiniForConditionalGeneration,
    prompts: CountedPrompts,
    chunk: int = 8,
    generations: int = 64,
    *,
    measured: bool = True,
) -> Engine:
    """An engine around a random model.

    `measured`: products go through the quicker library, as those of a model of full size do.
    """
    config = model.config
    size = config.vision.image_size
    assert isinstance(size, int)
    preprocessor = Preprocessor(size, (size, size), MEAN, STD, frame_size=config.video_frame_size)
    processor = LlavaMiniProcessor(None, preprocessor, config)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    limits = Limits(chunk_frames=chunk, generations=generations, media=64, cache_bytes=8 << 30)
    if measured:
        shape = config.intermediate_size, config.hidden_size
        choose_products(model, Rates(shape, measure(shape)[0]))
    return Engine(model, processor, prompts, limits)  # pyright: ignore[reportArgumentType]


def seed(number: int = 0) -> None:
    """Makes the random weights the same in every run."""
    torch.manual_seed(number)
