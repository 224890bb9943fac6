"""Media answered by either model: through the engine, and through transformers' LLaVA-1.5 as one batch."""

from typing import Any, Protocol, cast

import numpy as np
import torch

from llava_mini_cli.bench.made_models import AFTER, BEFORE
from llava_mini_cli.bench.timing import RepeatedFrames
from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.request import Answer, Request


class _Sized(Protocol):
    cache_bytes: int


def answer(engine: Engine, frames: int, questions: int = 1, new_tokens: int = 1, media: int = 1) -> int:
    """Some media of some frames, each with some questions, through the engine; the most keys and values in bytes.

    Raises:
        MemoryError: one of them ran out of it.
    """
    kind = "image" if frames == 1 else "video"
    prompts = tuple(map(str, range(questions)))
    options = GenerationOptions(max_new_tokens=new_tokens)
    for number in range(media):
        source = RepeatedFrames(frames, engine.model.config.video_frame_size)
        engine.add(Request(str(number), kind, source, prompts, options))
    held = 0
    decoder = cast(_Sized, engine._llm)  # pyright: ignore[reportPrivateUsage]
    while not engine.is_idle:
        for outcome in engine.step():
            if not isinstance(outcome, Answer):
                engine.close()
                raise (MemoryError if outcome.error_type == "out_of_memory" else RuntimeError)(outcome.message)
        held = max(held, decoder.cache_bytes)
    return held


def llava_answer(llava: Any, engine: Engine, images: int, new_tokens: int) -> Any:
    """The same prompt about some images through LLaVA-1.5, as one batch, pixels prepared as the engine does it."""
    config = engine.model.config
    tokens = [llava.config.image_token_index] * (config.parts_per_frame * config.patch_grid**2)
    ids = torch.tensor([[*range(1, 1 + BEFORE), *tokens, *range(1, 1 + AFTER)]], device=llava.device)
    size = config.video_frame_size
    picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    pixels = torch.cat([engine.processor.preprocessor.image(torch.tensor(picture)) for _ in range(images)])
    return llava.generate(
        input_ids=ids.expand(images, -1),
        pixel_values=pixels.to(llava.device, engine.model.model.dtype),
        attention_mask=torch.ones_like(ids).expand(images, -1),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
    )
