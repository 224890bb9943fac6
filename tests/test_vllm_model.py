"""The engine with its language model in another process, for which a stand-in answers: what our own would have said."""

from typing import Any

import pytest
import torch
from engine_oracle import GREEDY, QUESTIONS, Oracle, by_prompt, limits, make_oracle, request
from vllm_doubles import PlainAnswers, StandIn, on_stand_in

from llava_mini_cli.config import GenerationOptions, Grammar
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.llm.token_decoder import end_ids
from llava_mini_cli.engine.request import Answer, Failure, Outcome, Request, Window
from llava_mini_cli.engine.text_only import TextOnly
from llava_mini_cli.engine.vllm.messages import Counted, Group, Said, Unit
from llava_mini_cli.errors import DeviceLost, PromptError, UsageError

CHOICES = (("yes", "no"), None, ("a cat", "a dog", "a dog and a cat", "a"), None, None)
SCHEMA = '{"type":"object","properties":{"a":{"type":"integer","maximum":9,"minimum":0}},"required":["a"],'
SCHEMA += '"additionalProperties":false}'


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("vllm"))


def made(oracle: Oracle, answer: Any = None, lives: int | None = None, few: int = 3) -> tuple[Engine, StandIn]:
    """An engine on a stand-in."""
    prompts, ends = oracle.processor.prompts(), end_ids(oracle.model)
    link = StandIn(answer or PlainAnswers(oracle.model, prompts, ends, few), lives)
    make = on_stand_in(link, oracle.model, prompts, ends)
    return Engine(oracle.model, oracle.processor, prompts, limits(), make_llm=make), link


def asked(oracle: Oracle, options: GenerationOptions = GREEDY, **settings: Any) -> list[Request]:
    """A picture and two videos, one of them in windows."""
    found = [request("i", oracle.video(1, 0), QUESTIONS), request("v", oracle.video(5, 1), QUESTIONS[:3])]
    windows = (Window(0, 2), Window(2, 9, frozenset([1])))
    found.append(request("w", oracle.video(6, 2), QUESTIONS[:2], windows=windows))
    return [
        Request(**{**vars(one), "generation": options, **{k: v[: len(one.prompts)] for k, v in settings.items()}})
        for one in found
    ]


def both(oracle: Oracle, requests: list[Request], few: int = 3) -> list[tuple[Outcome, Outcome]]:
    """What our own language model and the stand-in say."""
    own = by_prompt(list(oracle.engine(limits()).run(requests)))
    engine, _ = made(oracle, few=few)
    found = by_prompt(list(engine.run(requests)))
    assert engine.is_idle
    assert (engine._llm.asked, engine._llm.cache_bytes) == (0, 0)
    assert own.keys() == found.keys()
    return [(own[key], found[key]) for key in own]


@pytest.mark.parametrize(
    ("options", "few"),
    [
        (GREEDY, 1),
        (GREEDY, 3),
        (GenerationOptions(max_new_tokens=1), 3),
        (GenerationOptions(max_new_tokens=12, repetition_penalty=1.4), 3),
        (GenerationOptions(max_new_tokens=5, yes_no=True), 1),
    ],
)
def test_answers_are_those_of_our_own(oracle: Oracle, options: GenerationOptions, few: int) -> None:
    found = both(oracle, asked(oracle, options), few)
    assert len(found) == 5 + 3 + 3
    for own, other in found:
        assert isinstance(own, Answer)
        assert isinstance(other, Answer)
        assert other.p_yes == (None if own.p_yes is None else pytest.approx(own.p_yes, abs=1e-5))
        assert vars(own) | {"p_yes": None} == vars(other) | {"p_yes": None}


@pytest.mark.parametrize("few", [1, 7])
def test_answers_that_loop_are_ended_where_our_own_are(oracle: Oracle, few: int) -> None:
    requests = [request("v", oracle.video(1, 3), QUESTIONS[:2])]
    requests = [Request(**{**vars(one), "generation": GenerationOptions(max_new_tokens=120)}) for one in requests]
    for own, other in both(oracle, requests, few):
        assert isinstance(own, Answer)
        assert own.finish_reason == "repetition"
        assert own == other


