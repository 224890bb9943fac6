"""Questions about no medium at all, one after the other, for tasks that have such among others.

They go through the language model as text alone, as the model's own `generate` takes them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from llava_mini_cli.config import Choices, GenerationOptions
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.labels import LabelIds
from llava_mini_cli.engine.language_model import Asked, PrefillItem
from llava_mini_cli.engine.llm.branches import Branches, log_likelihoods
from llava_mini_cli.engine.llm.generate import prefill
from llava_mini_cli.engine.llm.token_decoder import end_ids
from llava_mini_cli.engine.questions import AskedAlone
from llava_mini_cli.engine.request import Answer, Failure, Likelihood
from llava_mini_cli.errors import PromptError
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID


class TextOnly:
    """Asks the model of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._model = engine.model
        self._prompts = engine.prompts
        self._labels = LabelIds(engine.prompts)
        self._ends = sorted(end_ids(engine.model))

    @torch.inference_mode()
    def write(self, question: str, generation: GenerationOptions) -> tuple[str, int, int]:
        """An answer in words, and the tokens of the prompt and of the answer. Raises `PromptError`: it does not fit."""
        ids = self._ids(question, generation.max_new_tokens)
        if not self._engine.is_whole:
            answer = self._ask(ids, AskedAlone(question, generation))
            return answer.text, ids.shape[0], len(answer.token_ids)
        settings: dict[str, Any] = {"max_new_tokens": generation.max_new_tokens}
        if generation.repetition_penalty != 1:
            settings["repetition_penalty"] = generation.repetition_penalty
        if generation.temperature > 0:
            settings |= {"do_sample": True, "temperature": generation.temperature, "top_p": generation.top_p}
            settings["top_k"] = 0
        with torch.random.fork_rng():
            torch.manual_seed(generation.seed)
            new = cast(torch.Tensor, self._model.generate(ids[None], **settings))[0].tolist()
        own = [token for token in new if token not in self._ends]
        return self._prompts.answer_text(own), ids.shape[0], len(own)

    @torch.inference_mode()
    def score(self, question: str, choices: Choices, generation: GenerationOptions) -> Mapping[str, Likelihood]:
        """The likelihood of each of some answers. Raises `PromptError`: one cannot be said, or does not fit."""
        labels = self._labels.of(choices)
        ids = self._ids(question, labels.longest)
        if not self._engine.is_whole:
            asked = AskedAlone(question, replace(generation, choice_prior=False), choices)
            return self._ask(ids, asked).choice_scores or {}
        embedded = self._model.model.embed_text(ids)
        cache, logits = prefill(self._model, [PrefillItem.of_text(embedded)])
        tree = Branches.of(0, [labels.header + own for own in labels.ids], len(labels.header))
        (found,) = log_likelihoods(self._model, cache, [tree], logits[:1], self._ends)
        if generation.choice_score == "mean":
            found = [one._replace(score=one.score / (len(own) + 1)) for one, own in zip(found, labels.ids, strict=True)]
        return dict(zip(choices, found, strict=True))

    def _ask(self, ids: torch.Tensor, question: AskedAlone) -> Answer:
        """Has a language model that is elsewhere answer. Raises `PromptError` where it does not."""
        embedded = self._model.model.embed_text(ids)
        outcome = self._engine.ask_alone(Asked(PrefillItem.of_text(embedded), (question,)))
        if isinstance(outcome, Failure):
            raise PromptError(outcome.error_type, outcome.message)
        return outcome

    def _ids(self, question: str, new: int) -> torch.Tensor:
        ids, most = self._prompts.text_ids(question), self._model.config.max_position_embeddings
        if IMAGE_TOKEN_ID in ids:
            raise PromptError("bad_prompt", "the prompt says where a picture goes, and there is none")
        if len(ids) + new > most:
            raise PromptError(
                "too_long",
                f"the prompt ({len(ids)} tokens) and {new} new tokens exceed the model's context of {most}",
            )
        return torch.tensor(ids, device=self._model.device)
