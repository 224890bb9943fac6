"""Prompt ids equal the reference's in the reference layout; the trained layout has one BOS and a header."""

import json
from typing import Any

import pytest
from golden_cases import OWN

from llava_mini_cli.errors import PromptError, UsageError
from llava_mini_cli.model.processor import load_tokenizer
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID, PromptBuilder

NUMBERS: dict[str, Any] = json.loads((OWN / "numbers.json").read_text(encoding="utf-8"))
TOKENIZERS = {"tokenizer-llama3": "mini-llama3", "tokenizer-vicuna": "mini-vicuna"}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: load_tokenizer(OWN / case / "checkpoint") for name, case in TOKENIZERS.items()}


@pytest.mark.parametrize("number", range(len(NUMBERS["prompts"])))
def test_reference_layout_gives_the_reference_ids(number: int, tokenizers: dict[str, Any]) -> None:
    item = NUMBERS["prompts"][number]
    builder = PromptBuilder(tokenizers[item["tokenizer"]], "reference", item["mm_use_im_start_end"])
    assert builder.prompt_text(item["question"]) == item["prompt"]
    assert builder.question_ids(item["question"]) == item["input_ids"]


def test_trained_layout_has_one_bos_and_the_assistant_header(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["tokenizer-llama3"]
    trained, reference = PromptBuilder(tokenizer), PromptBuilder(tokenizer, "reference")
    header = tokenizer("<|start_header_id|>assistant<|end_header_id|>\n\n", add_special_tokens=False).input_ids
    assert trained.question_ids("What?") == reference.question_ids("What?")[1:] + header
    assert trained.question_ids("What?").count(tokenizer.bos_token_id) == 1


def test_vicuna_is_the_same_in_both_layouts(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["tokenizer-vicuna"]
    assert PromptBuilder(tokenizer).question_ids("A?") == PromptBuilder(tokenizer, "reference").question_ids("A?")


@pytest.mark.parametrize("number", range(len(NUMBERS["postprocess"])))
def test_answers_read_as_the_reference_prints_them_without_the_header(number: int, tokenizers: dict[str, Any]) -> None:
    item = NUMBERS["postprocess"][number]
    text = PromptBuilder(tokenizers[item["tokenizer"]]).answer_text(item["generated_ids"])
    assert text == item["printed"].removeprefix("assistant\n\n")


@pytest.mark.parametrize("question", ["", " \n", "what is <image> here", "<image-placeholder> <image-placeholder>"])
def test_questions_that_cannot_be_asked(question: str, tokenizers: dict[str, Any]) -> None:
    with pytest.raises(PromptError):
        PromptBuilder(tokenizers["tokenizer-llama3"]).question_ids(question)


def test_the_placeholder_moves_the_frames(tokenizers: dict[str, Any]) -> None:
    ids = PromptBuilder(tokenizers["tokenizer-llama3"]).question_ids("Compare <image-placeholder> with it.")
    assert ids.count(IMAGE_TOKEN_ID) == 1
    assert ids[ids.index(IMAGE_TOKEN_ID) - 1] != 198  # not behind the header's newlines


ANSWERS = ("red", "red car", "Red", "3", "-1", "'s", "!x", "blue, green\nand so", "\u00fc", "\u4e2d")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_is_tokenised_as_it_is_trained_behind_a_question(name: str, tokenizers: dict[str, Any]) -> None:
    builder = PromptBuilder(tokenizers[name])
    asked = builder.question_ids("What?")
    gap = " " if builder.family == "vicuna" else ""
    for answer, ids in zip(ANSWERS, builder.answer_ids(ANSWERS), strict=True):
        said = builder.prompt_ids(builder.prompt_text("What?") + gap + answer)
        assert said == asked + ids
        assert builder.answer_text(ids) == answer
        assert ids == builder.tokenizer(answer, add_special_tokens=False).input_ids  # as `train` does it


def test_llama_3_writes_its_header_in_the_reference_layout_alone(tokenizers: dict[str, Any]) -> None:
    llama, vicuna = tokenizers["tokenizer-llama3"], tokenizers["tokenizer-vicuna"]
    header = PromptBuilder(llama, "reference").header_ids()
    assert PromptBuilder(llama).question_ids("A?") == PromptBuilder(llama, "reference").question_ids("A?")[1:] + header
    assert PromptBuilder(llama).header_ids() == PromptBuilder(vicuna, "reference").header_ids() == []


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_same_question_about_no_medium(name: str, tokenizers: dict[str, Any]) -> None:
    builder = PromptBuilder(tokenizers[name])
    plain = builder.prompt_ids(builder.prompt_text("Is it?").replace("<image>\n", ""))
    assert builder.text_ids("Is it?") == builder.text_ids("Is <image-placeholder>it?") == plain


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "no text of its own"),
        ("a</s><|eot_id|>", "holds token"),
        ("x" * 50 + "</s><|eot_id|>", "x" * 40 + r"\.\.\.'"),
    ],
)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_that_the_model_does_not_give(answer: str, words: str, name: str, tokenizers: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=words):
        PromptBuilder(tokenizers[name]).answer_ids(["a", answer])
    with pytest.raises(PromptError, match="holds token"):
        PromptBuilder(tokenizers[name], vocabulary=5).answer_ids(["a"])


def test_an_unknown_layout_is_a_usage_error(tokenizers: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--prompt-layout"):
        PromptBuilder(tokenizers["tokenizer-llama3"], "other")  # pyright: ignore[reportArgumentType]
