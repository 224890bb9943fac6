"""Rendered scenes with the language model on vLLM: the answers and likelihoods are those of our own language model."""

from pathlib import Path

import pytest
from conftest import likely, lmms_eval, said

from llava_mini_cli.needs import is_installed

NAMES = ("llava_mini_scenes", "llava_mini_scenes_choices")


@pytest.mark.skipif(not is_installed("vllm"), reason="vLLM is not installed beside lmms-eval")
def test_answers_and_likelihoods_are_those_of_our_own(place: Path) -> None:
    own, other = (lmms_eval(place, NAMES, f",dtype=float32,device=cpu,llm={llm}") for llm in ("own", "vllm"))
    assert (own.code, other.code) == (0, 0), other.output
    answers = [[said(sample) for sample in run.samples[NAMES[0]]] for run in (own, other)]
    assert answers[0] == answers[1]
    for one, another in zip(own.samples[NAMES[1]], other.samples[NAMES[1]], strict=True):
        losses = [[loss for loss, _ in likely(sample)] for sample in (one, another)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)
        assert [greedy for _, greedy in likely(one)] == [greedy for _, greedy in likely(another)]