@pytest.mark.parametrize("options", [{}, {"choice_prior": True}, {"choice_score": "mean"}, {"yes_no": True}])
def test_choices_are_scored_as_by_our_own(oracle: Oracle, options: dict[str, Any]) -> None:
    found = both(oracle, asked(oracle, GenerationOptions(max_new_tokens=4, **options), choices=CHOICES))
    for own, other in found:
        assert isinstance(own, Answer)
        assert isinstance(other, Answer)
        assert (own.text, own.token_ids, own.finish_reason) == (other.text, other.token_ids, other.finish_reason)
        assert other.p_yes == (None if own.p_yes is None else pytest.approx(own.p_yes, abs=1e-5))
        if own.choice_probs is None or own.choice_scores is None:
            assert other.choice_probs is None
            continue
        assert other.choice_probs == pytest.approx(own.choice_probs, abs=1e-5)
        assert other.choice_scores is not None
        for text, one in own.choice_scores.items():
            assert other.choice_scores[text].score == pytest.approx(one.score, abs=1e-4)
            assert other.choice_scores[text].is_greedy == one.is_greedy


def test_short_media_that_came_together_are_handed_over_together(oracle: Oracle) -> None:
    engine, link = made(oracle)
    requests = [request(str(number), oracle.video(1, number), QUESTIONS[:1]) for number in range(4)]
    assert all(isinstance(one, Answer) for one in engine.run(requests))
    assert [len(groups) for groups in link.sent] == [4]


def is_alone(oracle: Oracle, group: Group) -> bool:
    """True if a prefix is that of a question about no medium."""
    prompts, model = oracle.processor.prompts(), oracle.model.model
    texts = [model.embed_text(torch.tensor(prompts.text_ids(text)))[:-1] for text in QUESTIONS if "<image" not in text]
    return any(torch.equal(group.prefix, text) for text in texts)


def test_questions_with_the_same_choices_ask_without_a_medium_once(oracle: Oracle) -> None:
    engine, link = made(oracle)
    options = GenerationOptions(choice_prior=True)
    for _ in range(2):
        requests = asked(oracle, options, choices=(("a", "b"),) * 5)
        assert all(isinstance(one, Answer) for one in engine.run(requests))
    alone = [group for group in link.groups if is_alone(oracle, group)]
    assert len(alone) == 4  # of five questions, of which one has a place for a picture
    assert len({group.prefix.numpy().tobytes() for group in alone}) == 4


@pytest.mark.parametrize("last", [True, False])
def test_what_fails_without_a_medium_fails_all_that_have_to_know_it(oracle: Oracle, last: bool) -> None:
    """Whether it does before their own scores are there or afterwards; the next ones ask again."""
    plain = PlainAnswers(oracle.model, oracle.processor.prompts(), end_ids(oracle.model))
    broken = True

    def answer(group: Group, unit: Unit) -> list[Said]:
        is_lost = broken and is_alone(oracle, group)
        return [Said(unit.number, finish="lost")] if is_lost else plain(group, unit)

    engine, link = made(oracle, answer)
    link.at_once = 99
    link.is_backwards = not last
    options = GenerationOptions(choice_prior=True)
    requests = [request(key, oracle.video(2, 1), QUESTIONS[:1], choices=(("a", "b"),)) for key in "vw"]
    requests = [Request(**{**vars(one), "generation": options}) for one in requests]
    failures = list(engine.run(requests))
    assert len(failures) == 2
    for one in failures:
        assert isinstance(one, Failure)
        assert (one.error_type, one.message) == ("internal", "vLLM gave the answer up")
    assert (engine.is_idle, engine._llm.asked) == (True, 0)
    broken = False
    ((own,), (other,)) = (list(found.run(requests[:1])) for found in (oracle.engine(limits()), engine))
    assert isinstance(own, Answer)
    assert isinstance(other, Answer)
    assert other.choice_probs == pytest.approx(own.choice_probs, abs=1e-5)


