"""Which pixels and which frames are taken, by exact values."""

import pytest

from llava_mini_cli.geometry import nearest_index, segment_middles


@pytest.mark.parametrize(
    ("source", "target", "index"),
    [(4, 2, [0, 2]), (2, 4, [0, 0, 1, 1]), (5, 3, [0, 1, 3]), (3, 3, [0, 1, 2]), (1, 2, [0, 0]), (7, 1, [0])],
)
def test_the_nearest_pixel(source: int, target: int, index: list[int]) -> None:
    found = nearest_index(source, target)
    assert (found.tolist(), found.dtype) == (index, "int64")


@pytest.mark.parametrize(
    ("source", "differing"), [(540, {308: 494}), (720, {119: 254, 231: 494, 238: 509}), (1080, {154: 494, 308: 989})]
)
def test_the_nearest_pixel_is_rounded_as_torch_rounds_it(source: int, differing: dict[int, int]) -> None:
    exact = [place * source // 336 for place in range(336)]
    found = nearest_index(source, 336).tolist()
    assert {place: found[place] for place in range(336) if found[place] != exact[place]} == differing


def test_the_nearest_pixel_lies_inside() -> None:
    for source in range(1, 400):
        assert nearest_index(source, 336).max() <= source - 1


@pytest.mark.parametrize(
    ("total", "count", "frames"),
    [
        (10, 3, [1, 4, 7]),
        (4, 4, [0, 1, 2, 2]),
        (100, 4, [12, 37, 62, 86]),
        (1, 1, [0]),
        (7, 2, [1, 4]),
        (2, 3, [0, 0, 1]),
    ],
)
def test_the_middle_frame_of_each_segment(total: int, count: int, frames: list[int]) -> None:
    found = segment_middles(total, count)
    assert (found.tolist(), found.dtype) == (frames, "int64")
