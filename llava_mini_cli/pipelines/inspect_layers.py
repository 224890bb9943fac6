"""A set of questions about pictures: where a model's layers use vision, and what it says where some do not see it."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llava_mini_cli.config import SamplingOptions
from llava_mini_cli.errors import MediaError, PromptError, UsageError
from llava_mini_cli.formats.inspected import Section, Shown
from llava_mini_cli.formats.job import Job
from llava_mini_cli.formats.layer_report import DropRow, LayerReport, LayerRow
from llava_mini_cli.media.heat_map import as_png, colours
from llava_mini_cli.media.open import is_picture_path, open_clip
from llava_mini_cli.pipelines.inspect_medium import InspectOptions, if_memory_lasts
from llava_mini_cli.pipelines.open_job import fault_of

SPANS = 8  # of layers, in each of which vision is dropped; fewer where there are fewer layers
MOST_PICTURES = 100
MAPS = 8  # layers whose attention is shown whole, spread over all
NEW_TOKENS = 32  # of an answer, at most
MAP_DECADES = 4  # powers of ten between the darkest and the brightest colour of a map

Picture = NDArray[np.uint8]


def inspect_layers(path: str, questions: Sequence[str], options: InspectOptions) -> LayerReport:
    """Looks into the layers of a model.

    Args:
        path: a picture, or a folder of pictures.

    Raises:
        UsageError: there is no picture, or a question cannot be asked.
        LlavaMiniError: the model cannot be loaded, or memory ran out.
    """
    paths = pictures_at(path)
    pictures = [_picture(one, options.sampling) for one in paths]
    return if_memory_lasts(path, _inspect, path, pictures, questions, options)


def _inspect(path: str, pictures: Sequence[Picture], questions: Sequence[str], options: InspectOptions) -> LayerReport:
    """The same, of pictures that are there."""
    from llava_mini_cli.engine import layer_attention
    from llava_mini_cli.engine.layer_models import load_layer_model

    model = load_layer_model(options.model)
    count = len(model.layers)
    new = min(NEW_TOKENS, options.generation.max_new_tokens)
    sums: list[list[layer_attention.LayerSums]] = []
    spans = spans_of(count)
    plain = np.zeros(3)  # log-likelihood, tokens that stay, tokens
    dropped = np.zeros((len(spans), 2))
    maps: Sequence[NDArray[np.float32]] = ()
    try:
        for number, (picture, question) in enumerate(product(pictures, questions)):
            spoken = model.spoken(picture, question, new)
            found, whole = layer_attention.attention_by_layer(model.layers, spoken, maps=number == 0)
            sums.append(found)
            maps = [one.numpy() for one in whole] if number == 0 else maps
            plain += (*layer_attention.answer_scores(spoken), len(spoken.answer))
            for place, span in enumerate(spans):
                with layer_attention.vision_dropped(model.layers, span, spoken.kinds):
                    dropped[place] += layer_attention.answer_scores(spoken)
    except PromptError as error:
        raise UsageError(str(error)) from error
    rows = [
        LayerRow(
            layer + 1,
            layer_attention.KINDS[one],
            layer_attention.KINDS[other],
            _mean([float(found[layer].weights[one, other]) for found in sums]),
            _mean([float(found[layer].within[one, other]) for found in sums]),
            _mean([float(found[layer].entropy[one]) for found in sums]),
        )
        for layer, one, other in product(range(count), range(3), range(3))
    ]
    tokens = int(plain[2])
    drops = [
        DropRow(span[0] + 1, span[-1] + 1, len(sums), tokens, plain[0] / tokens, score / tokens, same / tokens)
        for span, (score, same) in zip(spans, dropped, strict=True)
    ]
    return LayerReport(path, len(pictures), tuple(questions), tuple(rows), tuple(drops), tuple(_map_sections(maps)))


def pictures_at(path: str) -> list[str]:
    """The pictures of a folder by their names, or the one. Raises `UsageError` where there is none, or too many."""
    if not Path(path).is_dir():
        fault = fault_of(Job(path, path, ()))
        if fault is not None:
            raise UsageError(f"'{path}': {fault.message}")
        return [path]
    found = sorted(str(one) for one in Path(path).iterdir() if one.is_file() and is_picture_path(one))
    if not found:
        raise UsageError(f"'{path}' holds no pictures")
    if len(found) > MOST_PICTURES:
        raise UsageError(f"'{path}' holds {len(found)} pictures; --layers takes {MOST_PICTURES} at most")
    return found


def spans_of(count: int) -> list[range]:
    """Layers in about equal spans, by their numbers from 0, then all of them."""
    parts = min(SPANS, count)
    cuts = [count * number // parts for number in range(parts + 1)]
    return [*(range(*cuts[number : number + 2]) for number in range(parts)), *([range(count)] if parts > 1 else [])]


def _picture(path: str, sampling: SamplingOptions) -> Picture:
    try:
        with open_clip(path, sampling, frame_size=1) as clip:
            if clip.info.kind != "image":
                raise UsageError(f"'{path}': --layers looks at pictures, and this is a video")
            return next(iter(clip)).pixels[0]
    except MediaError as error:
        raise UsageError(f"'{path}': {error}") from error


def _mean(values: Sequence[float]) -> float | None:
    """The mean of those that are numbers; None where none is."""
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else None


def _map_sections(maps: Sequence[NDArray[np.float32]]) -> Iterator[Section]:
    """The attention of some layers over the first question, from each token (rows) to each (columns)."""
    count = min(MAPS, len(maps))
    layers = sorted({(len(maps) - 1) * number // max(1, count - 1) for number in range(count)})
    shown = tuple(
        Shown(f"map-layer-{layer + 1:02d}.png", as_png(_enlarged(maps[layer])), f"layer {layer + 1}")
        for layer in layers
    )
    note = (
        "From each token (rows) to each (columns) of the first question and its answer, mean of the heads. The scale "
        f"is logarithmic: the brightest colour is a weight of 1, and black one of 1e-{MAP_DECADES} and less."
    )
    if shown:
        yield Section("Attention in some layers", note, shown)


def _enlarged(weights: NDArray[np.float32]) -> Picture:
    """A picture of a matrix of weights on a logarithmic scale, each in a square of whole pixels."""
    scale = max(1, 448 // len(weights))
    bright = 1 + np.log10(np.maximum(weights, 10.0**-MAP_DECADES)) / MAP_DECADES
    return colours(bright).repeat(scale, 0).repeat(scale, 1)
