"""A stand-in of vLLM's process: the plain model answers the units that it is sent, one token after the other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from llava_mini_cli.config import Grammar
from llava_mini_cli.engine.grammars import Grammars
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.language_model import LanguageModel
from llava_mini_cli.engine.llm.sampling import penalised
from llava_mini_cli.engine.vllm.link import VllmEnded
from llava_mini_cli.engine.vllm.messages import Counted, Drop, Group, Groups, Said, Unit
from llava_mini_cli.engine.vllm.vllm_model import VllmLanguageModel

Answer = Callable[[Group, Unit], list[Said]]


class StandIn:
    """A `Link`. What it is sent is said when it is asked, a few pieces at a time."""

    def __init__(self, answer: Answer, lives: int | None = None) -> None:
        """`lives`: how often it says something before it ends; None: for ever."""
        self.answer = answer
        self.lives = lives
        self.sent: list[Groups] = []
        self.dropped: set[int] = set()
        self.said: list[Said | Counted] = []
        self.is_closed = False
        self.at_once = 5  # pieces
        self.is_backwards = False  # the last of them first

    def send(self, message: Groups | Drop) -> None:
        if isinstance(message, Drop):
            self.dropped |= set(message.numbers)
            return
        self.sent.append(message)
        self.said += [one for group in message for unit in group.units for one in self.answer(group, unit)]

    @property
    def groups(self) -> list[Group]:
        """All that was sent."""
        return [group for groups in self.sent for group in groups]

    def take(self, seconds: float) -> list[Said | Counted]:
        if self.lives is not None:
            self.lives -= 1
            if self.lives < 0:
                raise VllmEnded("killed by SIGKILL")
        now, self.said = self.said[: self.at_once], self.said[self.at_once :]
        now = now[::-1] if self.is_backwards else now
        return [one for one in now if isinstance(one, Counted) or one.number not in self.dropped]

    def close(self) -> None:
        self.is_closed = True


class PlainAnswers:
    """Answers units with transformers' own Llama and its cache, one after the other."""

    def __init__(self, model: Any, prompts: Any, ends: frozenset[int], few: int = 3) -> None:
        """`few`: the most tokens that are told at once."""
        self.model = model
        self.ends = ends
        self.few = few
        self.grammars = Grammars(prompts, ends, model.config.vocab_size)

    @torch.inference_mode()
    def __call__(self, group: Group, unit: Unit) -> list[Said]:
        states, cache = torch.cat([group.prefix, unit.tail])[None], DynamicCache()
        tokens, found = list[int](), list[Said]()
        matcher = None if unit.grammar is None else self.grammars.matcher(Grammar(*unit.grammar))  # pyright: ignore[reportArgumentType]
        wanted: dict[int, float] = {}
        while True:
            raw = self.model(inputs_embeds=states, past_key_values=cache, use_cache=True).logits[0, -1].float()
            if not tokens and not found:
                wanted = {token: float(raw.log_softmax(-1)[token]) for token in unit.wanted}
            scores = raw
            if matcher is not None:
                mask = np.zeros((len(raw) + 31) // 32, np.uint32)
                assert matcher.fill([*self._all(found), *tokens], mask) is None
                refused = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(raw)] == 0
                scores = raw.masked_fill(torch.from_numpy(refused), -torch.inf)
            token = int(penalised(scores, [*self._all(found), *tokens], unit.penalty).argmax())
            is_end = token in self.ends
            if not is_end or unit.is_scored:
                tokens.append(token)
            is_full = len(self._all(found)) + len(tokens) >= unit.new_tokens
            if is_end or is_full:
                reason = "stop" if is_end else "length"
                return [*found, Said(unit.number, tuple(tokens), {} if found else wanted, finish=reason)]
            if len(tokens) == self.few:
                found.append(Said(unit.number, tuple(tokens), {} if found else wanted))
                tokens = []
            states = self.model.model.embed_tokens(torch.tensor([[token]]))

    @staticmethod
    def _all(found: list[Said]) -> list[int]:
        return [token for said in found for token in said.tokens]


def on_stand_in(link: StandIn, model: Any, prompts: Any, ends: frozenset[int]) -> Callable[..., LanguageModel]:
    """What makes the language model of an engine, on a stand-in."""

    def make(labels: LabelIds, grammars: Grammars) -> LanguageModel:
        return VllmLanguageModel(link, model.model, prompts, labels, grammars, ends)

    return make
