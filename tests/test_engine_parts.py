"""Prefill, decoding and pre-fusion attend in parts: what comes out is what one pass over each prompt alone gives."""

from functools import cache
from typing import Any

import pytest
import torch
from tiny_checkpoints import tiny_config

from llava_mini_cli.engine.encode import encode_features
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.llm import generate
from llava_mini_cli.engine.llm.generate import DecodeBatch, decode, prefill
from llava_mini_cli.engine.llm.kv_cache import RowCache, alike, join
from llava_mini_cli.engine.pack import NO_PROMPTS, TextPack, pack_prompts
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prefusion import prefuse
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID

WIDTH = 64
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


@cache
def model(heads: int = 4, kv_heads: int = 2) -> LlavaMiniForConditionalGeneration:
    torch.manual_seed(0)
    config = tiny_config(num_attention_heads=heads, num_key_value_heads=kv_heads, num_hidden_layers=2)
    config._attn_implementation = "sdpa"
    return LlavaMiniForConditionalGeneration(config).eval()


def item(prefix: int, *tails: int) -> PrefillItem:
    return PrefillItem(torch.randn(prefix, WIDTH), tuple(torch.randn(tail, WIDTH) for tail in tails))


@torch.inference_mode()
def alone(made: LlavaMiniForConditionalGeneration, prefix: torch.Tensor, *behind: torch.Tensor) -> torch.Tensor:
    """The scores `[vocab]` behind a sequence, by one plain pass over it."""
    return made(inputs_embeds=torch.cat([prefix, *behind])[None]).logits[0, -1]


