"""What only a GPU can show, at the full 8B size with random weights; every figure beside LLaVA-1.5 in transformers.

    python benchmarks/gpu.py [--size full|small] [--device cuda] [--rounds 5] [--peak-tflops 989]

One JSON line a figure, medians of `rounds`: milliseconds to the first token of an answer about one image (the paper:
38.6 on an A100), images a second with 32 new tokens, frames a second of the encode phase and its model FLOPs
utilisation, memory a frame, and whether 10,800 frames fit 24 GiB. `--size small --device cpu` runs the same code
anywhere, memory excepted.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from engine import VIDEO_PROMPT, Frames, answers, report
from random_models import CountedPrompts, build_engine, build_llava_15, build_ours, seed
from torch.utils.flop_counter import FlopCounterMode

from llava_mini_cli.bench.shapes import LARGE_CLIP, LLAMA_8B, SMALL_CLIP, SMALL_LLM
from llava_mini_cli.config import GenerationOptions
from llava_mini_cli.engine.encode import encode
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.request import Request
from llava_mini_cli.media.clip import FrameChunk

SHAPES = {"full": (LLAMA_8B, LARGE_CLIP), "small": (SMALL_LLM, SMALL_CLIP)}
CHUNK = 32
IMAGES = 64
IMAGE_PROMPT = CountedPrompts(before=23, after=20)  # the paper's 43 tokens
GIB = 1 << 30


class RepeatedFrames:
    """One chunk of frames again and again: a long video that needs no memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pixels = np.random.default_rng(0).integers(0, 256, (CHUNK, 336, 336, 3)).astype(np.uint8)

    def __iter__(self) -> Iterator[FrameChunk]:
        for start in range(0, self.count, CHUNK):
            size = min(CHUNK, self.count - start)
            yield FrameChunk(self.pixels[:size], np.arange(start, start + size, dtype=np.float64))

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        pass


def median_seconds(rounds: int, work: Callable[[], Any]) -> float:
    """Of so many goes after two that do not count, the device idle before and after each."""
    seconds: list[float] = []
    for number in range(rounds + 2):
        synchronise()
        started = time.perf_counter()
        work()
        synchronise()
        if number > 1:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 336, 336, 3)).astype(np.uint8)


def caption(engine: Engine, images: np.ndarray, new_tokens: int) -> None:
    """Every image answered through the engine."""
    options = GenerationOptions(max_new_tokens=new_tokens)
    answers(engine, [Request(str(n), "image", Frames(images[n : n + 1]), ("0",), options) for n in range(len(images))])


def caption_llava(llava: Any, engine: Engine, images: np.ndarray, new_tokens: int) -> None:
    """The same prompt about every image through LLaVA-1.5, as one batch."""
    token = llava.config.image_token_index
    ids = torch.tensor([[*range(10, 33), *[token] * 576, *range(100, 120)]], device=llava.device)
    ids = ids.expand(len(images), -1)
    pixels = torch.cat([engine.processor.preprocessor.image(image) for image in torch.from_numpy(images)])
    llava.generate(
        input_ids=ids,
        pixel_values=pixels.to(llava.device, llava.dtype),
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )


def first_answer(engine: Engine, llava: Any, rounds: int) -> None:
    image = random_images(1)
    ours = median_seconds(rounds, lambda: caption(engine, image, 1))
    theirs = median_seconds(rounds, lambda: caption_llava(llava, engine, image, 1))
    report(figure="first token of one image", ms=1000 * ours, llava_15_ms=1000 * theirs, ratio=theirs / ours)


def images_per_second(engine: Engine, llava: Any, rounds: int, batches: tuple[int, ...]) -> None:
    images = random_images(IMAGES)
    ours = median_seconds(rounds, lambda: caption(engine, images, 32))
    by_batch = {
        batch: median_seconds(rounds, lambda batch=batch: caption_llava(llava, engine, images[:batch], 32)) / batch
        for batch in batches
    }
    best = min(by_batch, key=lambda batch: by_batch[batch])
    theirs = 1 / by_batch[best]
    rate = IMAGES / ours
    report(figure="images a second", ours=rate, llava_15=theirs, llava_15_batch=best, ratio=rate / theirs)


def encode_phase(engine: Engine, rounds: int, shape: tuple[Any, Any], peak_tflops: float) -> None:
    model = engine.model.model
    pack = pack_prompts([VIDEO_PROMPT.question_ids("0")])
    pixels = torch.randn(CHUNK, 1, 3, 336, 336, device=engine.model.device, dtype=engine.model.dtype)
    seconds = median_seconds(rounds, lambda: encode(model, pixels, [pack] * CHUNK))
    with torch.device("meta"):
        meta = build_ours(*shape).requires_grad_(False)
        counter = FlopCounterMode(display=False)
        with counter:
            encode(meta.model, torch.zeros(1, 1, 3, 336, 336), [pack])
    tflops = counter.get_total_flops() / 1e12 * CHUNK / seconds
    report(
        figure="encode",
        frames_per_s=CHUNK / seconds,
        tflops_per_s=tflops,
        utilisation=tflops / peak_tflops,
        chunk=CHUNK,
    )


def memory(engine: Engine, llava: Any, frames: tuple[int, int]) -> None:
    """Peaks of a short and a long video on CUDA; what LLaVA-1.5 keeps of an image is counted from its cache."""
    options = GenerationOptions(max_new_tokens=16)
    peaks: list[int] = []
    for count in frames:
        torch.cuda.reset_peak_memory_stats()
        answers(engine, [Request("v", "video", RepeatedFrames(count), ("0",), options)])
        peaks.append(torch.cuda.max_memory_allocated())
    text = llava.config.text_config
    head = text.hidden_size // text.num_attention_heads
    kept = 2 * text.num_hidden_layers * text.num_key_value_heads * head * llava.dtype.itemsize * 576
    report(
        figure="memory",
        frames=frames,
        peak_gib=[round(peak / GIB, 2) for peak in peaks],
        bytes_a_frame=(peaks[1] - peaks[0]) / (frames[1] - frames[0]),
        llava_15_bytes_a_frame=kept,
        long_video_within_24_gib=peaks[1] < 24 * GIB,
    )


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SHAPES), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 of the card (H100, H200: 989)")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8, 32, 64), help="tried for LLaVA-1.5")
    parser.add_argument("--frames", type=int, nargs=2, default=(600, 10_800))
    arguments = parser.parse_args()
    shape, on_cuda = SHAPES[arguments.size], arguments.device.startswith("cuda")
    torch.set_default_dtype(torch.bfloat16 if on_cuda else torch.float32)
    with torch.device(arguments.device):
        seed()
        ours = build_ours(*shape)
    name = torch.cuda.get_device_name() if on_cuda else "CPU"
    report(device=name, torch=torch.__version__, size=arguments.size, llm=shape[0], clip=shape[1])
    encode_phase(build_engine(ours, VIDEO_PROMPT, CHUNK), arguments.rounds, shape, arguments.peak_tflops)
    with torch.device("meta"):
        llava = build_llava_15(*shape)
    if on_cuda:
        memory(build_engine(ours, VIDEO_PROMPT, CHUNK), llava, tuple(arguments.frames))
    with torch.device(arguments.device):
        seed()
        llava = build_llava_15(*shape)
    engine = build_engine(ours, IMAGE_PROMPT, CHUNK)
    first_answer(engine, llava, arguments.rounds)
    images_per_second(engine, llava, arguments.rounds, tuple(arguments.batches))


if __name__ == "__main__":
    main()
