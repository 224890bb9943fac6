"""Given answers as questions about next tokens."""

import pytest

from llava_mini_cli.engine.vllm.tries import Known, likelihood, nodes, p_yes


def test_what_is_asked_to_know_labels() -> None:
    labels = [(1, 2), (1, 3), (4,)]
    found = {(node.path, node.wanted) for node in nodes(labels, (8, 9))}
    assert found == {((), (1, 4)), ((1,), (2, 3)), ((4,), (8, 9)), ((1, 2), (8, 9)), ((1, 3), (8, 9))}
    many = nodes([(token,) for token in range(150)], (999,))
    first = [node.wanted for node in many if node.path == ()]
    assert [len(wanted) for wanted in first] == [64, 64, 22]
    known = {(): Known({1: -1.0, 4: -3.0}, 1), (1,): Known({2: -0.5}, 7), (1, 2): Known({8: -1.0, 9: -1.0}, 9)}
    one = likelihood((1, 2), known, (8, 9))
    assert one.score == pytest.approx(-1.5 - 1.0 + 0.6931471805599453)
    assert not one.is_greedy
    known[1,].likeliest = 2
    assert likelihood((1, 2), known, (8, 9)).is_greedy


@pytest.mark.parametrize(("yes", "no", "found"), [(-1.0, -1.0, 0.5), (-1.0, -901.0, 1.0), (-901.0, -1.0, 0.0)])
def test_how_likely_yes_is(yes: float, no: float, found: float) -> None:
    assert p_yes({1: yes, 2: no}, (1,), (2,)) == pytest.approx(found)
    assert p_yes({1: yes, 3: yes, 2: no, 4: no}, (1, 3), (2, 4)) == pytest.approx(found)
