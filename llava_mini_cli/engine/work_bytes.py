"""How much memory a model's work takes beside its weights, and the bounds of a run that follow from what there is.

Counted from the configuration. Knows no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

TEXT = 128  # positions of prompts beside a frame, and of answers, that are counted before a question is known
MEDIA_BYTES = 512 << 20, 64 << 20  # most and least of decoded frames and their decoders at once
CACHE_BYTES = 4 << 30, 64 << 20  # most and least of keys and values at once, on a CPU
CHUNK_FRAMES = 8  # encoded at once on a CPU, where there is memory for it
_PACKED_ROWS_BYTES = 512 * 16  # beside each feature of a packed layer: rows that are rounded at once

# Of the numbers that a position takes on its way through a Llama layer, as measured (docs/engine.md): gate, up, and
# a copy of one in the order that a library of products likes; hidden states and what attention makes of them.
_MLP_WIDTHS, _HIDDEN_WIDTHS, _TOWER_WIDTHS = 3.0, 4.5, 12.5
_SHARE_USED = 0.9  # of what is left beside the weights: allocators keep some of what was freed
_SHARE_FOR_WORK = 0.5  # of it, for the usual piece of work
_SHARE_FOR_CACHE = 0.3
_SHARE_FOR_MEDIA = 0.1


@dataclass(frozen=True)
class Sizes:
    """The widths of a model, as far as memory depends on them."""

    width: int
    inner: int
    keys: int  # width of the keys of one position in one layer; values are as wide
    layers: int
    vocabulary: int
    positions: int  # of vision that a frame takes in pre-fusion
    tower_positions: int  # of all pictures that CLIP sees of a frame
    tower_width: int
    pixels: int  # of those pictures

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From the fields of a configuration, `vision_config` among them.

        Raises:
            LookupError, TypeError, ValueError, ArithmeticError: it is none.
        """
        heads, vision = fields["num_attention_heads"], fields["vision_config"]
        head = fields.get("head_dim") or fields["hidden_size"] // heads
        pieces, patches = fields.get("resolution_ratio", 1) ** 2, (vision["image_size"] // vision["patch_size"]) ** 2
        pictures = pieces + 1 if pieces > 1 else 1
        return cls(
            width=fields["hidden_size"],
            inner=fields["intermediate_size"],
            keys=head * (fields.get("num_key_value_heads") or heads),
            layers=fields["num_hidden_layers"],
            vocabulary=fields["vocab_size"],
            positions=pictures * patches + fields.get("compressor_size", 1) ** 2,
            tower_positions=pictures * (patches + 1),
            tower_width=vision["hidden_size"],
            pixels=pictures * vision["image_size"] ** 2,
        )


@dataclass(frozen=True)
class Work:
    """The bytes that work takes beside the weights, in one number format."""

    position: int  # of a position on its way through a layer
    tower_frame: int  # of a frame on its way through the vision tower
    frame_positions: int
    cached: int  # of a position's keys and values in all layers
    packed_rows: int  # of rows on their way into products of packed weights

    @classmethod
    def of(cls, sizes: Sizes, number_bytes: int, *, is_packed: bool) -> Self:
        """Args: is_packed: the linear layers hold their weights in fewer bits."""
        return cls(
            position=int(number_bytes * (_MLP_WIDTHS * sizes.inner + _HIDDEN_WIDTHS * sizes.width)),
            tower_frame=int(number_bytes * (_TOWER_WIDTHS * sizes.tower_positions * sizes.tower_width))
            + 12 * sizes.pixels,
            frame_positions=sizes.positions,
            cached=2 * sizes.layers * sizes.keys * number_bytes,
            packed_rows=_PACKED_ROWS_BYTES * (sizes.inner + sizes.width) if is_packed else 0,
        )

    def encoding(self, frames: int, text: int) -> int:
        """Of so many frames at once, each with so many positions of text, whose mask is a number for each pair."""
        length = self.frame_positions + text
        return max(frames * self.tower_frame, frames * length * self.position + 5 * text * length) + self.packed_rows

    def prefilling(self, at_once: int, kept: int) -> int:
        """Of positions that go through the layers at once, and of the keys and values of all that are kept."""
        return at_once * self.position + kept * self.cached + self.packed_rows


@dataclass(frozen=True)
class Bounds:
    """The bounds of a run that follow from what is left beside the weights."""

    chunk_frames: int
    cache_bytes: int
    media_bytes: int
    work_bytes: int | None  # of keys and values and a piece of work; None: nobody knows how much there is


def bounds(left: int | None, work: Work, batch_size: int | None) -> Bounds:
    """Within the usual bounds, and never below what a single question about a picture needs.

    Args:
        left: bytes that this process may still have beside the weights; None: nobody knows.
        batch_size: frames that the user asked for.
    """
    if left is None:
        return Bounds(batch_size or CHUNK_FRAMES, CACHE_BYTES[0], MEDIA_BYTES[0], None)
    media_bytes = _within(int(left * _SHARE_FOR_MEDIA), MEDIA_BYTES)
    of_frame = work.encoding(1, TEXT)
    return Bounds(
        chunk_frames=batch_size or max(1, min(CHUNK_FRAMES, int(left * _SHARE_FOR_WORK) // of_frame)),
        cache_bytes=_within(int(left * _SHARE_FOR_CACHE), CACHE_BYTES),
        media_bytes=media_bytes,
        work_bytes=max(int(left * _SHARE_USED) - media_bytes, of_frame + 2 * TEXT * work.cached),
    )


def _within(size: int, most_and_least: tuple[int, int]) -> int:
    most, least = most_and_least
    return max(least, min(most, size))
