"""Evidence is how likely an answer is on the medium without each part, whatever is asked beside it."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle, request
from tiny_checkpoints import write_tiny_checkpoint

from llava_mini_cli.config import MOST_PIECES, PIECES, EvidenceOptions, GenerationOptions, SamplingOptions
from llava_mini_cli.engine import explainer as explainer_module
from llava_mini_cli.engine import frame_encoder, left_out
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.language_model import PrefillItem
from llava_mini_cli.engine.left_out import patch_centres, picture_blocks
from llava_mini_cli.engine.llm.token_decoder import TokenDecoder
from llava_mini_cli.engine.request import Answer, Cut, Failure, Request, Window
from llava_mini_cli.media.clip import ClipInfo
from llava_mini_cli.model.compressor import AveragePool, QueryCompressor
from llava_mini_cli.model.prefusion import additive_mask, is_padding, text_positions
from llava_mini_cli.pieces import ArrayRaster, PieceLayout, pieces
from llava_mini_cli.pipelines.evidence import NO_EVIDENCE, EvenPieces, evidence_of, with_evidence

CLOSE = {"abs": 1e-4}
SIZE = (64, 48)  # of the doubles' frames


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


def every(seconds: float, stop: float) -> Cut:
    return EvenPieces(0.0, stop, 1.0, EvidenceOptions(1, every=seconds))


def explained(engine: Engine, *requests: Request) -> dict[Any, Any]:
    """The answers, each with its evidence, by request, window and prompt."""
    found = by_prompt(list(engine.run(requests)))
    assert all(isinstance(one, Answer) and one.evidence is not None for one in found.values()), found
    return found


def embedded(oracle: Oracle, pixels: np.ndarray | None, question: str, *, is_video: bool = False) -> torch.Tensor:
    """The prompt as the language model reads it, `[1, n, hidden]`, on the plain path; one frame is a picture."""
    if pixels is None:
        return oracle.model.model.embed_text(oracle.processor(text=question)["input_ids"])
    is_video = is_video or len(pixels) > 1
    batch = oracle.processor(text=question, **({"videos": pixels} if is_video else {"images": pixels[0]}))
    with torch.inference_mode():
        return oracle.model.prepare_embeddings(
            batch["input_ids"], None, batch["pixel_values"], batch["frame_counts"], None, "left"
        )[0]


@torch.inference_mode()
def likelihood(oracle: Oracle, asked: torch.Tensor, answer: Answer, header: Sequence[int] = ()) -> float:
    """The log-likelihood of an answer behind a prompt, by one forward of the model."""
    ids = list(answer.token_ids)
    text = oracle.model.model.embed_text(torch.tensor([[*header, *ids]], dtype=torch.long))
    logits = oracle.model(inputs_embeds=torch.cat([asked, text], dim=1)).logits[0].double()
    found = logits[-len(ids) - 1 :].log_softmax(-1)
    said = float(found[range(len(ids)), ids].sum())
    ends = oracle.model.generation_config.eos_token_id
    return said + (float(found[-1, ends].logsumexp(0)) if answer.finish_reason == "stop" else 0.0)


@torch.inference_mode()
def say(oracle: Oracle, asked: torch.Tensor) -> list[int]:
    """What the language model says behind a prompt, token by token without a cache."""
    ids: list[int] = []
    while len(ids) < GREEDY.max_new_tokens:
        text = oracle.model.model.embed_text(torch.tensor([ids], dtype=torch.long))
        token = int(oracle.model(inputs_embeds=torch.cat([asked, text], dim=1)).logits[0, -1].argmax())
        if token in oracle.model.generation_config.eos_token_id:
            break
        ids.append(token)
    return ids


def check_spans(oracle: Oracle, answer: Answer, pixels: np.ndarray, question: str, first: int, seconds: int) -> None:
    """A window of one frame a second against runs on its frames without those of each piece."""
    evidence = answer.evidence
    assert evidence is not None
    assert evidence.seen == pytest.approx(likelihood(oracle, embedded(oracle, pixels, question), answer), **CLOSE)
    assert evidence.blind == pytest.approx(likelihood(oracle, embedded(oracle, None, question), answer), **CLOSE)
    starts = range(0, len(pixels), seconds)
    assert [(part.start, part.end) for part in evidence.parts] == [
        (first + start, first + min(start + seconds, len(pixels))) for start in starts
    ]
    for start, part in zip(starts, evidence.parts, strict=True):
        others = np.delete(pixels, slice(start, start + seconds), axis=0)
        asked = embedded(oracle, others if len(others) else None, question)
        assert part.score == pytest.approx(likelihood(oracle, asked, answer), **CLOSE)
        assert part.box is None


# Videos


def test_a_span_left_out_is_a_run_on_the_video_without_it(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the likelihood, and token for token in what the model says where the span is left out."""
    items: list[PrefillItem] = []
    real = explainer_module.prefill
    monkeypatch.setattr(explainer_module, "prefill", lambda model, made: (items.extend(made), real(model, made))[1])
    pixels = oracle.video(9, 3)
    asked = request("v", pixels, QUESTIONS[:3], cut=every(2.0, 9.0))
    found = explained(oracle.engine(limits(2)), asked)
    for prompt, question in enumerate(QUESTIONS[:3]):
        assert list(found["v", 0, prompt].token_ids) == oracle.answer(pixels, question)
        check_spans(oracle, found["v", 0, prompt], pixels, question, 0, 2)
    whole, *without, _, _, _ = items
    assert len(without) == 5
    for prompt, question in enumerate(QUESTIONS[:3]):
        for number, item in enumerate([whole, *without], start=-1):
            others = pixels if number < 0 else np.delete(pixels, slice(2 * number, 2 * number + 2), axis=0)
            assert say(oracle, torch.cat([item.prefix, item.tails[prompt]])[None]) == oracle.answer(others, question)


