"""Given answers as questions about next tokens: what has to be asked to know how likely each whole answer is.

    of the labels (1, 2), (1, 3), (4,) and the end 9:    behind () of 1 and 4, behind (1,) of 2 and 3,
                                                         behind (1, 2), (1, 3) and (4,) of 9

No torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, log

from llava_mini_cli.engine.request import Likelihood

MOST_WANTED = 64  # tokens that are asked of at once; vLLM takes 128

Path = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """What is asked behind some tokens."""

    path: Path
    wanted: tuple[int, ...]


@dataclass
class Known:
    """What came of all nodes with one path."""

    scores: dict[int, float]  # log-probabilities of next tokens
    likeliest: int


def nodes(labels: Sequence[Path], ends: Sequence[int]) -> list[Node]:
    """All that has to be asked about some labels, the shortest path first."""
    wanted: dict[Path, dict[int, None]] = {}
    for label in labels:
        for place, token in enumerate(label):
            wanted.setdefault(label[:place], {})[token] = None
        wanted.setdefault(label, {}).update(dict.fromkeys(ends))
    found: list[Node] = []
    for path in sorted(wanted, key=len):
        tokens = tuple(wanted[path])
        found += [Node(path, tokens[at : at + MOST_WANTED]) for at in range(0, len(tokens), MOST_WANTED)]
    return found


def likelihood(label: Path, known: Mapping[Path, Known], ends: Sequence[int]) -> Likelihood:
    """How likely a label and an end behind it are."""
    score, is_greedy = 0.0, True
    for place, token in enumerate(label):
        here = known[label[:place]]
        score += here.scores[token]
        is_greedy = is_greedy and here.likeliest == token
    last = known[label]
    return Likelihood(score + _logsumexp([last.scores[end] for end in ends]), is_greedy and last.likeliest in ends)


def p_yes(scores: Mapping[int, float], yes: Sequence[int], no: Sequence[int]) -> float:
    """The probability of yes, given that the answer begins with yes or no, from log-probabilities of tokens."""
    distance = _logsumexp([scores[token] for token in no]) - _logsumexp([scores[token] for token in yes])
    return 1 / (1 + exp(distance)) if distance < 0 else exp(-distance) / (1 + exp(-distance))


def _logsumexp(scores: Sequence[float]) -> float:
    most = max(scores)
    if most in (inf, -inf):
        return most
    return most + log(sum(exp(score - most) for score in scores))
