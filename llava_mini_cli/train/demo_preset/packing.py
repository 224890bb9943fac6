"""Several questions about one medium packed into one sequence, and several media into one batch: indices only.

Each question sees the vision, the shared beginning of the prompt and itself, at the positions it would have
alone, so that packing changes the cost and not the result (a test asserts it). `packed_model` runs the model on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from llava_mini_cli.demo.image_questions import DemoQuestion
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID, PromptBuilder
from llava_mini_cli.train.demo_preset.demo_data import RenderedMedium
from llava_mini_cli.train.demo_preset.fusion_truth import background_truth, named_truth
from llava_mini_cli.train.demo_preset.pixels import normalised
from llava_mini_cli.train.demo_preset.sequences import Sequences

AnswerWeights = Callable[[int], Mapping[str, float]]


class PromptIds:
    """Ids of the prompt layout that the model is trained on, cut at the frames."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.builder = PromptBuilder(tokenizer)
        self.after = lru_cache(maxsize=200_000)(self._after)
        self.answer = lru_cache(maxsize=200_000)(self._answer)
        ids = self.builder.question_ids("x")
        self.before: tuple[int, ...] = tuple(ids[: ids.index(IMAGE_TOKEN_ID)])

    def _after(self, question: str) -> tuple[int, ...]:
        ids = self.builder.question_ids(question)
        return tuple(ids[ids.index(IMAGE_TOKEN_ID) + 1 :])

    def _answer(self, answer: str) -> tuple[int, ...]:
        ids = self.tokenizer(answer, add_special_tokens=False).input_ids
        return (*ids, self.tokenizer.eos_token_id)


def alike(_: int) -> Mapping[str, float]:
    """No weights: every answer counts the same."""
    return {}


@dataclass(frozen=True)
class Texts:
    """The place of a medium's texts in the flat list of all texts."""

    begin: int
    questions: tuple[int, ...]  # their lengths, in order, behind the prompt's beginning


