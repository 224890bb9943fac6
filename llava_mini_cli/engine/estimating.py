"""Estimates of a model's work on this machine, measured in a few seconds without loading it.

Requests of some sizes are measured (`overhead.py`), and their differences are the seconds of each piece of work. Of a
small model they are measured whole; of others products with weights are left out and counted (`flops.py`), and take
what products of one shape were measured to take (`rates.py`). Loading is what programs and tokenizers take, what has to
be read from the disk, and what is converted or packed on the way.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import torch

from llava_mini_cli.config import WeightFormat
from llava_mini_cli.engine import flops
from llava_mini_cli.engine.estimate import TAIL_TOKENS, Estimate
from llava_mini_cli.engine.fit import NUMBER_BYTES, Need, StoredTensor
from llava_mini_cli.engine.flops import WeightProduct
from llava_mini_cli.engine.overhead import VALUE, Pieces
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear
from llava_mini_cli.engine.rates import Int8Kernel, Rates
from llava_mini_cli.engine.timed_engine import Texts
from llava_mini_cli.model.configuration import LlavaMiniConfig

TEXTS = Texts(shared=36, tail=TAIL_TOKENS)  # tokens of an ordinary prompt
SEVERAL, LONG = 9, 256  # questions and positions whose difference to one tells of each
TWO_VIDEOS = 8, 16  # frames whose difference tells of one: as many as are encoded at once, and twice as many
TWO_SHORT = 1, 2  # where a frame takes so long that nothing is gained by several at once
STEPS, FEW_STEPS = 64, 8  # tokens behind the first of an answer, and where a picture takes long
LONG_S = 0.25  # seconds of a picture from which on it does
SAMPLE_ELEMENTS = 1 << 22  # of a weight that is converted or packed for its time
SAMPLE_BYTES, SAMPLES = 1 << 20, 64  # read of the files in places

Products = list[WeightProduct]
Seconds = Callable[[Products], float]


def estimate(
    config: LlavaMiniConfig, kind: WeightFormat, rest: WeightFormat, rates: Rates | None, pieces: Pieces, load: float
) -> Estimate | None:
    """The estimate of one format; None where its products were not measured.

    Args:
        rest: the format of everything but linear layers, where `kind` is one of fewer bits.
        rates: of products of the model's commonest shape; None: a small model, whose pieces have their products.
        pieces: of the model in `rest`, or with their products in `kind`.
        load: seconds that loading takes.
    """
    if rates is not None and (rates.seconds(kind, 1) is None or rates.seconds(rest, 1) is None):
        return None

    def products(work: Products) -> float:
        if rates is None:
            return 0.0
        return sum(
            one.times * (rates.seconds(kind if one.is_packed else rest, one.rows, one.elements) or 0.0) for one in work
        )

    def prefilled(frames: int, questions: int) -> float:
        positions = TEXTS.shared - 1 + frames * config.vision_tokens_per_frame + questions * TEXTS.tail
        return products(flops.language_model(config, positions, questions))

    def request(frames: int, questions: int, tokens: int) -> float:
        """Seconds of a picture, or of a video, with its questions and answers."""
        seen = flops.tower(config, 1) + flops.projection(config, 1)
        seen += flops.prefusion(config, 1, TEXTS.shared + questions * TEXTS.tail)
        steps = (tokens - 1) * products(flops.language_model(config, questions, questions))
        return (
            pieces.request(frames, questions, tokens) + frames * products(seen) + prefilled(frames, questions) + steps
        )

    one, several = request(1, 1, 1), request(1, SEVERAL, 1)
    (first, second), steps = (TWO_VIDEOS, STEPS) if one < LONG_S else (TWO_SHORT, FEW_STEPS)
    position = _position(config, pieces, products)
    frame = max(0.0, (request(second, 1, 1) - request(first, 1, 1)) / (second - first) - position)
    medium = max(0.0, request(first, 1, 1) - first * frame - (first - 1) * position)
    few, many = (products(flops.prefusion(config, 1, TEXTS.shared + count * TEXTS.tail)) for count in (1, SEVERAL))
    further = max(0.0, several - one) / (SEVERAL - 1)
    fused = (pieces.fuse(1, SEVERAL) - pieces.fuse(1, 1) + many - few) / (SEVERAL - 1)
    frame_question = min(further, max(0.0, fused))
    step = max(0.0, request(1, 1, 1 + steps) - one) / steps
    return Estimate(
        load=load,
        picture=max(0.0, one - medium),
        frame=frame,
        frame_question=frame_question,
        medium=medium,
        position=position,
        question=further - frame_question,
        step=step,
        row=max(0.0, (request(1, SEVERAL, 1 + steps) - several) / steps - step) / (SEVERAL - 1),
    )


def _position(config: LlavaMiniConfig, pieces: Pieces, products: Seconds) -> float:
    """Seconds of one position more in a medium's prefix."""
    length = TEXTS.shared - 1 + config.vision_tokens_per_frame
    more = products(flops.language_model(config, length + LONG, 0)) - products(flops.language_model(config, length, 0))
    return max(0.0, pieces.prefill(length + LONG, 1) - pieces.prefill(length, 1) + more) / LONG


