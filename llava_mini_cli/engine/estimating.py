"""Estimates of a model's work on this machine, measured in a few seconds without loading it.

Products with weights are counted (`flops.py`) and take what products of one shape were measured to take (`rates.py`);
everything beside them is measured as it is (`overhead.py`). Of a small model all of it is. Loading is what programs
and tokenizers take, what has to be read from the disk, and what is converted or packed on the way.
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
from llava_mini_cli.engine.overhead import VALUE, Pieces, Texts
from llava_mini_cli.engine.packed_linear import Int4Linear, Int8Linear
from llava_mini_cli.engine.rates import Rates
from llava_mini_cli.model.configuration import LlavaMiniConfig

TEXTS = Texts(shared=36, tail=TAIL_TOKENS)  # tokens of an ordinary prompt
SEVERAL, MANY_ROWS, LONG = 9, 16, 256  # questions, answers and positions whose difference to one tells of each
SMALL_FRAMES = 4  # encoded at once, where a call takes as long as what it computes
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

    def seconds(products: Products) -> float:
        if rates is None:
            return 0.0
        return sum(
            one.times * (rates.seconds(kind if one.is_packed else rest, one.rows, one.elements) or 0.0)
            for one in products
        )

    encoding = _encoding(config, pieces, seconds, rates is None)
    return Estimate(load=load, **encoding, **_speaking(config, pieces, seconds))


def _encoding(config: LlavaMiniConfig, pieces: Pieces, seconds: Seconds, is_small: bool) -> dict[str, float]:
    text = TEXTS.shared + TEXTS.tail
    one, several = flops.prefusion(config, 1, text), flops.prefusion(config, 1, TEXTS.shared + SEVERAL * TEXTS.tail)
    seen = seconds(flops.tower(config, 1) + flops.projection(config, 1))
    fused = pieces.fuse(1, 1)
    picture = frame = pieces.see(1) + fused
    if is_small:
        frame = (pieces.see(SMALL_FRAMES) + pieces.fuse(SMALL_FRAMES, 1)) / SMALL_FRAMES
    further = pieces.fuse(1, SEVERAL) - fused + seconds(several) - seconds(one)
    return {
        "picture": picture + seen + seconds(one),
        "frame": frame + seen + seconds(one),
        "frame_question": max(0.0, further) / (SEVERAL - 1),
    }


def _speaking(config: LlavaMiniConfig, pieces: Pieces, seconds: Seconds) -> dict[str, float]:
    positions = TEXTS.shared - 1 + config.vision_tokens_per_frame

    def prefilled(more: int, questions: int) -> float:
        prefix = flops.language_model(config, positions + more, 0)
        tails = flops.language_model(config, questions * TEXTS.tail, questions)
        return pieces.prefill(positions + more, questions) + seconds(prefix) + seconds(tails)

    def step(rows: int) -> float:
        return pieces.step(positions, rows) + seconds(flops.language_model(config, rows, rows))

    one, alone = prefilled(0, 1), step(1)
    return {
        "medium": one,
        "position": max(0.0, prefilled(LONG, 1) - one) / LONG,
        "question": max(0.0, prefilled(0, SEVERAL) - one) / (SEVERAL - 1),
        "step": alone,
        "row": max(0.0, step(MANY_ROWS) - alone) / (MANY_ROWS - 1),
    }


def converting_seconds(stored: Mapping[str, StoredTensor], need: Need, rest: WeightFormat) -> float:
    """Seconds in which the weights that do not stay in their files come into a format."""
    if not need.own:
        return 0.0
    held = max((str(tensor.dtype).removeprefix("torch.") for tensor in stored.values()), key=_count(stored))
    number = need.kind if need.kind in NUMBER_BYTES else rest
    sample = torch.full((SAMPLE_ELEMENTS >> 11, 1 << 11), VALUE, dtype=getattr(torch, held))
    packed = {"int8": Int8Linear, "int4": Int4Linear}.get(need.kind)
    began = time.perf_counter()
    if packed is not None:
        packed.from_weight(sample, None)
    else:
        sample.to(getattr(torch, number), copy=True)
    taken = (time.perf_counter() - began) / SAMPLE_ELEMENTS
    bits = {"int8": 8, "int4": 4.5}.get(need.kind, 8 * NUMBER_BYTES.get(number, 4))
    return taken * need.own * 8 / bits


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
