"""The probabilities of given choices are those of a plain loop over them through the model, whatever is around them."""

from collections.abc import Sequence
from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames, noise_video
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle
from golden_cases import write_case

from llava_mini_cli.config import GenerationOptions, PromptLayout
from llava_mini_cli.engine.request import Answer, Choices, Failure, Request, Window
from llava_mini_cli.errors import UsageError

COLOURS = ("red", "red car", "green", "re", "red cars", "blue-green, or so", "Red")
MANY = tuple(f"label {number} of {number % 7}" for number in range(200))
FEW: tuple[Choices | None, ...] = (COLOURS, ("yes", "no"), None, ("one",))


def loop(oracle: Oracle, pixels: np.ndarray, question: str, choices: Choices, layout: PromptLayout = "trained"):
    """The log-likelihood of each choice, one forward of the model for each."""
    ends = oracle.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    text = {"text": question, "prompt_layout": layout}
    batch = oracle.processor(images=pixels[0], **text) if len(pixels) == 1 else oracle.processor(videos=pixels, **text)
    prompts = oracle.processor.prompts(layout)
    found: list[float] = []
    for choice in choices:
        # As in training: the text behind the prompt's, tokenised with it.
        before, gap = ("ASSISTANT:", " ") if prompts.family == "vicuna" else ("<|end_header_id|>\n\n", "")
        tokenizer = prompts.tokenizer
        start, whole = (tokenizer(text, add_special_tokens=False).input_ids for text in (before, before + gap + choice))
        own = whole[len(start) :]
        said = [*prompts.header_ids(), *own]
        ids = torch.cat([batch["input_ids"], torch.tensor([said])], dim=1)
        target = torch.tensor([[-100] * batch["input_ids"].shape[1] + said])  # an answer's text does not meet the frames
        with torch.inference_mode():
            given = {key: value for key, value in batch.items() if key not in ("input_ids", "attention_mask")}
            logits = oracle.model(input_ids=ids, labels=target, **given).logits[0].double()
        scores = logits[-len(own) - 1 :].log_softmax(-1)
        found.append(float(scores[range(len(own)), own].sum() + scores[-1, ends].logsumexp(0)))
    return found


def softmax(scores: Sequence[float]) -> list[float]:
    shares = [exp(score - max(scores)) for score in scores]
    return [share / sum(shares) for share in shares]


def asked(key: str, pixels: np.ndarray, choices: tuple[Choices | None, ...], **settings: object) -> Request:
    kind = "image" if len(pixels) == 1 else "video"
    source = ArrayFrames(pixels)
    return Request(key, kind, source, QUESTIONS[: len(choices)], GREEDY, choices=choices, **settings)  # pyright: ignore


def check(answer: object, scores: Sequence[float], choices: Choices) -> None:
    assert isinstance(answer, Answer)
    assert answer.choice_probs is not None
    assert tuple(answer.choice_probs) == choices
    assert list(answer.choice_probs.values()) == pytest.approx(softmax(scores), abs=1e-4, rel=1e-3)
    assert answer.text == choices[scores.index(max(scores))]
    assert (answer.finish_reason, answer.completion_tokens) == ("stop", len(answer.token_ids))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    cases = ("mini-llama3", "mini-vicuna")
    return {case: Oracle(write_case(case, tmp_path_factory.mktemp(case))) for case in cases}


@pytest.mark.parametrize("case", ["mini-llama3", "mini-vicuna"])
@pytest.mark.parametrize("layout", ["trained", "reference"])
def test_both_families_say_what_the_loop_says(families: dict[str, Oracle], case: str, layout: PromptLayout) -> None:
    oracle = families[case]
    side = oracle.model.config.video_frame_size
    pixels = noise_video(2, 1, side, side)
    found = by_prompt(list(oracle.engine(limits(), layout).run([asked("v", pixels, FEW)])))
    for index, choices in enumerate(FEW):
        if choices is not None:
            scores = loop(oracle, pixels, QUESTIONS[index], choices, layout)
            check(found["v", 0, index], scores, choices)


def test_a_crowd_says_what_each_says_alone(oracle: Oracle) -> None:
    media = {str(seed): noise_video(1 + seed % 3 * 2, seed) for seed in range(7)}
    crowd = [asked(key, pixels, FEW if key != "3" else (None, None)) for key, pixels in media.items()]
    found = by_prompt(list(oracle.engine(limits(3, generations=9)).run(crowd)))
    for key, pixels in media.items():
        for index, choices in enumerate(FEW if key != "3" else (None, None)):
            answer = found.pop((key, 0, index))
            if choices is None:
                assert isinstance(answer, Answer)
                assert answer.choice_probs is None
                assert list(answer.token_ids) == oracle.answer(pixels, QUESTIONS[index])
            else:
                check(answer, loop(oracle, pixels, QUESTIONS[index], choices), choices)
    assert not found


def test_two_hundred_choices_in_steps_and_windows(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.engine.label_scorer.STEP_POSITIONS", 900)
    monkeypatch.setattr("llava_mini_cli.engine.branches.HEAD_POSITIONS", 50)
    pixels = noise_video(9, 4)
    windows = (Window(0, 4), Window())
    found = by_prompt(list(oracle.engine(limits()).run([asked("v", pixels, (MANY, MANY), windows=windows)])))
    for number, part in enumerate((pixels[:4], pixels)):
        check(found["v", number, 1], loop(oracle, part, QUESTIONS[1], MANY), MANY)


def test_yes_against_no_is_told_beside_the_choices(oracle: Oracle) -> None:
    options = GenerationOptions(max_new_tokens=1, yes_no=True)
    requests = [
        Request(key, "image", ArrayFrames(oracle.video(1, 0)), QUESTIONS[:1], options, choices=choices)
        for key, choices in (("chosen", (("yes", "no"),)), ("free", ()))
    ]
    found = by_prompt(list(oracle.engine(limits()).run(requests)))
    chosen, free = found["chosen", 0, 0], found["free", 0, 0]
    assert isinstance(chosen, Answer)
    assert isinstance(free, Answer)
    assert chosen.p_yes == pytest.approx(free.p_yes, abs=1e-6)
    assert chosen.choice_probs is not None
