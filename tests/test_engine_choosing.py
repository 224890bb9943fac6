"""Choices as tokens, as trees of tokens and as steps: no model."""

from typing import Any

import pytest
import torch

from llava_mini_cli.engine import labels
from llava_mini_cli.engine.labels import LabelIds, Labels
from llava_mini_cli.engine.llm import label_scorer
from llava_mini_cli.engine.llm.branches import Branches
from llava_mini_cli.engine.llm.label_scorer import LabelScorer, Scoring


class LetterPrompts:
    """A builder of prompts whose tokens are letters; it notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def answer_ids(self, answers: tuple[str, ...]) -> list[list[int]]:
        self.asked.append(answers)
        return [[ord(letter) - 96 for letter in answer.lower()] for answer in answers]

    def header_ids(self) -> list[int]:
        return [90, 91]


def test_what_texts_begin_with_alike_is_there_once() -> None:
    tree = Branches.of(7, [(1, 2), (1,), (1, 2, 3), (4,), (2, 2)])
    assert (tree.row, tree.tokens, tree.parents) == (7, [1, 2, 3, 4, 2, 2], [-1, 0, 1, -1, -1, 4])
    assert tree.paths == [[0, 1], [0], [0, 1, 2], [3], [4, 5]]
    assert tree.depths() == [0, 1, 2, 0, 0, 1]


def test_labels_are_made_once_and_forgotten_when_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: Any = LetterPrompts()
    known = LabelIds(prompts)
    found = known.of(("a", "bcd"))
    assert found == Labels(("a", "bcd"), (90, 91), ((1,), (2, 3, 4)))
    assert found.longest == 2 + 3 + 1
    assert known.of(("a", "bcd")) is found
    monkeypatch.setattr(labels, "MOST_KEPT", 5)
    other = known.of(("a", "b", "c"))  # five in all
    assert known.of(("a", "bcd")) is found
    known.of(("d",))
    assert known.of(("a", "b", "c")) is not other
    assert prompts.asked == [("a", "bcd"), ("a", "b", "c"), ("d",), ("a", "b", "c")]


def scoring(*ids: tuple[int, ...]) -> Scoring:
    nothing: Any = None
    return Scoring(("?", ()), Labels((), (9,), ids), nothing, 0, torch.zeros(1))


@pytest.mark.parametrize(
    ("most", "steps"),
    [
        (100, [[(0, 0, 3), (1, 0, 2)]]),
        (8, [[(0, 0, 3)], [(1, 0, 2)]]),  # of 3, 2 and 3 tokens, and then of 2 and 6
        (10, [[(0, 0, 3), (1, 0, 1)], [(1, 1, 2)]]),
        (5, [[(0, 0, 2)], [(0, 2, 3), (1, 0, 1)], [(1, 1, 2)]]),
        (1, [[(0, 0, 1)], [(0, 1, 2)], [(0, 2, 3)], [(1, 0, 1)], [(1, 1, 2)]]),
    ],
)
def test_labels_are_dealt_out_to_steps(
    most: int, steps: list[list[tuple[int, int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_scorer, "STEP_POSITIONS", most)
    made: list[Any] = []
    monkeypatch.setattr(LabelScorer, "_scoring", lambda self, parts: made.append(parts))
    both = [scoring((1, 2), (3,), (4, 5)), scoring((1,), (1, 2, 3, 4, 5))]
    nothing: Any = None
    LabelScorer(nothing, nothing, nothing, nothing)._steps(both)  # pyright: ignore[reportPrivateUsage]
    assert [[(both.index(one), part.start, part.stop) for one, part in step] for step in made] == steps
