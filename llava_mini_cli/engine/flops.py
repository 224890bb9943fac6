"""The products with weights that a piece of work takes, in closed form from a configuration. Knows no torch.

Attention is not among them: its share is small at the sizes that people ask about, and it is measured with the rest.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it brings transformers along
    from llava_mini_cli.model.configuration import LlavaMiniConfig


class WeightProduct(NamedTuple):
    """Some rows times a weight, several times with weights of one size."""

    rows: int
    elements: int  # of the weight
    times: int = 1
    is_packed: bool = True  # with `--quantize` on a CPU: of all linear layers but those inside the compressor

    @property
    def flops(self) -> int:
        """Multiplications and additions, counted as torch counts them."""
        return 2 * self.rows * self.elements * self.times


def tower(config: "LlavaMiniConfig", frames: int) -> list[WeightProduct]:
    """Pictures through CLIP up to the selected layer, those pieces that a frame is cut into included."""
    vision, pictures = config.vision, frames * config.parts_per_frame
    width, patches, layers = vision.hidden_size, config.patch_grid**2, tower_layers(config)
    pixels = vision.num_channels * _patch(config) ** 2
    embedded = WeightProduct(pictures * patches, width * pixels, is_packed=False)
    rows = pictures * (patches + 1)
    return [
        embedded,
        WeightProduct(rows, width * width, 4 * layers),
        WeightProduct(rows, width * vision.intermediate_size, 2 * layers),
    ]


def tower_layers(config: "LlavaMiniConfig") -> int:
    """Layers of CLIP that a picture goes through."""
    select = config.mm_vision_select_layer
    return select if select >= 0 else config.vision.num_hidden_layers + 1 + select


def compression(config: "LlavaMiniConfig", frames: int) -> list[WeightProduct]:
    """Patch features of frames to their vision tokens; none where they are averaged."""
    if config.compressor_type == "average":
        return []
    square, queries = config.mm_hidden_size**2, config.vision_tokens_per_frame * frames
    seen = frames * _compressed_patches(config)
    return [WeightProduct(rows, square, 2, is_packed=False) for rows in (queries, seen)]


def projection(config: "LlavaMiniConfig", frames: int) -> list[WeightProduct]:
    """Patch features and vision tokens to the language model's width."""
    rows = (patches_per_frame(config), config.vision_tokens_per_frame)
    name = config.mm_projector_type
    depth = 1 if name == "linear" else int(name.removeprefix("mlp").removesuffix("x_gelu"))
    width, into = config.hidden_size, config.mm_hidden_size
    first = [WeightProduct(frames * count, width * into) for count in rows]
    return first + [WeightProduct(frames * count, width * width, depth - 1) for count in rows if depth > 1]


def prefusion(config: "LlavaMiniConfig", frames: int, text: int) -> list[WeightProduct]:
    """Frames, each with `text` tokens behind its patches, through pre-fusion as the engine does it."""
    layers = config.prefusion_layer_num
    if not layers:
        return []
    keep = config.vision_tokens_per_frame + text
    rows = frames * (patches_per_frame(config) + keep)
    sizes = list(_sizes(config))
    last = [WeightProduct(rows if name in ("k_proj", "v_proj") else frames * keep, size) for name, size in sizes]
    return [*(WeightProduct(rows, size, layers - 1) for _, size in sizes if layers > 1), *last]


def language_model(config: "LlavaMiniConfig", rows: int, said: int) -> list[WeightProduct]:
    """Positions through all layers of the language model, and the head for the `said` of them that words come of."""
    layers = [WeightProduct(rows, size, config.num_hidden_layers) for _, size in _sizes(config)]
    return [*layers, WeightProduct(said, config.hidden_size * config.vocab_size)] if said else layers


def patches_per_frame(config: "LlavaMiniConfig") -> int:
    """Patch features of one frame that pre-fusion reads."""
    return config.parts_per_frame * _features(config)


def _features(config: "LlavaMiniConfig") -> int:
    """Features that the tower gives for one picture."""
    return config.patch_grid**2 + (config.mm_vision_select_feature == "cls_patch")


def _compressed_patches(config: "LlavaMiniConfig") -> int:
    """Features of one frame that the queries see: a whole picture's, or those of its pieces."""
    pieces = config.parts_per_frame - 1
    return (pieces or 1) * _features(config)


def _patch(config: "LlavaMiniConfig") -> int:
    size = config.vision.patch_size
    assert isinstance(size, int)
    return size


def _sizes(config: "LlavaMiniConfig") -> Iterator[tuple[str, int]]:
    """The weights of one Llama layer: name and number of elements."""
    width, heads = config.hidden_size, config.num_attention_heads
    head = config.head_dim or width // heads
    keys = (config.num_key_value_heads or heads) * head
    yield from (("q_proj", width * heads * head), ("k_proj", width * keys), ("v_proj", width * keys))
    yield "o_proj", width * heads * head
    yield from ((name, width * config.intermediate_size) for name in ("gate_proj", "up_proj", "down_proj"))
