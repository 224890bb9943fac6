"""Times and memory of a model of full shape with random weights, each beside what the device itself can do."""

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from figures import Fields
from random_models import build_engine

from llava_mini_cli.bench.counting import flops
from llava_mini_cli.bench.made_models import CountedPrompts, llava_beside, meta_model, random_model
from llava_mini_cli.bench.shapes import LARGE_CLIP, LLAMA_8B, NO_END
from llava_mini_cli.bench.timing import RepeatedFrames
from llava_mini_cli.config import GenerationOptions, Quantization
from llava_mini_cli.engine import attention
from llava_mini_cli.engine.dense import EAGER, compile_dense
from llava_mini_cli.engine.encode import encode
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm.generate import DecodeBatch, decode, prefill
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.quantize import check_packing, quantize
from llava_mini_cli.engine.request import Answer, Request
from llava_mini_cli.errors import UsageError
from llava_mini_cli.model.configuration import LlavaMiniConfig

TINY_LLM = {**LLAMA_8B, "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 8, "num_key_value_heads": 2}  # fmt: skip
TINY_CLIP = {**LARGE_CLIP, "image_size": 56, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
             "num_attention_heads": 4}  # fmt: skip
GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """How much of everything is measured."""

    llm: dict[str, Any]
    clip: dict[str, Any]
    chunks: tuple[int, ...]  # frames encoded at once
    rows: tuple[int, ...]  # of a decoding step
    images: int
    batches: tuple[int, ...]  # of LLaVA-1.5
    new_tokens: int
    frames: int  # of a video with many questions
    questions: tuple[int, ...]
    long_frames: int
    square: int  # width of the matrices whose product says what the device can do
    rounds: int
    crowd: int  # media of the comparison with the plain path


SIZES = {
    "full": Size(LLAMA_8B, LARGE_CLIP, (8, 32, 64), (1, 16, 64, 256), 64, (1, 16, 64), 64, 600, (1, 16, 256), 10_800,
                 8192, 5, 40),
    "small": Size(TINY_LLM, TINY_CLIP, (2, 4), (1, 4), 4, (1, 4), 4, 6, (1, 3), 40, 256, 2, 6),
}  # fmt: skip


class Speed:
    """The parts that share one model."""

    def __init__(self, size: str, device: torch.device) -> None:
        self.size, self.device = SIZES[size], device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        clip = self.size.clip
        vision = {"vision_config": clip, "mm_hidden_size": clip["hidden_size"], "video_frame_size": clip["image_size"]}
        layers = {"prefusion_layer_num": 2 if size == "small" else 4}
        self.config = LlavaMiniConfig.from_fields({**self.size.llm, **NO_END, **vision, **layers})
        self.config._attn_implementation = "sdpa"

    @cached_property
    def model(self) -> Any:
        """LLaVA-Mini with random weights on the device."""
        return random_model(self.config, self.dtype, self.device)

    @cached_property
    def llava(self) -> Any:
        """LLaVA-1.5 of the same weights."""
        return llava_beside(self.model)

    @cached_property
    def peak(self) -> float:
        """Operations a second of a plain product."""
        side = self.size.square
        left, right = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * side**3 / self.median(lambda: left @ right)

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that are read, from a sum of very many numbers."""
        numbers = torch.ones((1 << 30 if self.device.type == "cuda" else 1 << 22) // 2, device=self.device,
                             dtype=self.dtype)  # fmt: skip
        return numbers.nbytes / self.median(numbers.sum)

    def median(self, work: Callable[[], Any]) -> float:
        """Seconds, of some goes after two that do not count."""
        taken: list[float] = []
        for number in range(self.size.rounds + 2):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if number > 1:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def engine(self, chunk: int | None = None) -> Engine:
        """An engine whose answers have their whole length."""
        prompts: Any = CountedPrompts(self.config.vocab_size)
        return build_engine(self.model, prompts, chunk or max(self.size.chunks), 256, measured=False)

    def random(self, *shape: int) -> torch.Tensor:
        """Random numbers on the device."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def pixels(self, frames: int) -> torch.Tensor:
        """Pixels of frames as CLIP takes them."""
        side = self.size.clip["image_size"]
        return self.random(frames, self.config.parts_per_frame, 3, side, side)

    # The parts

    def device_itself(self) -> Iterator[Fields]:
        """What a product and a read from memory reach."""
        yield {"figure": "plain product", "tflops": self.peak / 1e12, "width": self.size.square}
        yield {"figure": "reading memory", "gb_s": self.bandwidth / 1e9}

    def loading(self) -> Iterator[Fields]:
        """The time until the weights are there."""
        began = time.perf_counter()
        size = sum(parameter.nbytes for parameter in self.model.parameters())
        self.wait()
        yield {"figure": "model", "gib": size / GIB, "made_s": time.perf_counter() - began}

    def encoding(self) -> Iterator[Fields]:
        """Frames a second, and the share of the plain product's rate."""
        pack = pack_prompts([CountedPrompts(self.config.vocab_size).question_ids("0")])
        bare = meta_model(LlavaMiniConfig.from_fields(self.config.to_dict()))
        for chunk in self.size.chunks:
            pixels = self.pixels(chunk)
            taken = self.median(lambda pixels=pixels, chunk=chunk: encode(self.model.model, pixels, [pack] * chunk))
            counted = flops(lambda pixels=pixels, chunk=chunk: encode(
                bare.model, torch.zeros(pixels.shape), [pack] * chunk
            )).whole  # fmt: skip
            yield {"figure": "encode", "chunk": chunk, "frames_s": chunk / taken, "tflops": counted / taken / 1e12,
                   "of_plain_product": counted / taken / self.peak}  # fmt: skip

    def first_token(self) -> Iterator[Fields]:
        """One image, one question, one token."""
        image = self.images(1)
        ours = self.median(lambda: self.caption(image, 1))
        theirs = self.median(lambda: self.caption_llava(1, 1))
        yield {"figure": "first token of one image", "ms": 1e3 * ours, "llava_15_ms": 1e3 * theirs}

    def steps(self) -> Iterator[Fields]:
        """A decoding step beside the reading of the weights, and the time in which the host has queued it."""
        read = self.step_bytes() / self.bandwidth
        for rows in self.size.rows:
            batch, tokens = self.decoding(rows)
            taken = self.median(lambda batch=batch, tokens=tokens: decode(self.model, [batch], tokens))
            host = self.host_time(lambda batch=batch, tokens=tokens: decode(self.model, [batch], tokens))
            yield {"figure": "decoding step", "rows": rows, "ms": 1e3 * taken, "weights_read_ms": 1e3 * read,
                   "of_reading": taken / read, "host_ms": 1e3 * host}  # fmt: skip

    def captions(self) -> Iterator[Fields]:
        """Images a second with answers of one length, LLaVA-1.5 at its best batch."""
        new_tokens = self.size.new_tokens
        images = self.images(self.size.images)
        ours = self.median_of(2, lambda: self.caption(images, new_tokens))
        rates = {n: n / self.median_of(2, lambda n=n: self.caption_llava(n, new_tokens)) for n in self.size.batches}
        best = max(rates, key=lambda n: rates[n])
        yield {"figure": "captions", "new_tokens": new_tokens, "images_s": len(images) / ours,
               "llava_15_images_s": rates[best], "llava_15_batch": best,
               "ratio": len(images) / ours / rates[best]}  # fmt: skip

    def questions(self) -> Iterator[Fields]:
        """Questions about one video: what the further ones cost."""
        one = 0.0
        for count in self.size.questions:
            taken = self.median_of(1, lambda count=count: self.video(self.size.frames, count, self.size.new_tokens))
            one = one or taken
            yield {
                "figure": "questions",
                "frames": self.size.frames,
                "questions": count,
                "s": taken,
                "of_one": taken / one,
            }

    def long_video(self) -> Iterator[Fields]:
        """A very long video: seconds, and the memory beside the weights."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        self.video(self.size.long_frames, 1, 16)
        self.wait()
        fields: Fields = {"figure": "long video", "frames": self.size.long_frames, "s": time.perf_counter() - began}
        if self.device.type == "cuda":
            fields["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        yield fields

    def kernels(self) -> Iterator[Fields]:
        """What takes the time: the fifteen costliest kernels of each phase by way of attention, and those of attention.

        The ways are that which the engine takes, each other one for all of it, and a step whose caches are not joined.
        """
        pack = pack_prompts([CountedPrompts(self.config.vocab_size).question_ids(str(number)) for number in range(4)])
        chunk = max(self.size.chunks)
        pixels = self.pixels(chunk)
        rows = max(self.size.rows[:-1])
        batch, tokens = self.decoding(rows)
        apart = [self.decoding(part)[0] for part in [max(1, rows // 4)] * min(4, rows)]
        several = self.prefilled(self.item(self.size.frames, 16))
        works: dict[str, Callable[[], Any]] = {
            "encode": lambda: encode(self.model.model, pixels, [pack] * chunk),
            "prefill": lambda: prefill(self.model, [self.item(self.size.frames, 16)]),
            "step": lambda: decode(self.model, [batch], tokens),
            "step of 16 questions": lambda: decode(self.model, [several], tokens.new_ones(16)),
        }
        for name, work in works.items():
            yield self.profiled(name, "chosen", work)
        yield self.profiled("step", "caches not joined", lambda: decode(self.model, apart, tokens))
        for kernel in (attention.efficient, attention.plain) if self.device.type == "cuda" else (attention.plain,):
            with patch.object(attention, "kernel_for", return_value=kernel):
                for name, work in works.items():
                    yield self.profiled(name, kernel.__name__, work)

    def profiled(self, phase: str, way: str, work: Callable[[], Any]) -> Fields:
        """The costliest kernels of some work."""
        from torch.profiler import ProfilerActivity, profile

        on_cuda = self.device.type == "cuda"
        taken = self.median_of(1, work)
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as seen:
            work()
            self.wait()
        spent = {
            event.key[:90]: float(event.self_device_time_total if on_cuda else event.self_cpu_time_total)
            for event in seen.key_averages()
        }
        whole = sum(spent.values()) or 1.0
        top = sorted(spent.items(), key=lambda one: -one[1])
        named = [key for key, _ in top if any(word in key.lower() for word in ("flash", "attention", "fmha"))]
        return {"figure": "kernels", "phase": phase, "way": way, "ms": 1e3 * taken, "kernels_ms": whole / 1e3,
                "attention": named, "top": [[key, us / whole] for key, us in top[:15]]}  # fmt: skip

    def compiled(self) -> Iterator[Fields]:
        """--compile: the same step with its dense parts compiled."""
        dense = compile_dense(self.model)
        for rows in self.size.rows[:2]:
            batch, tokens = self.decoding(rows)
            plain = self.median(lambda batch=batch, tokens=tokens: decode(self.model, [batch], tokens, EAGER))
            quick = self.median(lambda batch=batch, tokens=tokens: decode(self.model, [batch], tokens, dense))
            yield {"figure": "--compile", "rows": rows, "ms": 1e3 * quick, "plain_ms": 1e3 * plain}

    def quantised(self, kind: Quantization) -> Iterator[Fields]:
        """--quantize: a step with the weights in fewer bits. It changes the model, so it comes late."""
        try:
            if self.device.type == "cpu":
                check_packing(kind)
            elif importlib.util.find_spec("torchao") is None:
                raise UsageError("torchao is not installed")
        except UsageError as error:
            yield {"figure": f"--quantize {kind}", "left_out": str(error)}
            return
        self.forget()
        quantize(self.model, kind)
        for rows in self.size.rows:
            batch, tokens = self.decoding(rows)
            taken = self.median(lambda batch=batch, tokens=tokens: decode(self.model, [batch], tokens))
            yield {"figure": f"--quantize {kind}", "rows": rows, "ms": 1e3 * taken}
        self.forget()

    def forget(self) -> None:
        """Gives the model back, and with it the peer that shares its weights."""
        self.__dict__.pop("model", None)
        self.__dict__.pop("llava", None)

    # What they are made of

    def median_of(self, rounds: int, work: Callable[[], Any]) -> float:
        """Seconds, of so many goes after one that does not count."""
        work()
        taken: list[float] = []
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def host_time(self, work: Callable[[], Any]) -> float:
        """Seconds until the work is queued, the device not waited for."""
        self.wait()
        began = time.perf_counter()
        work()
        host = time.perf_counter() - began
        self.wait()
        return host

    def step_bytes(self) -> int:
        """The weights that a step reads: the language model's layers and the head."""
        parts = (self.model.model.layers, self.model.lm_head)
        return sum(parameter.nbytes for part in parts for parameter in part.parameters())

    def item(self, prefix: int, tails: int) -> PrefillItem:
        """A prefix of so many positions with questions behind it."""
        width = self.config.hidden_size
        return PrefillItem(self.random(prefix, width), tuple(self.random(20, width) for _ in range(tails)))

    def prefilled(self, *items: PrefillItem) -> DecodeBatch:
        """Media whose questions are being answered, all with as many."""
        cache, _ = prefill(self.model, items)
        return DecodeBatch(cache, torch.arange(cache.own_lengths.numel(), device=self.device))

    def decoding(self, rows: int) -> tuple[DecodeBatch, torch.Tensor]:
        """Rows that are being answered, each about its own image."""
        batch = self.prefilled(*(self.item(24, 1) for _ in range(rows)))
        return batch, torch.ones(rows, dtype=torch.int64, device=self.device)

    def images(self, count: int) -> np.ndarray:
        """Pictures, each another."""
        side = self.size.clip["image_size"]
        return np.random.default_rng(1).integers(0, 256, (count, side, side, 3)).astype(np.uint8)

    def caption(self, images: np.ndarray, new_tokens: int) -> None:
        """Every image answered through the engine."""
        from engine_doubles import ArrayFrames

        options = GenerationOptions(max_new_tokens=new_tokens)
        requests = [
            Request(str(n), "image", ArrayFrames(images[n : n + 1]), ("0",), options) for n in range(len(images))
        ]
        self.answered(requests)

    def video(self, frames: int, questions: int, new_tokens: int) -> None:
        """Some questions about one video through the engine."""
        source = RepeatedFrames(frames, self.size.clip["image_size"])
        prompts = tuple(map(str, range(questions)))
        self.answered([Request("v", "video", source, prompts, GenerationOptions(max_new_tokens=new_tokens))])

    def answered(self, requests: list[Request]) -> None:
        """Raises where anything failed."""
        for outcome in self.engine().run(requests):
            if not isinstance(outcome, Answer):
                raise RuntimeError(outcome.message)

    def caption_llava(self, count: int, new_tokens: int) -> None:
        """The same prompt about so many images through LLaVA-1.5, as one batch."""
        llava = self.llava
        patches = self.config.patch_grid**2
        ids = torch.tensor([[*range(1, 24), *[llava.config.image_token_index] * patches, *range(30, 50)]])
        ids = ids.expand(count, -1).to(self.device)
        llava.generate(
            input_ids=ids,
            pixel_values=self.pixels(count)[:, 0],
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
