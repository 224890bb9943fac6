"""Pixels and frame numbers equal the reference's; every way to resize equals Pillow's; no shape is too odd."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_cases import FULL, OWN
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_mini_cli.errors import CheckpointError
from llava_mini_cli.geometry import nearest_index, segment_middles
from llava_mini_cli.model.preprocess import Preprocessor, centre_crop, split, squash
from llava_mini_cli.model.resize import resize_bicubic, resize_bicubic_torch
from llava_mini_cli.pieces import PAD_COLOUR

NUMBERS: dict[str, Any] = json.loads((OWN / "numbers.json").read_text(encoding="utf-8"))
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def preprocessor(**settings: Any) -> Preprocessor:
    return Preprocessor(336, (336, 336), MEAN, STD, 0.00392156862745098, **settings)


def as_u8(pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    """Normalised pixels back to 8 bits, `[..., H, W, 3]`; exact, since normalising is one-to-one."""
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in (MEAN, STD))
    grey = ((pixels.double() * std + mean) * 255).round()
    return grey.byte().movedim(-3, -1).numpy()


@pytest.mark.parametrize("name", NUMBERS["preprocess"])
def test_pixels_equal_the_reference(name: str) -> None:
    want = NUMBERS["preprocess"][name]
    raw = np.load(OWN / "preprocess.npz")
    if name.startswith("video"):
        pixels = preprocessor().frames(torch.from_numpy(raw[f"{name}.frames"]))[:, 0]
    else:
        size, aspect, _ = name.split(".")
        pixels = preprocessor(pad=aspect == "pad").image(torch.from_numpy(raw[f"raw.{size}"]))
    assert list(pixels.shape) == want["shape"]
    assert pixels.double().sum().item() == pytest.approx(want["sum_f64"], abs=1e-6)
    u8 = np.ascontiguousarray(as_u8(pixels).reshape(want["u8_shape"]))
    assert hashlib.sha256(u8).hexdigest() == want["sha256"]


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of reference numbers is not here")
def test_every_stored_picture_equals_the_reference() -> None:
    folder = FULL / "preprocess"
    entries = json.loads((folder / "manifest.json").read_text())["entries"]
    raw, u8 = np.load(folder / "raw.npz"), np.load(folder / "u8.npz")
    for name, entry in entries.items():
        if name.startswith("video"):
            pixels = preprocessor().frames(torch.from_numpy(raw[f"{name}.frames"]))[:, 0]
        else:
            size, aspect, n = name.split(".")
            settings = {"pad": aspect == "pad", "splits": int(n[1:])}
            pixels = preprocessor(**settings).image(torch.from_numpy(raw[f"raw.{size}"]))
        assert np.array_equal(as_u8(pixels).reshape(u8[f"{name}.u8"].shape), u8[f"{name}.u8"]), name
        assert pixels.double().sum().item() == pytest.approx(entry["sum_f64"], abs=1e-6), name


def test_frame_numbers_equal_the_reference() -> None:
    for entry in NUMBERS["frame_index_table"]:
        count = min(entry["total"], int(entry["total"] // entry["fps"]))
        if count:
            assert segment_middles(entry["total"], count).tolist() == entry["idx"]
    for entry in NUMBERS["explicit_counts"]:
        assert segment_middles(entry["total"], entry["count"]).tolist() == entry["idx"]


def test_nearest_index_is_torch_nearest() -> None:
    for edge in (1, 45, 77, 90, 240, 333, 337, 350, 360, 480, 540, 672, 720, 1080, 1920, 2160, 3840):
        line = torch.arange(edge, dtype=torch.float32).reshape(1, 1, edge)
        want = torch.nn.functional.interpolate(line, size=336, mode="nearest").flatten().long()
        assert torch.equal(torch.from_numpy(nearest_index(edge, 336)), want), edge


sizes = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_torch_resize_equals_pillow(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    image = torch.from_numpy(pixels)
    assert torch.equal(resize_bicubic_torch(image, rows, columns), resize_bicubic(image, rows, columns))


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("shape", [(1, 300_000), (300_000, 1)])
def test_a_very_long_thin_picture_fits_the_memory(shape: tuple[int, int], pad: bool) -> None:
    image = torch.full((*shape, 3), 200, dtype=torch.uint8)
    pixels = as_u8(preprocessor(pad=pad).image(image))
    assert pixels.shape == (1, 336, 336, 3)
    if not pad:  # the middle of the picture, enlarged
        assert (pixels == 200).all()
    else:  # a thread in the middle of the colour around it, thinner than a pixel can show
        assert np.abs(pixels.astype(int) - PAD_COLOUR).max() <= 1


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("n", [2, 3])
def test_a_picture_smaller_than_its_pieces_has_them_all(shape: tuple[int, int], n: int, pad: bool) -> None:
    image = torch.arange(shape[0] * shape[1] * 3).byte().reshape(1, *shape, 3)
    pieces = split(image, n)
    height, width = (max(1, edge // n) for edge in shape)
    assert [tuple(piece.shape[1:3]) for piece in pieces] == [(height, width)] * n * n + [shape]
    assert torch.equal(pieces[0], image[:, :height, :width])
    rows, columns = ((n - 1) * edge // n if edge < n else (n - 1) * (edge // n) for edge in shape)
    assert torch.equal(pieces[-2], image[:, rows : rows + height, columns : columns + width])
    assert preprocessor(splits=n, pad=pad).image(image[0]).shape == (n * n + 1, 3, 336, 336)


def test_squash_leaves_frames_of_the_right_size_alone() -> None:
    frames = torch.randint(0, 256, (2, 336, 336, 3)).byte()
    assert squash(frames, 336) is frames


def test_split_drops_the_remainder_and_ends_with_the_whole() -> None:
    image = torch.arange(7 * 5 * 3).byte().reshape(1, 5, 7, 3)
    pieces = split(image, 2)
    assert [tuple(piece.shape[1:3]) for piece in pieces] == [(2, 3)] * 4 + [(5, 7)]
    assert torch.equal(pieces[3], image[:, 2:4, 3:6])


def test_centre_crop_fills_with_black() -> None:
    cropped = centre_crop(torch.full((1, 2, 3, 3), 9, dtype=torch.uint8), 4, 3)
    assert cropped[0, :, 0, 0].tolist() == [0, 9, 9, 0]


def test_another_resampling_is_refused() -> None:
    fields = {"size": 2, "image_mean": [0], "image_std": [1], "resample": 2}
    with pytest.raises(CheckpointError, match="resample 2"):
        Preprocessor.from_fields(fields, Path("x.json"))