def test_each_window_and_question_has_its_own_whatever_is_asked_beside_it(oracle: Oracle) -> None:
    """Overlapping windows of several videos, questions that are not asked of each, and few at once."""
    windows = (Window(0, 4), Window(2, 7, frozenset({1})), Window(6))
    one, other = oracle.video(8, 5), oracle.video(3, 6)
    plain = request("plain", oracle.video(2, 1), QUESTIONS[:1])
    asked = [
        request("one", one, QUESTIONS[:2], windows=windows, cut=every(2.0, 8.0)),
        request("other", other, QUESTIONS[::4], cut=every(1.0, 3.0)),
    ]
    outcomes = by_prompt(list(oracle.engine(limits(3, generations=2, media=2, cache_bytes=1)).run([*asked, plain])))
    left = outcomes.pop(("plain", 0, 0))
    assert isinstance(left, Answer)
    assert left.evidence is None
    assert len(outcomes) == 5 + 2
    for (key, window, prompt), answer in outcomes.items():
        assert isinstance(answer, Answer)
        first, last = ((0, 4), (2, 7), (6, 8))[window] if key == "one" else (0, 3)
        pixels, question = (one, QUESTIONS[prompt]) if key == "one" else (other, QUESTIONS[4 * prompt])
        check_spans(oracle, answer, pixels[first:last], question, first, 2 if key == "one" else 1)


def test_answers_of_every_kind_are_scored_as_they_were_given(oracle: Oracle) -> None:
    """Drawn and penalised ones, cut short ones, and choices; each by the model's own likelihood."""
    pixels = oracle.video(4, 8)
    options = GenerationOptions(3, temperature=1.0, seed=4, repetition_penalty=1.3)
    choices = (("red", "red car", "blue"), None)
    asked = Request("v", "video", ArrayFrames(pixels), QUESTIONS[:2], options, choices=choices, cut=every(1, 4))
    found = explained(oracle.engine(limits()), asked)
    assert (found["v", 0, 0].finish_reason, found["v", 0, 1].finish_reason) == ("stop", "length")
    for prompt, question in enumerate(QUESTIONS[:2]):
        check_spans(oracle, found["v", 0, prompt], pixels, question, 0, 1)