@pytest.mark.parametrize("new", [40, 3])
@pytest.mark.parametrize("yes_no", [False, True])
def test_answers_are_held_to_grammars(oracle: Oracle, new: int, yes_no: bool) -> None:
    held = (Grammar("json_schema", SCHEMA), None, Grammar("regex", "[ab]{2,3}"), None, None)
    options = GenerationOptions(max_new_tokens=new, yes_no=yes_no)
    for own, other in both(oracle, asked(oracle, options, grammars=held)):
        assert isinstance(own, Answer)
        assert isinstance(other, Answer)
        assert vars(own) | {"p_yes": None} == vars(other) | {"p_yes": None}
        assert other.p_yes == (None if own.p_yes is None else pytest.approx(own.p_yes, abs=1e-5))


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ({"finish": "too_long", "message": "the prompt takes 65"}, "out_of_memory", "the prompt takes 65"),
        ({"finish": "refused", "message": "odd"}, "internal", "vLLM does not take the prompt: odd"),
        ({"finish": "lost"}, "internal", "vLLM gave the answer up"),
        ({"tokens": (7,), "is_finite": False}, "internal", "the model gave no finite scores; another --dtype may"),
    ],
)
@pytest.mark.parametrize("choices", [(), (("a", "b"), ("a", "b"))])
def test_what_goes_wrong_with_a_question_is_its_failure(
    oracle: Oracle, said: dict[str, Any], kind: str, words: str, choices: Any
) -> None:
    plain = PlainAnswers(oracle.model, oracle.processor.prompts(), end_ids(oracle.model))

    def answer(group: Group, unit: Unit) -> list[Said]:
        return [Said(unit.number, **said)] if unit.number == 0 else plain(group, unit)

    engine, link = made(oracle, answer)
    outcomes = by_prompt(list(engine.run([request("v", oracle.video(3, 1), QUESTIONS[:2], choices=choices)])))
    failure = outcomes["v", 0, 0]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("generate", kind)
    assert failure.message.startswith(words)
    assert isinstance(outcomes["v", 0, 1], Answer)
    assert engine.is_idle
    assert engine._llm.asked == 0
    assert bool(link.dropped) == bool(choices or "finish" not in said)  # vLLM goes on with what it does not end itself


def test_an_answer_that_ends_before_its_schema_is_a_failure(oracle: Oracle) -> None:
    engine, _ = made(oracle, lambda group, unit: [Said(unit.number, (), finish="stop")])
    held = (Grammar("json_schema", SCHEMA),)
    (failure,) = engine.run([request("v", oracle.video(1, 1), QUESTIONS[:1], grammars=held)])
    assert isinstance(failure, Failure)
    assert (failure.error_type, failure.message) == (
        "bad_schema",
        "the answer ended before it was what the schema asks for",
    )


def test_the_end_of_the_process_ends_the_run_with_one_line(oracle: Oracle) -> None:
    engine, _ = made(oracle, lives=2)
    with pytest.raises(DeviceLost) as caught:
        list(engine.run(asked(oracle)))
    assert str(caught.value) == (
        "vLLM's process ended (killed by SIGKILL); what was answered is written, and the same command does the rest"
    )


def test_what_is_not_answered_is_dropped_when_the_engine_is_closed(oracle: Oracle) -> None:
    engine, link = made(oracle, lambda group, unit: [])
    engine.add(request("v", oracle.video(2, 1), QUESTIONS[:2]))
    while not link.groups:
        engine.step()
    assert (engine._llm.asked, engine.is_waiting) == (2, False)
    assert engine._llm.cache_bytes > 0
    engine.close()
    assert link.dropped == {0, 1}
    assert engine.is_idle


def test_evidence_and_vllm_exclude_each_other(oracle: Oracle) -> None:
    engine, _ = made(oracle)
    with pytest.raises(UsageError, match="--evidence"):
        engine.add(request("v", oracle.video(2, 1), QUESTIONS[:1], size=(56, 56)))


def test_questions_about_no_medium(oracle: Oracle) -> None:
    engine, _ = made(oracle)
    own, other = TextOnly(oracle.engine(limits())), TextOnly(engine)
    assert other.write("What is red?", GREEDY) == own.write("What is red?", GREEDY)
    found, wanted = (one.score("Red?", ("a cat", "a dog"), GREEDY) for one in (other, own))
    assert {text: one.score for text, one in found.items()} == pytest.approx(
        {text: one.score for text, one in wanted.items()}, abs=1e-4
    )
    broken, _ = made(oracle, lambda group, unit: [Said(unit.number, finish="lost")])
    with pytest.raises(PromptError, match="vLLM gave the answer up"):
        TextOnly(broken).write("What is red?", GREEDY)


def test_positions_are_counted(oracle: Oracle) -> None:
    engine, link = made(oracle)
    link.said.append(Counted(96, 64))
    list(engine.run([request("v", oracle.video(1, 1), QUESTIONS[:1])]))
    assert engine._llm.counted == Counted(96, 64)  # pyright: ignore[reportAttributeAccessIssue]
