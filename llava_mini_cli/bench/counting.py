"""FLOPs by component, counted by torch on models without numbers; what a medium's frames keep in memory.

The counter takes a product of [m, k] and [k, n] as 2 * m * k * n, and attention without regard to the mask. Plain is
every layer for every position, as the reference does it; the engine leaves out what nobody reads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_mini_cli.bench.made_models import AFTER, BEFORE, CountedPrompts, meta_llava, meta_model
from llava_mini_cli.bench.paper import COMPONENTS
from llava_mini_cli.engine.encode import encode_features
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm.generate import prefill
from llava_mini_cli.engine.pack import TextPack, pack_prompts
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.prefusion import prefuse

TEXT = BEFORE + AFTER
TERA = 1e12

Components = dict[str, float]  # T operations by COMPONENTS, and of all of them "products": without attention
_OF_WEIGHTS = ("mm", "addmm", "convolution")  # torch's operators of products with weights; attention has others


@dataclass(frozen=True)
class Flops:
    """The FLOPs of some work."""

    whole: int
    products: int  # with weights; the rest is attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.whole + other.whole, self.products + other.products)

    def __mul__(self, times: int) -> "Flops":
        return Flops(self.whole * times, self.products * times)

    def __sub__(self, other: "Flops") -> "Flops":
        return self + other * -1


NOTHING = Flops(0, 0)


def flops(work: Callable[[], object]) -> Flops:
    """The FLOPs of some work on tensors that hold no numbers."""
    counter = FlopCounterMode(display=False)
    with counter, torch.device("meta"), torch.inference_mode():
        work()
    by_operator = {str(name): count for name, count in counter.get_flop_counts().get("Global", {}).items()}
    products = sum(count for name, count in by_operator.items() if name.rpartition(".")[2] in _OF_WEIGHTS)
    return Flops(sum(by_operator.values()), products)


class Projection(NamedTuple):
    """What is between the vision tower and the text."""

    projected: Flops
    compressed: Flops
    positions: int  # that come out: patches and vision tokens


class FlopCounts:
    """FLOPs of models that have a vision tower and a language model in common, and differ in what is between them.

    Layers of the language model are all alike: one and two of them are counted, which tells all.
    """

    def __init__(self, config: LlavaMiniConfig) -> None:
        self._config = config
        self._projections: dict[frozenset[tuple[str, int]], Projection] = {}

    def with_fields(self, **fields: int) -> LlavaMiniConfig:
        """The configuration with other values of some fields."""
        return LlavaMiniConfig.from_fields({**self._config.to_dict(), **fields})

    def plain(self, **fields: int) -> Components:
        """One image and one question, nothing left out: all of CLIP, and every position of every layer.

        Args:
            fields: of the configuration that are other than the model's.
        """
        config = self.with_fields(**fields)
        made = _of_two_layers(config)
        model: Any = made.model
        features = _features(config, config.parts_per_frame)[None]
        ids = torch.zeros(1, TEXT, dtype=torch.int64, device="meta")
        whole = _positions(config, TEXT + config.vision_tokens_per_frame)
        projection = self._projection(model, features, fields)
        sequence = _positions(config, projection.positions)
        with torch.device("meta"), torch.inference_mode():
            text = model.embed_text(ids)
        return _components(
            self._whole_tower * config.parts_per_frame,
            projection.projected,
            projection.compressed,
            flops(lambda: prefuse(model.prefusion_layers, model.rotary_emb, sequence, text, ids)),
            _of_depth(config.num_hidden_layers, model, lambda: made(inputs_embeds=whole)),
        )

    def engine(self, questions: int = 1, **fields: int) -> Components:
        """One image and some questions of AFTER tokens as the engine computes them."""
        config = self.with_fields(**fields)
        made = _of_two_layers(config)
        model: Any = made.model
        prompts = CountedPrompts(config.vocab_size)
        pack = pack_prompts([prompts.question_ids(str(number)) for number in range(questions)])
        features = _features(config, config.parts_per_frame)[None]
        projected, compressed, _ = self._projection(model, features, fields)
        fused = flops(lambda: encode_features(model, features, [pack])) - projected - compressed
        prefix, *tails = (_positions(config, length)[0] for length in prefill_lengths(pack, config, frames=1))
        item = PrefillItem(prefix, tuple(tails))
        return _components(
            self._engine_tower * config.parts_per_frame,
            projected,
            compressed,
            fused,
            _of_depth(config.num_hidden_layers, model, lambda: prefill(made, [item])),
        )

    def llava(self, **fields: int) -> Components:
        """One image and one question through transformers' LLaVA-1.5, pieces of a large image included."""
        config = self.with_fields(**fields)
        parts, patches = config.parts_per_frame, config.patch_grid**2
        llava: Any = meta_llava(_of_layers(config, 2))
        model = llava.model.language_model
        features, whole = _features(config, parts), _positions(config, parts * patches + TEXT)
        return _components(
            self._whole_tower * parts,
            flops(lambda: llava.model.multi_modal_projector(features)),
            NOTHING,
            NOTHING,
            _of_depth(
                config.num_hidden_layers, model, lambda: llava.lm_head(model(inputs_embeds=whole).last_hidden_state)
            ),
        )

    def _projection(self, model: Any, features: torch.Tensor, fields: Mapping[str, int]) -> Projection:
        """The projector and the compressor before it, counted once: torch works out long what resizing would be."""
        key = frozenset(fields.items())
        if key not in self._projections:
            lengths: list[int] = []
            whole = flops(lambda: lengths.append(model.project_vision(features).sequence().shape[1]))
            projected = flops(lambda: model.mm_projector(features.new_empty(1, lengths[0], features.shape[-1])))
            self._projections[key] = Projection(projected, whole - projected, lengths[0])
        return self._projections[key]

    @cached_property
    def _whole_tower(self) -> Flops:
        """A picture through all of CLIP's layers."""
        tower = _of_two_layers(self._config).model.vision_tower.vision_tower
        return flops(lambda: tower(_pixels(self._config)))

    @cached_property
    def _engine_tower(self) -> Flops:
        """A picture through the layers that are read."""
        tower = _of_two_layers(self._config).model.vision_tower
        return flops(lambda: tower(_pixels(self._config)))