def converting_seconds(
    stored: Mapping[str, StoredTensor], need: Need, rest: WeightFormat, kernel: Int8Kernel | None = None
) -> float:
    """Seconds in which the weights that do not stay in their files come into a format.

    Args:
        need: of the format; weights that were prepared before are none of its own.
        rest: the format of everything but linear layers, where these are held in fewer bits.
        kernel: that 8 bits are packed for; None: the one that is taken unmeasured.
    """
    if not need.own:
        return 0.0
    held = max((str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()), key=_count(stored))
    number = need.kind if need.kind in NUMBER_BYTES else rest
    sample = torch.full((SAMPLE_ELEMENTS >> 11, 1 << 11), VALUE, dtype=getattr(torch, held))

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) / SAMPLE_ELEMENTS

    taken = (
        (need.own - need.packed) / NUMBER_BYTES[number] * seconds(lambda: sample.to(getattr(torch, number), copy=True))
    )
    if need.packed and need.kind == "int4":
        taken += need.packed * 8 / 4.5 * seconds(lambda: Int4Linear.from_weight(sample, None))
    elif need.packed:
        taken += need.packed * seconds(lambda: Int8Linear.from_weight(sample, None, kernel))
    return taken


def _count(stored: Mapping[str, StoredTensor]) -> Callable[[str], int]:
    def elements(name: str) -> int:
        return sum(prod(one.shape) for one in stored.values() if str(one.dtype).removeprefix("torch.") == name)

    return elements


def reading_seconds(files: Collection[Path]) -> float:
    """Seconds in which the parts of some files that are not in memory come from their disk, judged by samples."""
    sizes = {file: file.stat().st_size for file in files}
    places = _places(sizes, SAMPLES)
    missing: list[tuple[Path, int]] = []
    for file, place in places:
        if not _is_in_memory(file, place):
            missing.append((file, place))
    if not missing:
        return 0.0
    began = time.perf_counter()
    read = sum(_read(file, place) for file, place in missing)
    rate = read / (time.perf_counter() - began)
    return len(missing) / len(places) * sum(sizes.values()) / rate


def _places(sizes: Mapping[Path, int], count: int) -> Sequence[tuple[Path, int]]:
    """Places at even distances in all files together."""
    total, found = sum(sizes.values()), list[tuple[Path, int]]()
    for number in range(count):
        place = total * number // count
        for file, size in sizes.items():
            if place < size:
                found.append((file, place))
                break
            place -= size
    return found


def _is_in_memory(file: Path, place: int) -> bool:
    """True if the page at a place can be had without waiting for a disk; false where the system cannot tell."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    with suppress(OSError), file.open("rb") as opened:
        return os.preadv(opened.fileno(), [bytearray(1)], place, flag) == 1
    return False


def _read(file: Path, place: int) -> int:
    with file.open("rb", buffering=0) as opened:
        opened.seek(place)
        return len(opened.read(SAMPLE_BYTES))