def check(made: LlavaMiniForConditionalGeneration, items: list[PrefillItem], steps: int = 2, most: int = 6) -> RowCache:
    """Prefill and some steps of all rows against plain passes over some of them; the cache."""
    held, logits = prefill(made, items)
    rows = [(n, slot) for n, one in enumerate(items) for slot in range(len(one.tails))]
    index = torch.tensor([n * held.rows_per_medium + slot for n, slot in rows])
    looked_at = rows[:: max(1, len(rows) // most)] + rows[-1:]
    said: list[torch.Tensor] = []
    for step in range(steps + 1):
        for row in looked_at:
            one = items[row[0]]
            own = [made.model.embed_tokens(tokens[rows.index(row)][None]) for tokens in said]
            wanted = alone(made, one.prefix, one.tails[row[1]], *own)
            found = logits[index[rows.index(row)]] if step == 0 else logits[rows.index(row)]
            torch.testing.assert_close(found, wanted, **CLOSE)
        said.append(torch.randint(0, 250, (len(rows),)))
        logits = decode(made, [DecodeBatch(held, index)], said[-1])
    return held


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 1), (4, 4), (8, 1), (8, 8), (16, 2)])
def test_grouped_heads(heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    check(model(heads, kv_heads), [item(5, 3, 2), item(7, 1)])
    check(model(heads, kv_heads), [item(5, 3), item(7, 1)])


@pytest.mark.parametrize("questions", [1, 2, 16, 300])
def test_questions_about_a_medium(questions: int) -> None:
    torch.manual_seed(1)
    held = check(model(), [item(9, *(1 + number % 7 for number in range(questions)))])
    assert held.widest[0] == (9 if questions > 1 else 0)  # a single question has its prefix to itself


@pytest.mark.parametrize("frames", [1, 700, 3000])
@pytest.mark.parametrize("questions", [1, 3])
def test_short_and_long_prefixes(monkeypatch: pytest.MonkeyPatch, frames: int, questions: int) -> None:
    monkeypatch.setattr(generate, "PREFILL_POSITIONS", 512)
    torch.manual_seed(2)
    check(model(), [item(frames, *[4] * questions)], steps=1, most=1)


@pytest.mark.parametrize("tails", [((2,), (30,), (1,)), ((2, 3), (30,), (1, 1, 1))])
@pytest.mark.parametrize("positions", [8, 2048])
def test_prefixes_of_unequal_length_together(
    monkeypatch: pytest.MonkeyPatch, tails: tuple[tuple[int, ...], ...], positions: int
) -> None:
    """Some of which have none at all, and some end in a stretch before the last."""
    monkeypatch.setattr(generate, "PREFILL_POSITIONS", positions)
    torch.manual_seed(3)
    check(model(), [item(length, *tail) for length, tail in zip((17, 0, 40), tails, strict=True)])


@pytest.mark.parametrize("tails", [(4,), (2, 5)])
def test_caches_that_are_joined_go_on_as_they_were(tails: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    made = model()
    batches = [[item(11, *tails), item(9, *tails)], [item(12, *tails)], [item(10, *tails)]]
    caches = [prefill(made, batch)[0] for batch in batches]
    decode(made, [DecodeBatch(caches[0], torch.arange(2 * len(tails)))], torch.arange(2 * len(tails)))  # one is ahead
    rows = [torch.arange(one.own_lengths.numel()) for one in caches]
    tokens = [torch.randint(0, 250, (sum(map(len, rows)),)) for _ in range(3)]
    apart = [one.part(slice(0, len(one.own_lengths))) for one in caches]
    for one in apart:  # tensors of their own
        for part in (one.own_keys, one.own_values):
            part[:] = [tensor.clone() for tensor in part]
    assert alike(apart) == []
    assert alike(caches) == caches
    joined = join(caches)
    assert joined.nbytes == sum(one.nbytes for one in caches)
    assert caches[1].own_keys[0].data_ptr() != joined.own_keys[0].data_ptr()
    for some in tokens:
        wanted = decode(made, [DecodeBatch(*pair) for pair in zip(apart, rows, strict=True)], some)
        found = decode(made, [DecodeBatch(joined, torch.arange(len(some)))], some)
        torch.testing.assert_close(found, wanted, **CLOSE)


def test_caches_that_would_need_much_padding_stay_as_they_are() -> None:
    made = model()
    short, long, several = ([item(30, 2)], [item(300, 2)], [item(30, 2, 2)])
    caches = [prefill(made, items)[0] for items in (short, long, several, several, short)]
    assert alike(caches) == [caches[0], caches[4]]
    assert alike(caches[1:4]) == caches[2:4]
    assert alike(caches[1:3]) == []


def test_memory_that_runs_out_while_caches_are_joined_leaves_them_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    caches = [prefill(made, [item(length, 2)])[0] for length in (30, 31)]
    before = [[tensor.clone() for tensor in (*one.own_keys, *one.own_values)] for one in caches]
    real, calls = torch.cat, iter(range(99))

    def short(*given: Any, **more: Any) -> torch.Tensor:
        if next(calls) == 5:
            raise torch.OutOfMemoryError("too much")
        return real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "cat", short)
        with pytest.raises(torch.OutOfMemoryError):
            join(caches)
    for one, tensors in zip(caches, before, strict=True):
        for now, then in zip((*one.own_keys, *one.own_values), tensors, strict=True):
            assert torch.equal(now[:, :, : then.shape[2]], then)
    join(caches)


IMAGE = IMAGE_TOKEN_ID
PACKS = {
    "one question": [[5, 6, IMAGE, 7, 8, 9]],
    "token 0 within": [[5, 0, 6, IMAGE, 0, 7, 0]],
    "nothing before": [[IMAGE, 7]],
    "three questions": [[5, 6, IMAGE, 7, 8, 9], [5, 6, IMAGE, 10], [5, 6, IMAGE, 0, 12]],
    "two groups": [[5, 6, IMAGE, 7], [8, IMAGE, 9, 10], [5, 6, IMAGE, 11]],
    "one long among short": [[5, 6, IMAGE, *range(7, 90)], *([5, 6, IMAGE, 7, 8 + number] for number in range(9))],
    "many questions": [[5, 6, IMAGE, *range(7 + number, 10 + number % 5 + number)] for number in range(100)],
}


@torch.inference_mode()
def check_fused(packs: list[TextPack], prompts: list[list[list[int]]], kv_heads: int = 2) -> None:
    """Frames with their packs against a plain pass over each frame and prompt."""
    made: Any = model(8, kv_heads).model
    torch.manual_seed(5)
    features = torch.randn(len(packs), 1, 64, WIDTH)
    encoded = encode_features(made, features, packs)
    for frame, (pack, asked) in enumerate(zip(packs, prompts, strict=True)):
        sequence = made.project_vision(features[frame : frame + 1]).sequence()
        for group in pack.groups:
            for number, tail in zip(group.prompts, group.tails, strict=True):
                ids = torch.tensor([asked[number]])
                vision, wanted = prefuse(made.prefusion_layers, made.rotary_emb, sequence, made.embed_text(ids), ids)
                parts = (pack.segments[part] for part in (group.shared, tail))
                found = torch.cat([encoded.fused[frame, part.start : part.stop] for part in parts])
                torch.testing.assert_close(found, wanted[0], **CLOSE)
                torch.testing.assert_close(encoded.tokens[frame], vision[0, -1:], **CLOSE)


@pytest.mark.parametrize("name", PACKS)
def test_packed_text_in_pre_fusion(name: str) -> None:
    check_fused([pack_prompts(PACKS[name])] * 2, [PACKS[name]] * 2)


@pytest.mark.parametrize("kv_heads", [1, 4, 8])
def test_packed_text_with_grouped_heads(kv_heads: int) -> None:
    for name in ("one question", "three questions"):
        check_fused([pack_prompts(PACKS[name])], [PACKS[name]], kv_heads)


@pytest.mark.parametrize(
    "names", [("one question", "nothing before"), ("one question", "two groups", "many questions")]
)
def test_frames_with_packs_of_their_own(names: tuple[str, ...]) -> None:
    prompts = [PACKS[name] for name in names]
    check_fused([*map(pack_prompts, prompts), NO_PROMPTS], [*prompts, []])


def test_no_text_at_all() -> None:
    check_fused([NO_PROMPTS], [[]])
    made: Any = model(8, 2).model
    features = torch.randn(1, 1, 64, WIDTH)
    bare = encode_features(made, features, [NO_PROMPTS])
    asked = encode_features(made, features, [pack_prompts(PACKS["one question"])])
    assert bare.fused.shape == (1, 0, WIDTH)
    torch.testing.assert_close(bare.tokens, asked.tokens, **CLOSE)
