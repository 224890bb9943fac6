"""The tensors that a configuration asks for, by name, without making a module of it.

Names are those of our own module tree; a test compares them with it.
"""

from collections.abc import Iterator

from transformers import CLIPTextConfig, CLIPVisionConfig

from llava_mini_cli.model.configuration import LlavaMiniConfig

Shape = tuple[int, ...]
TOWER_MODULE = "model.vision_tower.vision_tower."  # where the tower sits in our module tree


def model_shapes(config: LlavaMiniConfig) -> dict[str, Shape]:
    """Every tensor of a whole model, the vision tower's included."""
    width, vocabulary = config.hidden_size, config.vocab_size
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocabulary, width)}
    for name, count in (("layers", config.num_hidden_layers), ("prefusion_layers", config.prefusion_layer_num)):
        for index in range(count):
            shapes |= {f"model.{name}.{index}.{key}": shape for key, shape in _llama_layer(config)}
    shapes["model.norm.weight"] = (width,)
    shapes |= {f"{TOWER_MODULE}{key}": shape for key, shape in vision_shapes(config.vision).items()}
    shapes |= {f"model.compressor.{key}": shape for key, shape in _compressor(config)}
    shapes |= {f"model.mm_projector.{key}": shape for key, shape in _projector(config)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def vision_shapes(config: CLIPVisionConfig) -> dict[str, Shape]:
    """Every tensor of CLIP's vision half, without the prefix that files have."""
    width, patch = config.hidden_size, config.patch_size
    size = config.image_size
    assert isinstance(size, int)
    assert isinstance(patch, int)
    shapes: dict[str, Shape] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, config.num_channels, patch, patch),
        "embeddings.position_embedding.weight": ((size // patch) ** 2 + 1, width),
        **dict(_norm("pre_layrnorm", width)),
        **dict(_norm("post_layernorm", width)),
    }
    return shapes | _clip_layers(config)


def text_shapes(config: CLIPTextConfig) -> dict[str, Shape]:
    """Every tensor of CLIP's text half, without the prefix that files have."""
    width = config.hidden_size
    return {
        "embeddings.token_embedding.weight": (config.vocab_size, width),
        "embeddings.position_embedding.weight": (config.max_position_embeddings, width),
        **dict(_norm("final_layer_norm", width)),
    } | _clip_layers(config)


def _llama_layer(config: LlavaMiniConfig) -> Iterator[tuple[str, Shape]]:
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    head = config.head_dim or width // heads
    queries, keys = heads * head, (config.num_key_value_heads or heads) * head
    for name, out, into in (
        ("q_proj", queries, width),
        ("k_proj", keys, width),
        ("v_proj", keys, width),
        ("o_proj", width, queries),
    ):
        yield from _linear(f"self_attn.{name}", out, into, bias=config.attention_bias)
    for name, out, into in (("gate_proj", inner, width), ("up_proj", inner, width), ("down_proj", width, inner)):
        yield from _linear(f"mlp.{name}", out, into, bias=config.mlp_bias)
    yield "input_layernorm.weight", (width,)
    yield "post_attention_layernorm.weight", (width,)


def _clip_layers(config: CLIPVisionConfig | CLIPTextConfig) -> dict[str, Shape]:
    width, inner = config.hidden_size, config.intermediate_size
    layer: list[tuple[str, Shape]] = [*_norm("layer_norm1", width), *_norm("layer_norm2", width)]
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer += _linear(f"self_attn.{name}", width, width)
    layer += [*_linear("mlp.fc1", inner, width), *_linear("mlp.fc2", width, inner)]
    return {f"encoder.layers.{index}.{key}": shape for index in range(config.num_hidden_layers) for key, shape in layer}


def _compressor(config: LlavaMiniConfig) -> Iterator[tuple[str, Shape]]:
    if config.compressor_type == "average":
        return
    width, queries = config.mm_hidden_size, config.vision_tokens_per_frame
    yield "pos_embed", (queries, width)
    yield "query", (queries, width)
    yield "attn.in_proj_weight", (3 * width, width)
    yield "attn.in_proj_bias", (3 * width,)
    yield from _linear("attn.out_proj", width, width)
    yield from _norm("ln_q", width)
    yield from _norm("ln_kv", width)


def _projector(config: LlavaMiniConfig) -> Iterator[tuple[str, Shape]]:
    width, into = config.hidden_size, config.mm_hidden_size
    if config.mm_projector_type == "linear":
        yield from (("weight", (width, into)), ("bias", (width,)))
        return
    depth = int(config.mm_projector_type.removeprefix("mlp").removesuffix("x_gelu"))
    for number in range(depth):
        yield from _linear(str(2 * number), width, width if number else into)


def _linear(name: str, out: int, into: int, *, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, into)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
