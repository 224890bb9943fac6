"""Several questions about one medium packed into one sequence, and several media into one batch: indices only.

Each question sees the vision, the shared beginning of the prompt and itself, at the positions it would have
alone, so that packing changes the cost and not the result (a test asserts it). `packed` runs the model on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from llava_mini_cli.demo.questions import Question
from llava_mini_cli.model.prompts import IMAGE_TOKEN_ID, PromptBuilder
from llava_mini_cli.train.demo_data import Medium
from llava_mini_cli.train.fusion_truth import named_truth
from llava_mini_cli.train.pixels import normalised

AnswerWeights = Callable[[int], Mapping[str, float]]
LENGTH_RATIO = 1.25  # of the longest to the shortest row of one batch of the LLM
PADDING = -1  # segment of a padded position; 0 is what all questions share, 1, 2, ... are the questions


@dataclass
class Row:
    """One sequence under construction: where each position's embedding comes from, its segment and its position."""

    source: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)

    column: list[int] = field(default_factory=list)  # where a token is predicted ...
    token: list[int] = field(default_factory=list)  # ... which one ...
    weight: list[float] = field(default_factory=list)  # ... and how much it counts

    def extend(self, source: Sequence[int], segment: int, first: int) -> None:
        self.source += source
        self.segment += [segment] * len(source)
        self.position += range(first, first + len(source))


@dataclass(frozen=True)
class TextBlock:
    """Prompt texts of some frames, padded: a batch for pre-fusion."""

    ids: torch.Tensor  # int64 [R, S]
    segment: torch.Tensor  # int64 [R, S]
    position: torch.Tensor  # int64 [R, S], behind the vision
    target: torch.Tensor  # int64 [R, S] into the batch's flat fused texts; 0 for padding
    frame: torch.Tensor  # int64 [R] which frame each row is fused with
    share: torch.Tensor  # float32 [R] its share of the mean over the medium's frames


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


