"""The probabilities of given choices are those of a plain loop over them through the model, whatever is around them."""

from collections.abc import Sequence
from itertools import product
from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from engine_doubles import ArrayFrames, noise_video
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle
from golden_cases import write_case

from llava_mini_cli.config import Choices, ChoiceScore, GenerationOptions, PromptLayout
from llava_mini_cli.engine.llm import label_scorer
from llava_mini_cli.engine.llm.sampling import YesNo
from llava_mini_cli.engine.request import Answer, Failure, Request, Window
from llava_mini_cli.errors import UsageError

COLOURS = ("red", "red car", "green", "re", "red cars", "blue-green, or so", "Red")
MANY = tuple(f"label {number} of {number % 7}" for number in range(200))
FEW: tuple[Choices | None, ...] = (COLOURS, ("yes", "no"), None, ("one",))


def loop(
    oracle: Oracle, pixels: np.ndarray | None, question: str, choices: Choices, layout: PromptLayout = "trained"
) -> list[float]:
    """The log-likelihood of each choice, one forward of the model for each."""
    ends = oracle.model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    text = {"text": question, "prompt_layout": layout}
    if pixels is None:
        batch = oracle.processor(**text)
    else:
        is_one = len(pixels) == 1
        batch = oracle.processor(images=pixels[0], **text) if is_one else oracle.processor(videos=pixels, **text)
    with torch.inference_mode():
        if pixels is None:
            asked = oracle.model.model.embed_text(batch["input_ids"])
        else:
            given = batch["pixel_values"], batch["frame_counts"]
            asked, _, _ = oracle.model.prepare_embeddings(batch["input_ids"], None, *given, None, "left")
    prompts = oracle.processor.prompts(layout)
    # As in training: the text behind the prompt's, tokenised with it.
    before, gap = ("ASSISTANT:", " ") if prompts.family == "vicuna" else ("<|end_header_id|>\n\n", "")
    start, *whole = prompts.tokenizer(
        [before, *(before + gap + choice for choice in choices)], add_special_tokens=False
    ).input_ids
    found: list[float] = []
    for ids in whole:
        own = ids[len(start) :]
        said = torch.tensor([[*prompts.header_ids(), *own]])  # what the model wrote does not meet the frames
        with torch.inference_mode():
            embedded = torch.cat([asked, oracle.model.model.embed_text(said)], dim=1)
            logits = oracle.model(inputs_embeds=embedded).logits[0].double()
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
    assert list(answer.choice_probs.values()) == pytest.approx(softmax(scores), abs=1e-4, rel=0)
    assert answer.choice_scores is not None
    assert [one.score for one in answer.choice_scores.values()] == pytest.approx(scores, abs=1e-3, rel=0)
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
    media = {str(seed): noise_video(1 + seed % 3 * 2, seed) for seed in range(5)}
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


