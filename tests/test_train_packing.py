"""Packed training equals the plain model: the same loss for every question, alone or in a crowd."""

from dataclasses import replace

import pytest
import torch

from llava_mini_cli.demo.tokens import EOT, make_tokenizer
from llava_mini_cli.model import LlavaMiniConfig, LlavaMiniForConditionalGeneration
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID
from llava_mini_cli.train.answers_loss import answer_loss, answer_numbers
from llava_mini_cli.train.demo_preset.demo_data import DemoData, RenderedMedium
from llava_mini_cli.train.demo_preset.packed_model import PackedTrainer
from llava_mini_cli.train.demo_preset.packing import Packer, PromptIds
from llava_mini_cli.train.demo_preset.pixels import normalised
from llava_mini_cli.train.demo_preset.sequences import Sequences, by_length
from llava_mini_cli.train.demo_preset.stages import POLISH_ASK


def small_config(vocabulary: int, tokens_per_side: int = 1) -> LlavaMiniConfig:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 72,
        "patch_size": 12,
    }
    return LlavaMiniConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        vision_config=vision,
        mm_hidden_size=32,
        prefusion_layer_num=2,
        compressor_size=tokens_per_side,
        compressor_num_heads=2,
    )


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> PromptIds:
    from llava_mini_cli.train.demo_preset.stages import load_tokenizer

    return PromptIds(load_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def every_frame(medium: RenderedMedium) -> RenderedMedium:
    """The medium with its text fused with every frame, as the plain model does it."""
    shares = {frame: medium.order.count(frame) / len(medium.order) for frame in range(len(medium.frames))}
    return replace(medium, text_frames=shares, gap=(0, 0))


def plain_loss(
    model: LlavaMiniForConditionalGeneration, prompts: PromptIds, medium: RenderedMedium, which: int
) -> float:
    """The plain model's mean loss over one answer, the medium's frames repeated as they are seen."""
    question = medium.questions[which]
    answer = prompts.answer(question.answer)
    ids = torch.tensor([[*prompts.before, IMAGE_TOKEN_ID, *prompts.after(question.text), *answer]])
    labels = torch.full_like(ids, -100)
    labels[:, -len(answer) :] = ids[:, -len(answer) :]
    pixels = normalised(medium.frames)[list(medium.order)][:, None]
    with torch.no_grad():
        output = model(
            input_ids=ids, pixel_values=pixels, frame_counts=torch.tensor([len(medium.order)]), labels=labels
        )
    return float(output.loss)


@pytest.mark.parametrize("tokens_per_side", [1, 2])
def test_packed_loss_is_the_mean_of_plain_losses(prompts: PromptIds, tokens_per_side: int) -> None:
    torch.manual_seed(0)
    model = LlavaMiniForConditionalGeneration(small_config(len(prompts.tokenizer), tokens_per_side))
    data = DemoData("train", 64)
    media = [every_frame(data[index]) for index in (0, 1, 11, 12)]
    assert any(len(medium.order) > 1 for medium in media)
    plain = [plain_loss(model, prompts, medium, i) for medium in media for i in range(len(medium.questions))]
    number = tokens_per_side**2
    with torch.no_grad():
        packed = PackedTrainer(model)(**Packer(prompts, 36 + number, number)(media))
    assert float(packed["answers"]) == pytest.approx(sum(plain) / len(plain), rel=1e-5)


def test_a_gap_moves_what_comes_behind_it(prompts: PromptIds) -> None:
    """Frames behind it, and every question; what is seen stays the same."""
    data = DemoData("train", 64)
    plain = next(replace(data[i], gap=(0, 0)) for i in range(64) if len(data[i].order) > 3)
    gapped = replace(plain, gap=(2, 500))
    before, after = (Packer(prompts, 37, 1)([medium])["llm"] for medium in (plain, gapped))
    moved = (after["position"] - before["position"]).tolist()
    still = len(prompts.before) + 2
    assert moved == [0] * still + [500] * (len(moved) - still)
    assert torch.equal(before["source"], after["source"])
    assert {medium.gap[1] > 0 for medium in (data[i] for i in range(64)) if len(medium.order) > 1} == {True, False}


def test_a_kind_is_asked_as_often_as_wanted_and_the_media_stay_the_same() -> None:
    def asked(kind: str, data: DemoData) -> int:
        return sum(question.kind == kind for index in range(len(data)) for question in data[index].questions)

    usual = DemoData("train", 48, images=0)
    more = DemoData("train", 48, images=0, video_ask=POLISH_ASK)
    assert asked("video_yesno", more) > 1.4 * asked("video_yesno", usual)
    assert all((usual[index].frames == more[index].frames).all() for index in range(8))


def test_weights_change_what_counts(prompts: PromptIds) -> None:
    torch.manual_seed(0)
    model = LlavaMiniForConditionalGeneration(small_config(len(prompts.tokenizer)))
    medium = every_frame(DemoData("train", 4)[0])
    kinds = [question.kind for question in medium.questions]
    only = {kind: float(kind == kinds[0]) for kind in kinds}
    chosen = [i for i, kind in enumerate(kinds) if kind == kinds[0]]
    with torch.no_grad():
        packed = PackedTrainer(model)(**Packer(prompts, 37, 1, lambda _: only)([medium]))
    plain = [plain_loss(model, prompts, medium, i) for i in chosen]
    assert float(packed["answers"]) == pytest.approx(sum(plain) / len(plain), rel=1e-5)


def test_stages_train_what_they_say(prompts: PromptIds) -> None:
    model = LlavaMiniForConditionalGeneration(small_config(len(prompts.tokenizer)))
    media = [DemoData("train", 4, captions_only=True)[0]]
    trainer = PackedTrainer(model, "patches", ("mm_projector",))
    trainer(**Packer(prompts, 37, 36)(media))["loss"].backward()
    touched = {name.split(".")[2] for name, p in trainer.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"mm_projector"}
    trainer = PackedTrainer(model)
    trainer(**Packer(prompts, 37, 1)(media))["loss"].backward()
    touched = {name.split(".")[2] for name, p in trainer.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"mm_projector", "compressor", "prefusion_layers", "layers"} <= touched
    assert "vision_tower" not in touched


def test_packed_prompt_is_the_prompt_of_the_command(prompts: PromptIds) -> None:
    whole = prompts.builder.question_ids("What moves?")
    assert whole == [*prompts.before, IMAGE_TOKEN_ID, *prompts.after("What moves?")]
    assert prompts.answer("red circle")[-1] == make_tokenizer().token_to_id(EOT)


def test_sequences_are_grouped_by_length() -> None:
    assert by_length([30, 10, 31, 11, 100]) == [[1, 3], [0, 2], [4]]
    assert by_length([]) == []


def test_a_layout_brings_every_token_back_to_its_place() -> None:
    sequences = Sequences()
    sequences.add([0, 1, 5], [[2, 3], [4]])
    sequences.add([6, 7, 8, 9], [])
    layout = sequences.layout(10)
    assert layout["index"][layout["back"]][:10].tolist() == list(range(10))
    assert not layout["there"][layout["back"][10:]].any()
    group = layout["groups"][0]
    assert (group["shared"], group["own"], group["lengths"].tolist()) == ((4, 8), [(2, 8)], [3, 4, 0, 0])
    assert int(layout["there"].sum()) == 10


def test_answer_numbers_and_loss_averages() -> None:
    targets = torch.tensor([[-100, 1, 2, -100, 3], [-100, -100, 4, 4, 4]])
    assert answer_numbers(targets).tolist() == [[-1, 0, 0, -1, 1], [-1, -1, 2, 2, 2]]
    logits = torch.zeros(2, 5, 6)
    logits[1, 1:4, 4] = 20.0
    wrong = torch.log(torch.tensor(6.0))
    assert float(answer_loss(logits, targets, "token")) == pytest.approx(float(wrong * 3 / 6), rel=1e-4)
    assert float(answer_loss(logits, targets, "answer")) == pytest.approx(float(wrong * 2 / 3), rel=1e-4)
