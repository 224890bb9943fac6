"""The time that a model's work takes beside its products with weights: the engine itself, products left out.

A model without its linear layers' weights fits any machine, and made of a configuration alone it needs no checkpoint.
Everything else is there and is really computed: attention, norms, rotations, keys and values, and Python itself.
Requests go through an engine around it (`timed_engine.py`); of a model with many layers, of which a few are made, the
engine's functions by themselves tell what the others add. A small model keeps its products: one of its size takes no
time that could be told from the call.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.engine.encode import encode_features
from llava_mini_cli.engine.flops import tower_layers
from llava_mini_cli.engine.llm.generate import DecodeBatch, PrefillItem, decode, prefill
from llava_mini_cli.engine.pack import pack_prompts
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear
from llava_mini_cli.engine.timed_engine import Texts, TimedEngine
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID

VALUE = 0.01  # of every weight and pixel
SMALL_VOCABULARY = 512  # of a model that is made without its products
LEAST_CONTEXT = 1024  # positions, so that whatever is timed fits
CUT_LAYERS = 4  # of its tower and of its language model; all of them take as long as these in proportion
BUDGET = 0.3  # seconds for measuring one piece of work, which is done at least twice
LONG_S = 1.0  # unless it takes so many seconds
MOST_TIMES = 20


class LeftOut(nn.Module):
    """A linear layer without weights: a result of the right shape, and nothing multiplied."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, of no particular value."""
        return input.new_empty(*input.shape[:-1], self.out_features)


class LeftOutHead(LeftOut):
    """A head without weights, which says the first token every time."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., hidden]` to `[..., vocabulary]`."""
        return input.new_zeros(*input.shape[:-1], self.out_features)