def by_length(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows in groups of similar length, so that little is padded."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.source)):
        if not groups or len(row.source) > LENGTH_RATIO * len(groups[-1][0].source):
            groups.append([])
        groups[-1].append(row)
    return groups


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Ragged rows as int64 `[len(rows), longest]`."""
    table = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return torch.from_numpy(table)


def alike(_: int) -> Mapping[str, float]:
    """Every answer counts the same."""
    return {}


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

    def __call__(self, media: Sequence[Medium]) -> dict[str, Any]:
        """Tensors for `packed.PackedTrainer.forward`."""
        images = [m for m in media if len(m.order) == 1]
        videos = [m for m in media if len(m.order) > 1]
        ordered = [*images, *videos]
        frames_before = np.cumsum([0] + [len(m.frames) for m in ordered]).tolist()
        texts = [self._text_row(m) for m in ordered]
        texts_before = np.cumsum([1] + [len(row.source) for row in texts]).tolist()
        blocks: list[TextBlock] = []
        for group in (range(len(images)), range(len(images), len(ordered))):
            if len(group):
                blocks.append(self._block(ordered, texts, frames_before, texts_before, group))
        first_token = texts_before[-1]
        first_target = first_token + frames_before[-1] * self.frame_tokens
        rows, answers = self._llm_rows(ordered, texts_before, frames_before, first_token, first_target)
        total = sum(sum(row.weight) for row in rows)
        return {
            "pixel_values": normalised(np.concatenate([m.frames for m in ordered])),
            "blocks": [vars(block) for block in blocks],
            "text_count": torch.tensor(first_token),
            "answer_ids": torch.tensor(answers, dtype=torch.int64),
            "rows": [self._group(group, total) for group in by_length(rows)],
            "truth": self._truth(ordered, texts_before),
        }

    def _text_row(self, medium: Medium) -> Row:
        """The prompt's beginning and every question, as pre-fusion reads them; `source` holds ids."""
        row = Row()
        row.extend(self.prompts.before, 0, self.vision_length)
        first = self.vision_length + len(self.prompts.before)
        for number, question in enumerate(medium.questions, start=1):
            row.extend(self.prompts.after(question.text), number, first)
        return row

    def _block(
        self, media: list[Medium], texts: list[Row], frames: list[int], flat: list[int], group: range
    ) -> TextBlock:
        rows = [(m, frame, share) for m in group for frame, share in media[m].text_frames.items()]
        return TextBlock(
            ids=padded([texts[m].source for m, _, _ in rows], 1),
            segment=padded([texts[m].segment for m, _, _ in rows], PADDING),
            position=padded([texts[m].position for m, _, _ in rows], 0),
            target=padded([range(flat[m], flat[m + 1]) for m, _, _ in rows], 0),
            frame=torch.tensor([frames[m] + frame for m, frame, _ in rows]),
            share=torch.tensor([share for _, _, share in rows], dtype=torch.float32),
        )

    def _truth(self, media: list[Medium], texts: list[int]) -> dict[str, torch.Tensor]:
        """What pre-fusion is asked (`fusion_truth`): every frame's places, and where images' questions end."""
        named: list[Question] = []
        ends: list[int] = []
        for index, medium in enumerate(media):
            at = texts[index] + len(self.prompts.before)
            for question in medium.questions:
                at += len(self.prompts.after(question.text))
                if question.about:
                    named.append(question)
                    ends.append(at - 1)
        return {
            "cells": torch.from_numpy(np.concatenate([medium.cells for medium in media])),
            "ends": torch.tensor(ends, dtype=torch.int64),
            "named": torch.from_numpy(named_truth(named)),
        }

    def _frame_sources(self, medium: Medium, first_token: int, before: int) -> list[int]:
        """Where the tokens of a medium's frames stand, in time order; `before`: frames of earlier media."""
        each = self.frame_tokens
        return [first_token + (before + frame) * each + i for frame in medium.order for i in range(each)]

    def _llm_rows(
        self, media: list[Medium], texts: list[int], frames: list[int], first_token: int, first_target: int
    ) -> tuple[list[Row], list[int]]:
        """The LLM's sequences as indices into [padding, fused texts, frame tokens, answers], and the answers' ids."""
        rows: list[Row] = []
        answers: list[int] = []
        for index, medium in enumerate(media):
            row, weights = Row(), self.weights(medium.index)
            begin = len(self.prompts.before)
            row.extend(range(texts[index], texts[index] + begin), 0, 0)
            row.extend(self._frame_sources(medium, first_token, frames[index]), 0, begin)
            text = texts[index] + begin
            first = len(row.source)
            for number, question in enumerate(medium.questions, start=1):
                asked, answer = self.prompts.after(question.text), self.prompts.answer(question.answer)
                row.extend(range(text, text + len(asked)), number, first)
                row.column += range(len(row.source) - 1, len(row.source) - 1 + len(answer))
                row.token += answer
                row.weight += [weights.get(question.kind, 1.0) / len(answer)] * len(answer)
                said = first_target + len(answers)
                row.extend(range(said, said + len(answer) - 1), number, first + len(asked))
                answers += answer[:-1]
                text += len(asked)
            rows.append(row)
        return rows, answers

    def _group(self, rows: list[Row], total: float) -> dict[str, torch.Tensor]:
        """Rows as one padded batch, with its targets; weights of the whole batch (`total`) sum to 1."""
        return {
            "source": padded([row.source for row in rows], 0),
            "segment": padded([row.segment for row in rows], PADDING),
            "position": padded([row.position for row in rows], 0),
            "row": torch.tensor([number for number, row in enumerate(rows) for _ in row.column]),
            "column": torch.tensor([column for row in rows for column in row.column]),
            "token": torch.tensor([token for row in rows for token in row.token]),
            "weight": torch.tensor([weight / total for row in rows for weight in row.weight]),
        }
