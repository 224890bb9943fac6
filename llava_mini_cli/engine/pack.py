"""The text that the questions about one medium share. No torch.

Every prompt is `text before the frames | placeholder | text after`. Prompts that agree up to and with
the placeholder share that part; behind it each has a tail of its own:

    [ shared | tail 1 | tail 2 | ... ]

A token sees the vision, the shared part and its own tail, never another tail. One pack holds all the
text that each frame of the medium is fused with.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.errors import PromptError
from llava_mini_cli.model.prompt_layouts import IMAGE_TOKEN_ID


@dataclass(frozen=True)
class Segment:
    """A stretch of packed text; it sees itself (causally) and its parent."""

    start: int
    stop: int
    parent: "Segment | None" = None  # the shared segment in front of a tail


@dataclass(frozen=True)
class PromptGroup:
    """Prompts with the same shared part: segment numbers into the pack."""

    shared: int
    tails: tuple[int, ...]
    prompts: tuple[int, ...]  # index into the request's prompts, one for each tail

    def without(self, dropped: Collection[int]) -> "PromptGroup":
        """The group without some of its prompts."""
        kept = [(tail, prompt) for tail, prompt in zip(self.tails, self.prompts, strict=True) if prompt not in dropped]
        return PromptGroup(self.shared, tuple(tail for tail, _ in kept), tuple(prompt for _, prompt in kept))


@dataclass(frozen=True)
class TextPack:
    """The packed text of one medium; equal packs have equal ids and segments."""

    ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    groups: tuple[PromptGroup, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def prompt_lengths(self) -> dict[int, int]:
        """Text tokens of each prompt by its index, the placeholder not counted."""

        def size(number: int) -> int:
            return self.segments[number].stop - self.segments[number].start

        return {
            prompt: size(group.shared) - 1 + size(tail)
            for group in self.groups
            for prompt, tail in zip(group.prompts, group.tails, strict=True)
        }

    @cached_property
    def key_ok(self) -> NDArray[np.bool_]:
        """bool `[T]`: false at padding (ids <= 0), which pre-fusion lets nobody see."""
        return np.asarray(self.ids) > 0

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """int64 `[T]`: pre-fusion position behind the vision, from 0; tails go on from their shared part.

        Padding does not advance positions; its own is -1 (the caller gives it position 1).
        """
        out = np.full(len(self), -1, dtype=np.int64)
        for segment in self.segments:
            ok = self.key_ok[segment.start : segment.stop]
            parent = segment.parent
            before = int(self.key_ok[parent.start : parent.stop].sum()) if parent else 0
            out[segment.start : segment.stop] = np.where(ok, before + np.cumsum(ok) - 1, -1)
        return out

    @cached_property
    def visible(self) -> NDArray[np.bool_]:
        """bool `[T, T]`: true where a text position (row) may see another (column); padding is never seen."""
        out = np.zeros((len(self), len(self)), dtype=bool)
        for segment in self.segments:
            rows = slice(segment.start, segment.stop)
            out[rows, rows] = np.tri(segment.stop - segment.start, dtype=bool)
            if segment.parent is not None:
                out[rows, segment.parent.start : segment.parent.stop] = True
        out &= self.key_ok  # in place: it may be as large as all that is free
        return out


NO_PROMPTS = TextPack((), (), ())


def without(groups: Sequence[PromptGroup], dropped: Collection[int]) -> tuple[PromptGroup, ...]:
    """The groups without some prompts, and without those that then have none."""
    return tuple(kept for group in groups if (kept := group.without(dropped)).prompts)


def halved(pack: TextPack) -> list[tuple[TextPack, list[int]]]:
    """Two packs with half of the prompts each, and where each of their tokens lies in `pack`; none of one prompt."""
    prompts = [prompt for group in pack.groups for prompt in group.prompts]
    half = len(prompts) // 2
    return [_part(pack, prompts[half:]), _part(pack, prompts[:half])] if half else []


def _part(pack: TextPack, dropped: Sequence[int]) -> tuple[TextPack, list[int]]:
    places: list[int] = []
    segments: list[Segment] = []

    def put(number: int, parent: Segment | None = None) -> int:
        old = pack.segments[number]
        segments.append(Segment(len(places), len(places) + old.stop - old.start, parent))
        places.extend(range(old.start, old.stop))
        return len(segments) - 1

    groups: list[PromptGroup] = []
    for group in without(pack.groups, dropped):
        shared = put(group.shared)
        groups.append(PromptGroup(shared, tuple(put(tail, segments[shared]) for tail in group.tails), group.prompts))
    return TextPack(tuple(pack.ids[place] for place in places), tuple(segments), tuple(groups)), places


def pack_prompts(prompts: Sequence[Sequence[int] | None]) -> TextPack:
    """Packs the token ids of prompts; None stands for a prompt that could not be laid out.

    Raises:
        PromptError: a prompt has no placeholder, or nothing behind it.
    """
    by_shared: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for index, ids in enumerate(prompts):
        if ids is None:
            continue
        if list(ids).count(IMAGE_TOKEN_ID) != 1:
            raise PromptError("bad_prompt", "a prompt has exactly one place for the frames")
        place = list(ids).index(IMAGE_TOKEN_ID) + 1
        if place == len(ids):
            raise PromptError("bad_prompt", "a prompt has text behind the frames")
        by_shared.setdefault(tuple(ids[:place]), []).append((index, tuple(ids[place:])))
    packed: list[int] = []
    segments: list[Segment] = []
    groups: list[PromptGroup] = []

    def put(ids: tuple[int, ...], parent: Segment | None = None) -> int:
        segments.append(Segment(len(packed), len(packed) + len(ids), parent))
        packed.extend(ids)
        return len(segments) - 1

    for shared_ids, tails in by_shared.items():
        shared = put(shared_ids)
        numbers = tuple(put(tail, segments[shared]) for _, tail in tails)
        groups.append(PromptGroup(shared, numbers, tuple(index for index, _ in tails)))
    return TextPack(tuple(packed), tuple(segments), tuple(groups))