class Packer:
    """Media to one batch: the collator of stage 2.

    Args:
        prompts: the prompt layout.
        vision_length: positions of one frame in pre-fusion (patches and compressed tokens).
        frame_tokens: positions of one frame in the LLM.
        weights: how much an answer of each kind counts for the medium of an index; 1 where a kind is not named.
    """

    def __init__(
        self, prompts: PromptIds, vision_length: int, frame_tokens: int = 1, weights: AnswerWeights | None = None
    ) -> None:
        self.prompts = prompts
        self.vision_length = vision_length
        self.frame_tokens = frame_tokens
        self.weights = weights or alike

    def __call__(self, media: Sequence[RenderedMedium]) -> dict[str, Any]:
        """Tensors for `PackedTrainer.forward`."""
        ids: list[int] = []
        texts: list[Texts] = []
        for medium in media:
            asked = [self.prompts.after(question.text) for question in medium.questions]
            texts.append(Texts(len(ids), tuple(len(one) for one in asked)))
            ids += self.prompts.before
            for one in asked:
                ids += one
        return {
            "pixel_values": normalised(np.concatenate([medium.frames for medium in media])),
            "text_ids": torch.tensor(ids, dtype=torch.int64),
            "fusion": self._fusion(media, texts),
            "llm": self._llm(media, texts, len(ids)),
            "truth": self._truth(media, texts),
        }

    def _question_places(self, lengths: Sequence[int], begin: int) -> list[Sequence[int]]:
        """Consecutive ranges of these lengths."""
        ends = np.cumsum([begin, *lengths]).tolist()
        return [range(first, last) for first, last in pairwise(ends)]

    def _fusion(self, media: Sequence[RenderedMedium], texts: list[Texts]) -> dict[str, Any]:
        """Pre-fusion's sequences: tokens are every frame's vision, then the texts of every frame that has some.

        Returns:
            `target` int64 `[S]`: which of the flat texts each such text token is; `share` float32 `[S]`, of its
            frame in the medium's mean; `position` int64 `[F * vision_length + S]`; and the layout.
        """
        vision, begin = self.vision_length, len(self.prompts.before)
        frames = sum(len(medium.frames) for medium in media)
        sequences = Sequences()
        position = [*range(vision)] * frames
        target: list[int] = []
        share: list[float] = []
        first = 0
        for medium, text in zip(media, texts, strict=True):
            length = begin + sum(text.questions)
            for frame in range(len(medium.frames)):
                seen = range((first + frame) * vision, (first + frame + 1) * vision)
                if frame not in medium.text_frames:
                    sequences.add(seen, [])
                    continue
                at = len(position)
                sequences.add([*seen, *range(at, at + begin)], self._question_places(text.questions, at + begin))
                target += range(text.begin, text.begin + length)
                share += [medium.text_frames[frame]] * length
                position += range(vision, vision + begin)
                for one in text.questions:
                    position += range(vision + begin, vision + begin + one)
            first += len(medium.frames)
        return {
            "target": torch.tensor(target),
            "share": torch.tensor(share, dtype=torch.float32),
            "position": torch.tensor(position),
            **sequences.layout(len(position)),
        }

    def _llm(self, media: Sequence[RenderedMedium], texts: list[Texts], count: int) -> dict[str, Any]:
        """The LLM's sequences: tokens as indices into [texts, frame tokens, answers], and the answers.

        Returns:
            `source` and `position`, int64 `[N]`; `answer_ids` int64 `[A]`, what is read of the answers; `at` int64
            `[M]`, the tokens where something is predicted, `token`, what, and `weight`, how much it counts (sum 1);
            and the layout.
        """
        begin, each = len(self.prompts.before), self.frame_tokens
        frames = sum(len(medium.frames) for medium in media)
        sequences = Sequences()
        source: list[int] = []
        position: list[int] = []
        said: list[int] = []
        at: list[int] = []
        token: list[int] = []
        weight: list[float] = []
        earlier = 0
        for medium, text in zip(media, texts, strict=True):
            weights, start = self.weights(medium.index), len(source)
            source += range(text.begin, text.begin + begin)
            source += [count + (earlier + frame) * each + i for frame in medium.order for i in range(each)]
            shared = len(source) - start
            before, gap = begin + medium.gap[0] * each, medium.gap[1]
            position += [*range(before), *range(before + gap, shared + gap)]
            own: list[Sequence[int]] = []
            places = self._question_places(text.questions, text.begin + begin)
            for question, asked in zip(medium.questions, places, strict=True):
                answer, first = self.prompts.answer(question.answer), len(source)
                source += asked
                at += range(len(source) - 1, len(source) - 1 + len(answer))
                source += range(count + frames * each + len(said), count + frames * each + len(said) + len(answer) - 1)
                said += answer[:-1]
                own.append(range(first, len(source)))
                position += range(shared + gap, shared + gap + len(own[-1]))
                token += answer
                weight += [weights.get(question.kind, 1.0) / len(answer)] * len(answer)
            sequences.add(range(start, start + shared), own)
            earlier += len(medium.frames)
        total = sum(weight)
        return {
            "source": torch.tensor(source),
            "position": torch.tensor(position),
            "answer_ids": torch.tensor(said, dtype=torch.int64),
            "at": torch.tensor(at),
            "token": torch.tensor(token),
            "weight": torch.tensor([one / total for one in weight]),
            **sequences.layout(len(source)),
        }

    def _truth(self, media: Sequence[RenderedMedium], texts: list[Texts]) -> dict[str, torch.Tensor]:
        """Answers that pre-fusion owes (`fusion_truth`): every frame's places, and the ends of images' questions."""
        named: list[DemoQuestion] = []
        ends: list[int] = []
        for medium, text in zip(media, texts, strict=True):
            places = self._question_places(text.questions, text.begin + len(self.prompts.before))
            for question, asked in zip(medium.questions, places, strict=True):
                if question.about or question.kind == "background":
                    named.append(question)
                    ends.append(asked[-1])
        return {
            "cells": torch.from_numpy(np.concatenate([medium.cells for medium in media])),
            "ends": torch.tensor(ends, dtype=torch.int64),
            "named": torch.from_numpy(named_truth(named)),
            "background": torch.from_numpy(background_truth(named)),
        }