def test_what_a_model_writes_before_a_choice_is_taken_as_said(oracle: Oracle) -> None:
    prompts = oracle.processor.prompts("reference")
    pixels = oracle.video(3, 2)
    asked = request("v", pixels, QUESTIONS[:1], choices=(("red", "blue car"),), cut=every(1, 3))
    answer = explained(oracle.engine(limits(), "reference"), asked)["v", 0, 0]
    header = prompts.header_ids()
    assert header
    text = oracle.processor(text=QUESTIONS[0], prompt_layout="reference")["input_ids"]
    blind = likelihood(oracle, oracle.model.model.embed_text(text), answer, header)
    assert answer.evidence.blind == pytest.approx(blind, **CLOSE)


def test_one_frame_is_all_that_there_was(oracle: Oracle) -> None:
    """Left out, it leaves the question with no medium."""
    pixels = oracle.video(1, 0)
    asked = Request("v", "video", ArrayFrames(pixels), QUESTIONS[:1], GREEDY, cut=every(1, 1))
    evidence = explained(oracle.engine(limits()), asked)["v", 0, 0].evidence
    assert [(part.score, part.start, part.end) for part in evidence.parts] == [(evidence.blind, 0.0, 1.0)]


def test_prompts_that_do_not_fit_together_have_theirs_all_the_same(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass over the frames that was split on the way keeps what it had summed, piece by piece."""
    real, seen = frame_encoder.FrameEncoder._encoded, []

    def small(encoder: Any, chunk: Any, packs: Any) -> Any:
        seen.append(len(packs))
        if len(seen) > 2 and any(len(pack.prompt_lengths) > 1 for pack in packs):
            raise torch.OutOfMemoryError("too much")
        return real(encoder, chunk, packs)

    monkeypatch.setattr(frame_encoder.FrameEncoder, "_encoded", small)
    pixels = oracle.video(5, 4)
    found = explained(oracle.engine(limits(1)), request("v", pixels, QUESTIONS[:3], cut=every(2, 5)))
    for prompt, question in enumerate(QUESTIONS[:3]):
        check_spans(oracle, found["v", 0, prompt], pixels, question, 0, 2)


def test_a_window_without_cuts_has_no_evidence(oracle: Oracle) -> None:
    (answer,) = oracle.engine(limits()).run([request("v", oracle.video(3, 1), QUESTIONS[:1], cut=every(1.0, inf))])
    assert isinstance(answer, Answer)
    assert answer.evidence is None


# Shortages


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_what_never_fits_fails_the_answers_that_it_is_about(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    real, fits = explainer_module.Explainer._likelihoods, []

    def small(explainer: Any, cache: Any, rows: Any, first: Any, answers: Any) -> Any:
        if len(rows) > kept:
            raise torch.OutOfMemoryError("too much")
        fits.append(len(rows))
        return real(explainer, cache, rows, first, answers)

    monkeypatch.setattr(explainer_module.Explainer, "_likelihoods", small)
    pixels = oracle.video(3, 1)
    engine = oracle.engine(limits())
    outcomes = list(engine.run([request("v", pixels, QUESTIONS[:2], cut=every(1, 3))]))
    assert engine.is_idle
    if not kept:
        assert [one.error_type for one in outcomes if isinstance(one, Failure)] == ["out_of_memory"] * 2
        return
    assert len(outcomes) == 2
    for one in outcomes:
        assert isinstance(one, Answer)
        check_spans(oracle, one, pixels, QUESTIONS[one.prompt_index], 0, 1)


def test_answers_that_fail_leave_nothing_behind(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("too much")

    monkeypatch.setattr(TokenDecoder, "_next_tokens", short)
    engine = oracle.engine(limits())
    outcomes = list(engine.run([request("v", oracle.video(3, 1), QUESTIONS[:2], cut=every(1, 3))]))
    assert [isinstance(one, Failure) for one in outcomes] == [True, True]
    assert (engine._explainer.nbytes, engine._held_bytes) == (0, 0)


def test_scores_that_are_no_numbers_are_no_evidence(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    real = explainer_module.Explainer._likelihoods
    monkeypatch.setattr(explainer_module.Explainer, "_likelihoods", lambda *given: [float("nan"), *real(*given)[1:]])
    (failure,) = oracle.engine(limits()).run([request("v", oracle.video(3, 1), QUESTIONS[:1], cut=every(1, 3))])
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("generate", "internal")


def test_what_is_held_for_evidence_counts_as_memory(oracle: Oracle) -> None:
    engine = oracle.engine(limits(1))
    engine.add(request("v", oracle.video(4, 1), QUESTIONS[:1], cut=every(1, 4)))
    held: list[int] = []
    while not engine.is_idle:
        engine.step()
        held.append(engine._held_bytes - engine._llm.cache_bytes)
    pack = len(oracle.processor.prompts().question_ids(QUESTIONS[0])) - 1
    assert max(held) >= 4 * pack * oracle.model.config.hidden_size * 4
    assert held[-1] == 0


# Pictures


@torch.inference_mode()
def picture_without(oracle: Oracle, pixels: np.ndarray, question: str, seen: torch.Tensor) -> torch.Tensor:
    """The prompt as the language model reads it where only some patches `[P]` are seen, by masks over the whole."""
    trunk = oracle.model.model
    batch = oracle.processor(images=pixels, text=question)
    features = trunk.vision_tower(batch["pixel_values"].flatten(0, 1)).unflatten(0, (1, -1))
    vision = trunk.project_vision(features, seen).sequence()
    ids = batch["input_ids"]
    text, length = trunk.embed_text(ids.clamp(min=0)), vision.shape[1]
    hidden = torch.cat([vision, text], dim=1)
    size = hidden.shape[1]
    key_ok = torch.ones(size, dtype=torch.bool)
    key_ok[: len(seen)] = seen
    key_ok[length:] = ~is_padding(ids[0])
    mask = torch.ones(size, size, dtype=torch.bool).tril() & key_ok
    positions = torch.cat([torch.arange(length)[None], text_positions(ids, length)], dim=1)
    rotary = trunk.rotary_emb(hidden, positions)
    for layer in trunk.prefusion_layers:
        hidden = layer(
            hidden,
            attention_mask=additive_mask(mask[None, None], hidden.dtype),
            position_ids=positions,
            position_embeddings=rotary,
        )
    fused = torch.where(is_padding(ids)[..., None], text, hidden[:, length:])[0]
    place = int((ids[0] < 0).nonzero().flatten()[0])
    keep = trunk.config.vision_tokens_per_frame
    return torch.cat([fused[:place], hidden[0, length - keep : length], fused[place + 1 :]])[None]


@pytest.mark.parametrize("resolution", ["plain", "high"])
def test_a_block_left_out_is_not_seen_by_compressor_and_pre_fusion(
    oracle: Oracle, tmp_path: Any, resolution: str
) -> None:
    if resolution == "high":
        oracle = high_oracle(tmp_path)
    pixels = oracle.video(1, 7)
    found = explained(oracle.engine(limits()), request("p", pixels, QUESTIONS[:2], size=SIZE))
    engine = oracle.engine(limits())
    numbers, boxes = picture_blocks(engine.still, SIZE, 4)
    assert len(numbers) == (4 * 4 if resolution == "plain" else 8 * 8 + 4 * 4)
    for prompt, question in enumerate(QUESTIONS[:2]):
        answer = found["p", 0, prompt]
        seen = embedded(oracle, pixels, question)
        assert answer.evidence.seen == pytest.approx(likelihood(oracle, seen, answer), **CLOSE)
        assert answer.evidence.blind == pytest.approx(
            likelihood(oracle, embedded(oracle, None, question), answer), **CLOSE
        )
        assert [part.box for part in answer.evidence.parts] == list(boxes)
        for number, part in enumerate(answer.evidence.parts):
            assert (part.start, part.end) == (None, None)
            asked = picture_without(oracle, pixels[0], question, torch.from_numpy(numbers != number))
            assert part.score == pytest.approx(likelihood(oracle, asked, answer), **CLOSE)


def high_oracle(folder: Any) -> Oracle:
    vision = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {**vision, "image_size": 56, "patch_size": 14, "projection_dim": 8}
    changes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "prefusion_layer_num": 2}
    return Oracle(
        write_tiny_checkpoint(folder, vision_config=vision, video_frame_size=56, resolution_ratio=2, **changes)
    )


def test_the_compressor_attends_to_what_is_seen_alone(oracle: Oracle) -> None:
    compressor = oracle.model.model.compressor
    assert isinstance(compressor, QueryCompressor)
    features = torch.randn(2, 16, compressor.query.shape[1])
    seen = torch.rand(16) < 0.6
    _, whole = compressor(features, need_weights=True)
    _, weights = compressor(features, need_weights=True, seen=seen)
    assert whole is not None
    assert weights is not None
    assert float(weights.detach()[:, :, ~seen].abs().max()) == 0
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:2]), atol=1e-5)


def test_the_average_of_a_cell_is_of_what_is_seen(oracle: Oracle) -> None:
    pool = AveragePool(oracle.model.config)
    pool.size = 2
    features = torch.arange(16.0).reshape(1, 16, 1)
    seen = torch.ones(16, dtype=torch.bool)
    seen[[0, 1, 4]] = False
    seen[[10, 11, 14, 15]] = False
    pooled, _ = pool(features, seen=seen)
    assert pooled.flatten().tolist() == [5.0, 4.5, 10.5, 0.0]
    assert torch.equal(pool(features)[0], pool(features, seen=torch.ones(16, dtype=torch.bool))[0])


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("size", [(96, 96), (160, 90), (90, 150)])
def test_the_middle_of_a_patch_is_where_the_patch_shows_the_picture(
    size: tuple[int, int], pad: bool, splits: int
) -> None:
    """A picture whose red and green say where a pixel lies, resized and cut as for the model."""
    width, height = size
    layout = PieceLayout(48, (48, 48), splits, pad)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.stack([across, down, np.full_like(across, 255)], axis=-1).astype(np.uint8)
    shown = pieces(ArrayRaster(picture), layout).astype(float)
    patches = shown.reshape(len(shown), 4, 12, 4, 12, 3).mean((2, 4))  # [parts, 4, 4, 3]
    raster = patches[:-1].reshape(splits, splits, 4, 4, 3).swapaxes(1, 2).reshape(-1, 3) if splits > 1 else None
    found = np.concatenate([one for one in (raster, patches[-1].reshape(-1, 3)) if one is not None])
    centres = patch_centres(layout, size, 4)
    assert len(centres) == len(found)
    inside = found[:, 2] > 254  # blue; the colour of the frame has less
    assert inside.sum() >= len(found) // 3
    assert np.abs(centres[inside] - 0.5 - found[inside, :2]).max() < 2.5


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(("pad", "size"), [(False, (90, 60)), (True, (60, 90)), (True, (64, 64)), (False, (3, 2))])
def test_blocks_share_out_what_the_model_sees(size: tuple[int, int], pad: bool, splits: int) -> None:
    layout = PieceLayout(48, (48, 48), splits, pad)
    numbers, boxes = picture_blocks(layout, size, 6)
    assert len(boxes) == 9
    columns, rows = sorted({(box[0], box[2]) for box in boxes}), sorted({(box[1], box[3]) for box in boxes})
    assert all(one[1] == other[0] for line in (columns, rows) for one, other in pairwise(line))
    assert all(0 <= left <= right <= size[0] and 0 <= top <= bottom <= size[1] for left, top, right, bottom in boxes)
    for (across, down), number in zip(patch_centres(layout, size, 6), numbers, strict=True):
        left, top, right, bottom = boxes[number]
        assert left - 0.5 <= np.clip(across, 0, size[0]) <= right + 0.5
        assert top - 0.5 <= np.clip(down, 0, size[1]) <= bottom + 0.5


def test_blocks_end_where_the_model_stops_to_see() -> None:
    """Of a wide picture it sees the square in the middle."""
    _, boxes = picture_blocks(PieceLayout(48, (48, 48), 1, pad=False), (90, 60), 6)
    assert (boxes[0][:2], boxes[8][2:]) == ((15, 0), (75, 60))


# Where the pieces lie


@pytest.mark.parametrize(
    ("of", "every_s", "window", "expected"),
    [
        ((0, 4, 1.0), None, (0, inf), [0, 1, 2, 3, 4]),
        ((0, 32, 1.0), None, (0, inf), list(range(0, 33, 2))),
        ((0, 32, None), None, (0, inf), list(range(0, 33, 2))),
        ((0, 0.4, 1.0), None, (0, inf), [0, 0.4]),
        ((2, 8, 0.5), None, (4, inf), [4, 6, 8]),
        ((0, 8, 1.0), 3.0, (0, inf), [0, 3, 6, 8]),
        ((0, 9, 1.0), 3.0, (0, inf), [0, 3, 6, 9]),
        ((0, 9, 1.0), 30.0, (1, 5), [1, 5]),
        ((0, 0.3, 1.0), 0.1, (0, inf), [0, 0.1, 0.2, 0.3]),
        ((0, inf, 1.0), 2.0, (0, inf), []),
        ((0, inf, 1.0), 2.0, (0, 4), [0, 2, 4]),
        ((0, 9, 1.0), None, (9, inf), []),
        ((0, MOST_PIECES + 1.0, 1.0), 1.0, (0, inf), []),
        ((0, float(MOST_PIECES), 1.0), 1.0, (0, inf), list(range(MOST_PIECES + 1))),
    ],
)
def test_a_window_is_cut_into_sixteen_or_into_spans_of_a_length(
    of: tuple[float, float, float | None], every_s: float | None, window: tuple[float, float], expected: list[float]
) -> None:
    assert EvenPieces(*of, EvidenceOptions(1, every=every_s)).bounds(*window) == pytest.approx(expected)
    assert PIECES == 16


VIDEO = ClipInfo("a.mp4", "video", 64, 48, 20.0, 20, 1.0)
ASKED = Request("a", "video", ArrayFrames(np.zeros((2, 4, 4, 3), np.uint8)), ("What?",), GREEDY)


def test_a_request_is_cut_within_what_is_looked_at() -> None:
    cut = with_evidence(ASKED, VIDEO, EvidenceOptions(2), SamplingOptions(start=5.0, end=12.0)).cut
    assert cut is not None
    assert cut.bounds(0.0, inf) == (5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0)
    still = ClipInfo("a.png", "image", 64, 48, None, 1, None)
    assert with_evidence(ASKED, still, EvidenceOptions(2), SamplingOptions()).size == (64, 48)
    assert with_evidence(ASKED, VIDEO, EvidenceOptions(), SamplingOptions()) is ASKED


@pytest.mark.parametrize(
    ("duration", "words"), [(None, "nobody knows how long"), (20.0, "no length, or more than 256 spans")]
)
def test_a_row_says_why_it_has_no_evidence(duration: float | None, words: str) -> None:
    answer = Answer("a", 0, "a cat", (1,), "stop", 2, 5, 2, 1)
    info = ClipInfo("a.mp4", "video", 64, 48, duration, None, 1.0)
    columns, why = evidence_of(answer, info, EvidenceOptions(3))
    assert columns == NO_EVIDENCE == {"evidence": None, "p_answer": None, "p_blind": None}
    assert why is not None
    assert words in why


def test_the_module_of_sums_has_no_piece_of_no_cuts() -> None:
    assert left_out.PieceSums.of(()) is None
    assert left_out.PieceSums.of((1.0,)) is None
