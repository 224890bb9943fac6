"""Pictures in pieces: by bands, in part or whole, from any raster, equal to the reference's steps to the last bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_mini_cli import pieces as module
from llava_mini_cli.bicubic import Line
from llava_mini_cli.pieces import PAD_COLOUR, ArrayRaster, PieceLayout, pieces, resized

Pixels = np.ndarray[Any, Any]


def noise(height: int, width: int, seed: int = 7) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def whole_resize(pixels: Pixels, height: int, width: int) -> Pixels:
    columns = Image.fromarray(pixels).resize((width, pixels.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(columns.resize((width, height), Image.Resampling.BICUBIC))


def whole_square(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    edge = max(height, width)
    canvas = np.full((edge, edge, 3), PAD_COLOUR, np.uint8)
    top, left = (edge - height) // 2, (edge - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def reference(pixels: Pixels, layout: PieceLayout) -> Pixels:
    """The steps of the reference, one after the other on the whole picture."""
    height, width = pixels.shape[:2]
    cut, n = [pixels], layout.splits
    if n > 1:
        down, across = max(1, height // n), max(1, width // n)
        tops = [i * down if height >= n else i * height // n for i in range(n)]
        lefts = [i * across if width >= n else i * width // n for i in range(n)]
        cut = [*(pixels[top : top + down, left : left + across] for top in tops for left in lefts), pixels]
    done: list[Pixels] = []
    for piece in cut:
        square = whole_square(piece) if layout.pad else piece
        high, wide = square.shape[:2]
        reach = int(layout.shortest_edge * max(high, wide) / min(high, wide))
        size = (layout.shortest_edge, reach) if high <= wide else (reach, layout.shortest_edge)
        small = whole_resize(np.ascontiguousarray(square), *size)
        short = [max(want - have, 0) for want, have in zip(layout.crop, small.shape[:2], strict=True)]
        edges = [((one + 1) // 2, one - (one + 1) // 2) for one in short]
        small = np.pad(small, (*edges, (0, 0)))
        top, left = ((have - want) // 2 for want, have in zip(layout.crop, small.shape[:2], strict=True))
        done.append(small[top : top + layout.crop[0], left : left + layout.crop[1]])
    return np.stack(done)


sizes = st.integers(1, 90)


@settings(max_examples=150, deadline=None)
@given(
    sizes, sizes, st.integers(1, 40), st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(1, 3),
    st.booleans(), st.sampled_from([1, 100, 1 << 20]), st.sampled_from([0, 1 << 24]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_pieces_equal_the_reference_however_they_are_made(
    height: int, width: int, edge: int, crop: tuple[int, int], n: int, pad: bool, band: int, most: int, seed: int
) -> None:
    layout = PieceLayout(edge, crop, n, pad)
    pixels = noise(height, width, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BAND_PIXELS", band)
        patch.setattr(module, "MOST_PIXELS", most)
        made = pieces(ArrayRaster(pixels), layout)
    assert made.shape == layout.shape
    np.testing.assert_array_equal(made, reference(pixels, layout))


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (40, 900), (900, 7), (336, 500), (1500, 1200)])
@pytest.mark.parametrize("in_part", [False, True])
def test_pieces_of_the_models_size(
    shape: tuple[int, int], pad: bool, in_part: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = PieceLayout(336, (336, 336), 2, pad)
    if in_part:
        monkeypatch.setattr(module, "MOST_PIXELS", 0)
    np.testing.assert_array_equal(pieces(ArrayRaster(noise(*shape)), layout), reference(noise(*shape), layout))


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.tuples(sizes, sizes), st.tuples(sizes, sizes), st.integers(0, 2**32 - 1))
def test_a_part_of_a_resize_equals_that_part_of_the_whole(
    height: int, width: int, rows: tuple[int, int], columns: tuple[int, int], seed: int
) -> None:
    pixels = noise(height, width, seed)
    whole = resized(ArrayRaster(pixels), max(rows), max(columns))
    np.testing.assert_array_equal(whole, whole_resize(pixels, max(rows), max(columns)))
    down = Line(height, max(rows), range(min(rows) - 1, max(rows)))
    across = Line(width, max(columns), range(min(columns) - 1, max(columns)))
    part = module._resized_part(ArrayRaster(pixels), down, across)
    np.testing.assert_array_equal(part, whole[min(rows) - 1 :, min(columns) - 1 :])


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_a_square_that_is_never_made_equals_one_that_is(height: int, width: int, size: int, seed: int) -> None:
    pixels = noise(height, width, seed)
    made = whole_resize(whole_square(pixels), size, size)
    np.testing.assert_array_equal(module._padded(ArrayRaster(pixels), size), made)


def test_how_many_pieces_there_are() -> None:
    assert PieceLayout(336, (336, 300)).shape == (1, 336, 300, 3)
    assert PieceLayout(336, (336, 336), 3).parts == 10


def test_bands_cover_every_row_once() -> None:
    raster = ArrayRaster(np.zeros((10, 1 << 18, 3), np.uint8))
    assert [list(rows) for rows in module.bands(raster)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert module.bands(ArrayRaster(np.zeros((2, 3 << 20, 3), np.uint8))) == [range(1), range(1, 2)]