@pytest.mark.parametrize("case", ["mini-llama3", "mini-vicuna"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_two_hundred_choices_and_yes_alone_and_in_a_crowd(
    families: dict[str, Oracle], case: str, seeds: tuple[int, ...]
) -> None:
    oracle, choices = families[case], (MANY, None, COLOURS)[: 3 if len(seeds) > 1 else 1]
    side, options = oracle.model.config.video_frame_size, GenerationOptions(max_new_tokens=1, yes_no=True)
    media = {str(seed): noise_video(1 + seed, seed, side, side) for seed in seeds}
    requests = [
        Request(key, "image" if len(pixels) == 1 else "video", ArrayFrames(pixels), QUESTIONS[: len(choices)], options,
                choices=choices)
        for key, pixels in media.items()
    ]  # fmt: skip
    found = by_prompt(list(oracle.engine(limits(2)).run(requests)))
    ids = YesNo.of_prompts(oracle.processor.prompts())
    for (key, pixels), index in product(media.items(), range(len(choices))):
        answer, given = found[key, 0, index], choices[index]
        assert isinstance(answer, Answer)
        if given is not None:
            check(answer, loop(oracle, pixels, QUESTIONS[index], given), given)
        shown: dict[str, Any] = {"images": pixels[0]} if len(pixels) == 1 else {"videos": pixels}
        with torch.inference_mode():
            logits = oracle.model(**oracle.processor(**shown, text=QUESTIONS[index])).logits[0, -1]
        chances = logits.double().softmax(-1)
        yes, no = (float(chances[list(tokens)].sum()) for tokens in (ids.yes, ids.no))
        assert answer.p_yes == pytest.approx(yes / (yes + no), abs=1e-4, rel=0)


def test_two_hundred_choices_in_steps_and_windows(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_mini_cli.engine.llm.label_scorer.STEP_POSITIONS", 900)
    monkeypatch.setattr("llava_mini_cli.engine.llm.branches.HEAD_POSITIONS", 50)
    pixels = noise_video(3, 4)
    windows = (Window(0, 2), Window())
    found = by_prompt(list(oracle.engine(limits()).run([asked("v", pixels, (COLOURS, MANY), windows=windows)])))
    check(found["v", 0, 0], loop(oracle, pixels[:2], QUESTIONS[0], COLOURS), COLOURS)
    check(found["v", 1, 1], loop(oracle, pixels, QUESTIONS[1], MANY), MANY)


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


def test_yes_against_no_is_told_of_every_window(oracle: Oracle) -> None:
    pixels = noise_video(6, 3)
    options = GenerationOptions(max_new_tokens=1, yes_no=True)
    windows = (Window(0, 2), Window(1, 5), Window())
    source = Request("v", "video", ArrayFrames(pixels), QUESTIONS[:2], options, windows, choices=(None, COLOURS))
    found = by_prompt(list(oracle.engine(limits(2)).run([source])))
    for number, part in enumerate((pixels[:2], pixels[1:5], pixels)):
        alone = Request("a", "video", ArrayFrames(part), QUESTIONS[:2], options, choices=(None, COLOURS))
        answers = list(oracle.engine(limits()).run([alone]))
        assert len(answers) == 2
        for answer in answers:
            same = found["v", number, answer.prompt_index]
            assert isinstance(answer, Answer)
            assert isinstance(same, Answer)
            assert same.p_yes == pytest.approx(answer.p_yes, abs=1e-6)


@pytest.mark.parametrize("case", ["mini-llama3", "mini-vicuna"])
@pytest.mark.parametrize(("score", "prior"), [("mean", False), ("sum", True), ("mean", True)])
def test_scores_by_length_and_without_what_is_likely_anyway(
    families: dict[str, Oracle], case: str, score: ChoiceScore, prior: bool
) -> None:
    oracle = families[case]
    side = oracle.model.config.video_frame_size
    options = GenerationOptions(choice_score=score, choice_prior=prior)
    media = {str(seed): noise_video(2 + seed, seed, side, side) for seed in range(2)}
    prompts = (QUESTIONS[0], QUESTIONS[3])  # the second one has the frames in its middle
    requests = [
        Request(key, "video", ArrayFrames(one), prompts, options, choices=(COLOURS, COLOURS))
        for key, one in media.items()
    ]
    found = by_prompt(list(oracle.engine(limits()).run(requests)))
    lengths = [len(ids) + 1 for ids in oracle.processor.prompts().answer_ids(COLOURS)]
    for (key, pixels), index in product(media.items(), range(2)):
        scores = np.array(loop(oracle, pixels, prompts[index], COLOURS))
        if prior:
            scores -= np.array(loop(oracle, None, prompts[index].replace("<image-placeholder>", ""), COLOURS))
        if score == "mean":
            scores /= lengths
        check(found[key, 0, index], scores.tolist(), COLOURS)


def test_what_is_likely_anyway_is_asked_once(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of: list[int] = []
    plain = label_scorer.prefill

    def counted(model: Any, items: Any) -> Any:
        asked_of.append(len(items))
        return plain(model, items)

    monkeypatch.setattr(label_scorer, "prefill", counted)
    options = GenerationOptions(choice_prior=True)

    def requests(*keys: str) -> list[Request]:
        return [
            Request(key, "image", ArrayFrames(noise_video(1, int(key))), QUESTIONS[:3], options, choices=FEW[:3])
            for key in keys
        ]

    engine = oracle.engine(limits())
    first = by_prompt(list(engine.run(requests("1", "2"))))
    again = by_prompt(list(engine.run(requests("1", "3"))))
    assert asked_of == [2]
    assert first["1", 0, 0].choice_probs == pytest.approx(again["1", 0, 0].choice_probs, abs=1e-6)  # pyright: ignore
    monkeypatch.setattr(label_scorer, "MOST_KEPT", 1)
    list(engine.run(requests("4")))
    assert asked_of == [2, 2]


def test_a_prior_that_does_not_fit_fails_its_question(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = label_scorer.prefill
    asked_of: list[int] = []

    def short(model: Any, items: Any) -> Any:
        asked_of.append(len(items))
        if len(items) > 1 or len(asked_of) < 4:
            raise MemoryError
        return plain(model, items)

    monkeypatch.setattr(label_scorer, "prefill", short)
    options = GenerationOptions(choice_prior=True)
    source = Request("i", "image", ArrayFrames(noise_video(1, 1)), QUESTIONS[:2], options, choices=FEW[:2])
    found = by_prompt(list(oracle.engine(limits()).run([source])))
    assert asked_of == [2, 1, 1, 1]  # both, the first twice, the second
    failure = found["i", 0, 0]
    assert isinstance(failure, Failure)
    assert failure.error_type == "out_of_memory"
    assert isinstance(found["i", 0, 1], Answer)


def test_what_cannot_be_chosen_fails_alone_and_in_one_line(oracle: Oracle) -> None:
    bad: dict[str, tuple[Choices, str, str]] = {
        "none": ((), "bad_prompt", "the prompt has no choices"),
        "special": (
            ("a", "b<|eot_id|>"),
            "bad_prompt",
            "the choice 'b<|eot_id|>' holds token 257, as no answer does",
        ),
        "empty": (("a", ""), "bad_prompt", "the choice '' is no text of its own to the model"),
        "same": (("a", "a"), "bad_prompt", "the choices 'a' and 'a' are the same to the model"),
        "long": (
            ("a", "b" * 20000),
            "too_long",
            "20001 tokens of the longest of its choices and 1 for each frame exceed",
        ),
    }
    pixels = oracle.video(1, 0)
    requests = [asked(key, pixels, (choices, COLOURS)) for key, (choices, _, _) in bad.items()]
    found = by_prompt(list(oracle.engine(limits()).run(requests)))
    scores = loop(oracle, pixels, QUESTIONS[1], COLOURS)
    for key, (_, kind, words) in bad.items():
        failure = found[key, 0, 0]
        assert isinstance(failure, Failure)
        assert (failure.stage, failure.error_type) == ("prompt", kind)
        assert words in failure.message
        check(found[key, 0, 1], scores, COLOURS)


def test_choices_take_as_much_of_the_context_as_the_longest_of_them(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle.model.config, "max_position_embeddings", 400)
    long = GenerationOptions(max_new_tokens=390)
    engine = oracle.engine(limits())
    text = len(oracle.processor.prompts().question_ids(QUESTIONS[0])) - 1
    most = engine.most_frames(QUESTIONS[:1], long, [("a", "four")])
    assert most == 400 - text - 5
    assert engine.most_frames(QUESTIONS[:1], long) is None
    for frames, answers in ((most, True), (most + 1, False)):
        source = ArrayFrames(noise_video(frames, 0))
        asked = Request("v", "video", source, QUESTIONS[:1], long, choices=(("a", "four"),))
        (outcome,) = oracle.engine(limits(64)).run([asked])
        assert isinstance(outcome, Answer) is answers
        if isinstance(outcome, Failure):
            assert "5 tokens of the longest of its choices" in outcome.message
            assert f"at most {most} frames fit" in outcome.message


def test_a_model_without_an_end_cannot_choose(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.model.generation_config, "eos_token_id", None)
    engine = oracle.engine(limits())
    with pytest.raises(UsageError, match=r"--choices: this model's generation_config\.json names no token that ends"):
        engine.add(asked("v", oracle.video(1, 0), (COLOURS,)))
    engine.add(asked("v", oracle.video(1, 0), ()))


def test_scores_that_are_no_numbers_are_a_failure(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle.model.lm_head, "forward", lambda hidden: torch.full((len(hidden), 262), float("nan")))
    (failure,) = oracle.engine(limits()).run([asked("v", oracle.video(2, 0), (COLOURS,))])
    assert isinstance(failure, Failure)
    assert "no finite scores" in failure.message


def shortage(most: int, scored: list[int]) -> Any:
    """A scoring step that has no memory for more than some tokens, and notes how many it had it for."""
    plain = label_scorer.log_likelihoods

    def run(model: Any, cache: Any, branches: Any, *rest: Any) -> Any:
        tokens = sum(len(one.tokens) for one in branches)
        if tokens > most:
            raise MemoryError
        scored.append(tokens)
        return plain(model, cache, branches, *rest)

    return run


def test_a_step_that_does_not_fit_is_made_in_halves(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    monkeypatch.setattr(label_scorer, "log_likelihoods", shortage(40, scored))
    media = {str(seed): noise_video(1, seed) for seed in range(3)}
    found = by_prompt(list(oracle.engine(limits()).run([asked(key, one, FEW) for key, one in media.items()])))
    for key, pixels in media.items():
        check(found[key, 0, 0], loop(oracle, pixels, QUESTIONS[0], COLOURS), COLOURS)
        assert isinstance(found[key, 0, 2], Answer)
    assert len(found) == 12
    assert 10 < max(scored) <= 40


def test_a_choice_that_never_fits_fails_its_question_alone(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scorer, "log_likelihoods", shortage(8, []))
    found = by_prompt(list(oracle.engine(limits()).run([asked("i", oracle.video(1, 0), FEW)])))
    failure = found["i", 0, 0]  # of which one choice has 17 tokens
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("generate", "out_of_memory")
    assert failure.message == "the question's choices do not fit the memory"
    assert all(isinstance(found["i", 0, index], Answer) for index in (1, 2, 3))