def stand_in(
    config: LlavaMiniConfig, kind: WeightFormat, rest: WeightFormat, *, products: bool
) -> LlavaMiniForConditionalGeneration:
    """A model of a configuration's shapes on the CPU, every weight the same number.

    Args:
        kind: of the linear layers' weights.
        rest: of everything else, where these are held in fewer bits.
        products: the linear layers are there; otherwise they are left out, and all but a few layers are, too.
    """
    fields = {**config.to_dict(), "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    fields["max_position_embeddings"] = max(config.max_position_embeddings, LEAST_CONTEXT)
    if not products:
        fields["vocab_size"] = min(config.vocab_size, SMALL_VOCABULARY)
        fields["num_hidden_layers"] = min(config.num_hidden_layers, CUT_LAYERS)
        layers = min(tower_layers(config), CUT_LAYERS)
        fields["vision_config"] = {**config.vision.to_dict(), "num_hidden_layers": layers}
        fields["mm_vision_select_layer"] = layers
    made = LlavaMiniConfig.from_fields(fields)
    made._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
    with torch.device("meta"):
        model = LlavaMiniForConditionalGeneration(made).eval()
    if not products:
        _replace(model, lambda layer: LeftOut(layer.out_features))
        model.lm_head = LeftOutHead(config.vocab_size)  # pyright: ignore[reportAttributeAccessIssue]
    packed = {"int8": Int8Linear, "int4": Int4Linear}.get(kind)
    dtype = getattr(torch, kind if packed is None else rest)
    for name, parameter in list(model.named_parameters()):
        owner, _, own = name.rpartition(".")
        number = torch.float32 if own == "pos_embed" else dtype
        filled = torch.full(parameter.shape, VALUE, dtype=number)
        setattr(model.get_submodule(owner), own, nn.Parameter(filled, requires_grad=False))
    model.model.rotary_emb = LlamaRotaryEmbedding(made)
    embeddings = model.model.vision_tower.vision_tower.embeddings
    embeddings.position_ids = torch.arange(made.patch_grid**2 + 1)[None]  # pyright: ignore[reportAttributeAccessIssue]
    if packed is not None:
        _replace(model, lambda layer: packed.from_weight(layer.weight, layer.bias))
    return model


def _replace(module: nn.Module, made: Callable[[nn.Linear], nn.Module]) -> None:
    """Puts something else in place of every plain linear layer; attention that reads its layers' weights keeps them."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, made(child))
        elif not isinstance(child, nn.MultiheadAttention):
            _replace(child, made)


class Pieces:
    """Pieces of the engine's work with a model, each measured once and by itself, in seconds of the whole model."""

    def __init__(
        self,
        config: LlavaMiniConfig,
        kind: WeightFormat,
        rest: WeightFormat,
        texts: Texts,
        processor: LlavaMiniProcessor,
        prompts: Any,
        *,
        products: bool,
    ) -> None:
        """Args: as for `stand_in` and `TimedEngine`."""
        self._model = stand_in(config, kind, rest, products=products)
        made = self._model.config
        self._texts = texts
        self._engine = TimedEngine(self._model, processor, prompts, texts)
        self._known: dict[tuple[str, int, int], float] = {}
        self._towers_more = tower_layers(config) / max(1, tower_layers(made)) - 1
        self._layers_more = config.num_hidden_layers / made.num_hidden_layers - 1

    def _measured(self, name: str, size: int, questions: int, work: Callable[[], object], scale: float = 1.0) -> float:
        key = name, size, questions
        if key not in self._known:
            with torch.inference_mode():
                self._known[key] = scale * _least(work)
        return self._known[key]

    def request(self, frames: int, questions: int, tokens: int) -> float:
        """A request about a picture (one frame) or a video, each question with an answer of so many tokens."""
        taken = self._engine.seconds(frames, questions, tokens)
        if self._towers_more:
            taken += self._towers_more * self._see(frames)
        if self._layers_more:
            positions = self._texts.shared - 1 + frames * self._model.config.vision_tokens_per_frame
            layers = self.prefill(positions, questions) / (1 + self._layers_more)
            layers += (tokens - 1) * self._step(positions, questions) if tokens > 1 else 0.0
            taken += self._layers_more * layers
        return taken

    def _see(self, frames: int) -> float:
        """Frames at once through the layers of the vision tower that were made."""
        config, dtype = self._model.config, self._model.dtype
        size = config.vision.image_size
        assert isinstance(size, int)
        pixels = torch.full((frames * config.parts_per_frame, 3, size, size), VALUE, dtype=dtype)
        return self._measured("see", frames, 0, partial(self._model.model.vision_tower, pixels))

    def fuse(self, frames: int, questions: int) -> float:
        """Features of frames at once, each with some questions, through everything in front of the language model."""
        config, texts = self._model.config, self._texts
        size = (frames, config.parts_per_frame, config.patch_grid**2, config.mm_hidden_size)
        features = torch.full(size, VALUE, dtype=self._model.dtype)
        ids = range(1, config.vocab_size)
        prompts = [
            [*_some(ids, 0, texts.shared), IMAGE_TOKEN_ID, *_some(ids, number, texts.tail)]
            for number in range(questions)
        ]
        pack = pack_prompts(prompts)
        work = partial(encode_features, self._model.model, features, [pack] * frames)
        return self._measured("fuse", frames, questions, work)

    def prefill(self, positions: int, questions: int) -> float:
        """The prefix of one medium, so many positions, and the questions about it, through all layers."""
        work = partial(prefill, self._model, [self._item(positions, questions)])
        return self._measured("prefill", positions, questions, work, 1 + self._layers_more)

    def _step(self, positions: int, rows: int) -> float:
        """One token for each of some answers about one medium, through the layers that were made."""
        cache, _ = prefill(self._model, [self._item(positions, rows)])
        batch, tokens = DecodeBatch(cache, torch.arange(rows)), torch.ones(rows, dtype=torch.int64)
        return self._measured("step", positions, rows, partial(decode, self._model, [batch], tokens))

    def _item(self, positions: int, questions: int) -> PrefillItem:
        width, dtype = self._model.config.hidden_size, self._model.dtype
        tail = torch.full((self._texts.tail, width), VALUE, dtype=dtype)
        return PrefillItem(torch.full((positions, width), VALUE, dtype=dtype), (tail,) * questions)


def _some(ids: range, number: int, count: int) -> Sequence[int]:
    """Token ids of one prompt that differ from another's."""
    return [ids[(37 * number + place) % len(ids)] for place in range(count)]


def _least(work: Callable[[], object]) -> float:
    """The least seconds of a few times. The first, which finds nothing ready, counts only where it takes long."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < MOST_TIMES and (len(times) < 2 or time.perf_counter() - began < BUDGET):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
        if times[0] > LONG_S:
            break
    return min(times)