def prefill_lengths(pack: TextPack, config: LlavaMiniConfig, frames: int) -> list[int]:
    """Positions that the language model reads of a medium: its prefix, then the rest of each question."""
    (group,) = pack.groups
    shared, *tails = (pack.segments[number] for number in (group.shared, *group.tails))
    before = shared.stop - shared.start - 1  # the last is where the frames go
    return [before + frames * config.vision_tokens_per_frame, *(tail.stop - tail.start for tail in tails)]


def _of_layers(config: LlavaMiniConfig, depth: int) -> LlavaMiniConfig:
    return LlavaMiniConfig.from_fields({**config.to_dict(), "num_hidden_layers": depth})


def _of_two_layers(config: LlavaMiniConfig) -> Any:
    """A model whose language model has two layers."""
    return meta_model(_of_layers(config, 2))


def _of_depth(depth: int, model: Any, work: Callable[[], object]) -> Flops:
    """FLOPs of what a language model of two layers does, as one of some other depth does it."""
    two = flops(work)
    model.layers, model.config.num_hidden_layers = model.layers[:1], 1
    one = flops(work)
    return one + (two - one) * (depth - 1)


def _pixels(config: LlavaMiniConfig) -> torch.Tensor:
    size = config.vision.image_size
    assert isinstance(size, int)
    return torch.zeros(1, 3, size, size, device="meta")


def _features(config: LlavaMiniConfig, pictures: int) -> torch.Tensor:
    return torch.zeros(pictures, config.patch_grid**2, config.mm_hidden_size, device="meta")


def _positions(config: LlavaMiniConfig, count: int) -> torch.Tensor:
    return torch.zeros(1, count, config.hidden_size, device="meta")


def _components(*counts: Flops) -> Components:
    whole = sum(counts, NOTHING)
    found = {name: count.whole / TERA for name, count in zip(COMPONENTS, (*counts, whole), strict=True)}
    return {**found, "products": whole.products / TERA}


def position_bytes(config: LlavaMiniConfig, number_bytes: int) -> int:
    """Bytes that one position keeps in the language model: keys and values of all layers."""
    heads, width = config.num_attention_heads, config.hidden_size
    head = config.head_dim or width // heads
    return 2 * config.num_hidden_layers * (config.num_key_value_heads or heads) * head * number_bytes


def frame_bytes(config: LlavaMiniConfig, number_bytes: int) -> int:
    """Bytes that one frame keeps: its tokens, and their keys and values."""
    each = position_bytes(config, number_bytes) + config.hidden_size * number_bytes
    return config.vision_tokens_per_frame * each


def llava_frame_bytes(config: LlavaMiniConfig, number_bytes: int) -> int:
    """Bytes that one frame keeps in LLaVA-1.5: the keys and values of all its patches."""
    return config.parts_per_frame * config.patch_grid**2 * position_bytes(config, number_bytes)
