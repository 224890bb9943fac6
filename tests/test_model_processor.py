"""The processor: pictures, videos and texts in, padded batches out, and ids back to text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import byte_tokenizer, tiny_config

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.model.preprocess import Preprocessor
from llava_mini_cli.model.processor import LlavaMiniProcessor, load_tokenizer, pixels_of
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID

MEAN, STD = (0.5, 0.25, 0.5), (0.5, 0.25, 1.0)


@pytest.fixture(scope="module")
def processor() -> LlavaMiniProcessor:
    return LlavaMiniProcessor(byte_tokenizer(), Preprocessor(14, (14, 14), MEAN, STD, frame_size=14), tiny_config())


def picture(value: int = 0) -> np.ndarray[Any, Any]:
    return np.full((14, 14, 3), value, np.uint8)


def test_images_and_texts_make_a_batch(processor: LlavaMiniProcessor) -> None:
    batch = processor(images=[picture(0), picture(255)], text=["Hm?", "What is it?"])
    lengths = [len(processor.prompts().question_ids(text)) for text in ("Hm?", "What is it?")]
    assert batch["input_ids"].shape == (2, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["attention_mask"][0, 0] == 0  # padded on the left
    assert batch["input_ids"][0, 0] == processor.pad_token_id == byte_tokenizer().pad_token_id
    assert batch["frame_counts"].tolist() == [1, 1]
    assert batch["pixel_values"].shape == (2, 1, 3, 14, 14)
    assert batch["pixel_values"][:, 0, :, 0, 0].tolist() == [[-1, -1, -0.5], [1, 3, 0.5]]
    right = processor(images=[picture(), picture()], text=["Hm?", "What is it?"], padding_side="right")
    assert right["attention_mask"][0, -1] == 0
    assert right["attention_mask"][0, 0] == 1


def test_one_or_many_videos_and_images_of_every_kind(processor: LlavaMiniProcessor) -> None:
    video = np.stack([picture(n) for n in range(3)])
    for videos in (video, [*video], [video], [[*video]], video[None]):
        batch = processor(videos=videos, text="What?")
        assert batch["frame_counts"].tolist() == [3]
        assert batch["pixel_values"].shape == (3, 1, 3, 14, 14)
    two = processor(videos=[video, video[:1]], text=["a", "b"])
    assert two["frame_counts"].tolist() == [3, 1]
    for images in (picture(), [picture()], picture()[None], Image.fromarray(picture()), torch.from_numpy(picture())):
        assert processor(images=images, text="What?")["frame_counts"].tolist() == [1]
    assert processor(images=video, text=["a", "b", "c"])["frame_counts"].tolist() == [1, 1, 1]


def test_text_alone_has_no_place_for_frames(processor: LlavaMiniProcessor) -> None:
    batch = processor(text="What?")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert IMAGE_TOKEN_ID not in batch["input_ids"]
    assert b"What?" in bytes(byte_tokenizer().decode(batch["input_ids"][0]), "utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": picture()}, "give a text"),
        ({"text": "a", "images": picture(), "videos": [picture()]}, "but not both"),
        ({"text": "a", "return_tensors": "np"}, "must be 'pt', not 'np'"),
        ({"text": ["a", "b"], "images": picture()}, "2 texts for 1 images"),
        ({"text": "a", "images": picture().astype(np.float32)}, "not torch.float32"),
        ({"text": "a", "images": picture()[..., :2]}, r"\[14, 14, 2\]"),
        ({"text": "a", "images": picture()[0, 0]}, r"\[3\]"),
        ({"text": "a", "videos": []}, "at least one frame"),
    ],
)
def test_what_cannot_be_made_a_batch(processor: LlavaMiniProcessor, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        processor(**arguments)


def test_grey_pictures_get_three_channels() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert pixels_of(grey).tolist() == np.stack([grey] * 3, -1).tolist()
    assert pixels_of(Image.fromarray(grey)).tolist() == np.stack([grey] * 3, -1).tolist()


def test_ids_are_read_as_text(processor: LlavaMiniProcessor) -> None:
    ids = byte_tokenizer()(" two cats ", add_special_tokens=False).input_ids
    assert processor.decode([*ids, 257]) == "two cats"
    assert processor.decode(torch.tensor(ids)) == "two cats"
    assert processor.batch_decode(torch.tensor([ids, ids[::-1]]), prompt_layout="reference") == ["two cats", "stac owt"]


def test_without_a_padding_token_the_end_token_pads() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    processor = LlavaMiniProcessor(tokenizer, Preprocessor(14, (14, 14), MEAN, STD), tiny_config())
    assert processor.pad_token_id == tokenizer.eos_token_id


def test_what_is_saved_is_what_is_read(processor: LlavaMiniProcessor, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    odd = Preprocessor(14, (12, 10), MEAN, STD, 0.5, frame_size=336)
    LlavaMiniProcessor(processor.tokenizer, odd, processor.config).save_pretrained(folder)
    fields = json.loads((folder / "preprocessor_config.json").read_text())
    assert Preprocessor.from_fields(fields, folder) == odd
    assert load_tokenizer(folder).get_vocab() == byte_tokenizer().get_vocab()


def test_settings_of_the_old_style_and_missing_ones() -> None:
    fields = {"size": 7, "image_mean": [0], "image_std": [1]}
    assert Preprocessor.from_fields(fields, Path("x.json")) == Preprocessor(7, (7, 7), (0,), (1,))
    assert Preprocessor.from_fields({**fields, "crop_size": 5}, Path("x.json")).crop == (5, 5)
    with pytest.raises(CheckpointError, match=r"x.json: no field 'image_std'"):
        Preprocessor.from_fields({"size": 7, "image_mean": [0]}, Path("x.json"))


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path)
