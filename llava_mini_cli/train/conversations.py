"""Checked records as training examples: ids, targets and frames, made when their turn comes.

Only answers are targets. The layout is the one that `model.prompt_layouts` builds for questions, turn after turn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.media.open import open_clip
from llava_mini_cli.model import LlavaMiniProcessor
from llava_mini_cli.model.prompt_layouts import IMAGE
from llava_mini_cli.train.answers_loss import NO_TARGET
from llava_mini_cli.train.records import Record, Turn


class TurnIds:
    """Ids and targets of whole conversations, for one tokenizer."""

    def __init__(self, processor: LlavaMiniProcessor) -> None:
        self.builder = processor.prompts()
        self.tokenizer = processor.tokenizer

    def __call__(self, turns: Sequence[Turn], has_medium: bool) -> tuple[list[int], list[int]]:
        """Ids (`IMAGE_TOKEN_ID` where the frames go) and targets (-100 outside of answers) of a conversation."""
        ids: list[int] = []
        targets: list[int] = []
        for number, turn in enumerate(turns):
            asked = self._first(turn.question, has_medium) if number == 0 else self._later(turn.question)
            said = [*self._piece(turn.answer), self._end()]
            ids += asked + said
            targets += [NO_TARGET] * len(asked) + said
        return ids, targets

    def _first(self, question: str, has_medium: bool) -> list[int]:
        if has_medium:
            return self.builder.question_ids(question or "Describe it.")
        return self.builder.prompt_ids(self.builder.prompt_text(question).replace(f"{IMAGE}\n", "", 1))

    def _later(self, question: str) -> list[int]:
        if self.builder.family == "vicuna":
            return self._piece(f"USER: {question} ASSISTANT:")
        turn = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return self._piece(text[text.index("<|start_header_id|>user") :])

    def _piece(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _end(self) -> int:
        """The token that ends an answer."""
        if self.builder.family == "vicuna":
            return self.tokenizer.eos_token_id
        return self.tokenizer.convert_tokens_to_ids("<|eot_id|>")


class ConversationData(Dataset[dict[str, Any]]):
    """Records as training examples; media are opened when asked for."""

    def __init__(self, records: Sequence[Record], processor: LlavaMiniProcessor, sampling: SamplingOptions) -> None:
        self.records = records
        self.processor = processor
        self.sampling = sampling
        self.turn_ids = TurnIds(processor)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`ids` and `targets`, int64 `[S]`, and `pixels`, float32 `[T, parts, 3, H, W]` (None for text alone)."""
        record = self.records[index]
        ids, targets = self.turn_ids(record.turns, record.path is not None)
        pixels = None if record.path is None else self._pixels(record)
        return {"ids": torch.tensor(ids), "targets": torch.tensor(targets), "pixels": pixels}

    def _pixels(self, record: Record) -> torch.Tensor:
        assert record.path is not None
        preprocessor = self.processor.preprocessor
        with open_clip(record.path, self.sampling, frame_size=self.processor.config.video_frame_size) as clip:
            frames = np.concatenate([chunk.pixels for chunk in clip])
            pixels = torch.from_numpy(frames)
            if clip.info.kind == "image":
                return preprocessor.image(pixels[0])[None]
            return preprocessor.frames(pixels)


class ConversationCollator:
    """Examples to a batch for `LlavaMiniForConditionalGeneration.forward`, padded on the right."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        fill = torch.nn.utils.rnn.pad_sequence
        ids = [example["ids"] for example in examples]
        seen = [example["pixels"] for example in examples if example["pixels"] is not None]
        counts = [0 if example["pixels"] is None else len(example["pixels"]) for example in examples]
        batch = {
            "input_ids": fill(ids, batch_first=True, padding_value=self.pad),
            "attention_mask": fill([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": fill([e["targets"] for e in examples], batch_first=True, padding_value=NO_TARGET),
        }
        if seen:
            batch["pixel_values"] = torch.cat(seen)
            batch["frame_counts"] = torch.tensor(counts)
        return batch
