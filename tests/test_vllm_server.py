"""What is handed to vLLM's engine when, and what is told of it; another engine is in its place."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_mini_cli.engine.vllm.messages import Counted, Drop, Group, Said, Unit
from llava_mini_cli.engine.vllm.server import Server

END = 9


class FakeEngine:
    """Writes 1, 2, 3 ... and an end, a token a step, for all that it was given."""

    def __init__(self, positions: int = 100) -> None:
        self.positions = positions  # of a prompt and its answer
        self.refuses: Exception | None = None  # what the next request is
        self.ends = "stop"  # why answers end
        self.given: list[int] = []  # in the order in which they came
        self.running: dict[str, Any] = {}
        self.aborted: list[str] = []
        self.most_running = 0

    def add_request(self, name: str, prompt: Any, params: Any) -> str:
        if self.refuses is not None:
            error, self.refuses = self.refuses, None
            raise error
        assert len(prompt["prompt_embeds"]) < self.positions
        self.given.append(int(name))
        self.running[f"{name}-abc"] = SimpleNamespace(unit=params, said=0)
        self.most_running = max(self.most_running, len(self.running))
        return f"{name}-abc"

    def abort_request(self, names: list[str], internal: bool) -> None:
        assert internal
        self.aborted += names
        for name in names:
            del self.running[name]

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def step(self) -> list[Any]:
        found: list[Any] = []
        for name, one in list(self.running.items()):
            one.said += 1
            is_over = one.said == one.unit.new_tokens
            token = END if is_over else one.said
            row = {token: SimpleNamespace(logprob=-0.5)} | {
                want: SimpleNamespace(logprob=-1.0 * want) for want in one.unit.wanted
            }
            told = SimpleNamespace(token_ids=[token], logprobs=[row], finish_reason=self.ends if is_over else None)
            found.append(SimpleNamespace(request_id=name.partition("-")[0], outputs=[told], num_cached_tokens=32))
            if is_over:
                del self.running[name]
        return found


def units(*numbers: int, new: int = 2, **settings: Any) -> tuple[Unit, ...]:
    return tuple(Unit(number, torch.zeros(1, 4), new, **settings) for number in numbers)


def server(engine: FakeEngine, sequences: int = 64, positions: int = 100) -> Server:
    return Server(engine, lambda unit: unit, sequences, positions, (END,))


def run(found: Server) -> list[Said | Counted]:
    said: list[Said | Counted] = []
    while not found.is_idle:
        said += found.step()
    return said


def test_the_first_unit_of_a_prefix_goes_alone_and_the_others_when_it_stands() -> None:
    engine = FakeEngine()
    found = server(engine)
    found.take((Group(torch.zeros(40, 4), units(0, 1, 2)),))
    found.take((Group(torch.zeros(8, 4), units(3, 4)),))
    found.step()
    assert engine.given == [0, 3]
    found.step()
    assert engine.given == [0, 3, 1, 2, 4]
    said = run(found)
    assert found.step() == []
    assert said[-1] == Counted(3 * 41 + 2 * 9, 5 * 32)


def test_no_more_are_handed_over_than_are_answered_at_once() -> None:
    engine = FakeEngine()
    found = server(engine, 2)
    found.take((Group(torch.zeros(4, 4), units(*range(7))),))
    run(found)
    assert (engine.most_running, engine.given) == (2, list(range(7)))


def test_prompts_are_handed_over_as_far_as_their_bytes_go() -> None:
    engine = FakeEngine()
    found = server(engine)
    found.most_bytes = 2 * 5 * 4 * 4
    found.take((Group(torch.zeros(4, 4), units(*range(5))),))
    found.take((Group(torch.zeros(50, 4), units(9)),))  # which is more by itself
    run(found)
    assert (engine.most_running, engine.given) == (2, [*range(5), 9])


def test_what_is_told_of_a_unit() -> None:
    found = server(FakeEngine())
    found.take((Group(torch.zeros(1, 4), units(5, new=3, wanted=(3, 4))),))
    said = run(found)
    assert said[:3] == [
        Said(5, (1,), {3: -3.0, 4: -4.0}),
        Said(5, (2,)),
        Said(5, (), finish="stop"),
    ]
    found.take((Group(torch.zeros(1, 4), units(6, new=1, wanted=(3,), is_scored=True)),))
    assert run(found)[0] == Said(6, (END,), {3: -3.0}, finish="stop")  # the likeliest token counts


def test_scores_that_are_no_numbers_are_told() -> None:
    engine = FakeEngine()
    found = server(engine)
    found.take((Group(torch.zeros(1, 4), units(0)),))
    real = engine.step

    def broken() -> list[Any]:
        outputs = real()
        for output in outputs:
            for row in output.outputs[0].logprobs:
                row[output.outputs[0].token_ids[0]].logprob = float("nan")
        return outputs

    engine.step = broken  # pyright: ignore[reportAttributeAccessIssue]
    assert [one.is_finite for one in run(found) if isinstance(one, Said)] == [False, False]


@pytest.mark.parametrize("error", [ValueError("odd\nand more words"), RuntimeError("odd"), AssertionError("odd")])
def test_a_unit_that_is_refused_holds_up_no_other(error: Exception) -> None:
    engine = FakeEngine()
    engine.refuses = error
    found = server(engine)
    found.take((Group(torch.zeros(4, 4), units(0, 1, 2)),))
    said = run(found)
    assert said[0] == Said(0, finish="refused", message="odd")
    assert {one.number for one in said if isinstance(one, Said)} == {0, 1, 2}


def test_a_prompt_without_room_is_told_and_the_others_go_on() -> None:
    engine = FakeEngine(positions=10)
    found = server(engine, positions=10)
    found.take((Group(torch.zeros(4, 4), (Unit(0, torch.zeros(6, 4), 2), Unit(1, torch.zeros(5, 4), 1))),))
    said = run(found)
    assert said[0] == Said(0, finish="too_long", message="the prompt takes 10 positions, and vLLM has room for 10")
    assert said[1] == Said(1, (), finish="stop")


def test_an_answer_that_has_room_for_fewer_tokens_than_it_may_have_is_too_long() -> None:
    found = server(FakeEngine())
    found.take((Group(torch.zeros(4, 4), units(0, new=3)),))
    found.step()
    (name,) = found.engine.running
    found.engine.running[name].unit = replace(found.engine.running[name].unit, new_tokens=2)  # where vLLM stops
    found.engine.ends = "length"
    words = "the prompt and its answer take more than vLLM's 100 positions"
    assert found.step()[0] == Said(0, (END,), finish="too_long", message=words)
    found.take((Group(torch.zeros(4, 4), units(1, new=3)),))
    assert run(found)[2] == Said(1, (END,), finish="length")


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_an_answer_that_vllm_gives_up_is_lost(reason: str) -> None:
    engine = FakeEngine()
    engine.ends = reason
    found = server(engine)
    found.take((Group(torch.zeros(4, 4), units(0, 1)),))
    assert [one.finish for one in run(found) if isinstance(one, Said)] == [None, "lost", None, "lost"]


def test_answers_that_vllm_forgets_are_lost_and_hold_up_no_other() -> None:
    engine = FakeEngine()
    found = server(engine)
    found.take((Group(torch.zeros(4, 4), units(0, 1)),))
    found._hand_over()
    engine.running.clear()
    assert found.step() == [Said(0, finish="lost")]
    assert {one.number for one in run(found) if isinstance(one, Said)} == {1}


def test_a_dropped_unit_that_was_to_compute_the_prefix_has_the_next_one_do_it() -> None:
    engine = FakeEngine()
    found = server(engine)
    found.take((Group(torch.zeros(4, 4), units(0, 1, 2)),))
    found._hand_over()
    found.take(Drop((0, 77)))
    assert engine.aborted == ["0-abc"]
    found.step()
    assert engine.given == [0, 1]
    assert {one.number for one in run(found) if isinstance(one, Said)} == {1, 2}


def test_units_that_were_not_begun_can_be_dropped() -> None:
    engine = FakeEngine()
    found = server(engine)
    found.take((Group(torch.zeros(4, 4), units(0, 1, 2)),))
    found.take(Drop((1, 2)))
    assert {one.number for one in run(found) if isinstance(one, Said)} == {0}
