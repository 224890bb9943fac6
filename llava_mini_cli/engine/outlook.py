"""What a model needs of this machine and how long its work takes here, in each format of its weights.

Weights are not loaded. On a CPU products and everything beside them are measured, which takes seconds, and what is
found is kept for the dry runs to come.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from llava_mini_cli.config import ModelOptions, WeightFormat
from llava_mini_cli.engine.choose_format import choose_format, formats_to_be_had, memory_of, number_formats
from llava_mini_cli.engine.devices import try_device
from llava_mini_cli.engine.estimate import (
    Estimate,
    Estimates,
    FormatOutlook,
    Outlook,
    keep_estimates,
    kept_estimates,
)
from llava_mini_cli.engine.estimating import TEXTS, converting_seconds, estimate, reading_seconds
from llava_mini_cli.engine.fit import NUMBER_BYTES, Need, StoredTensor, fits, needs
from llava_mini_cli.engine.overhead import Pieces
from llava_mini_cli.engine.products import measured_rates
from llava_mini_cli.engine.rates import Rates
from llava_mini_cli.errors import UsageError
from llava_mini_cli.hub import find_model, find_tower
from llava_mini_cli.model.checkpoint import load_config, look_at_weights
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.processor import LlavaMiniProcessor
from llava_mini_cli.model.weight_headers import weight_files

Stored = Mapping[str, StoredTensor]


def outlook(model: str, starting: float) -> Outlook:
    """Counts, measures and keeps. The model has to be on this disk.

    Args:
        starting: seconds that a process takes until it can load a model.

    Raises:
        ModelError: it is not there, or is damaged.
    """
    began = time.perf_counter()
    checkpoint = find_model(model, local_files_only=True)
    config = load_config(checkpoint, local_files_only=True)
    stored = look_at_weights(checkpoint, config, local_files_only=True)
    LlavaMiniProcessor.from_pretrained(model)
    started = starting + time.perf_counter() - began
    options, device = ModelOptions(model), try_device("auto")
    rates = measured_rates(config, device, anew=True)
    there, numbers = memory_of(device), number_formats(options, device)
    number = numbers[0] if rates is None else rates.quickest(numbers)
    measuring = _Measuring(config, checkpoint, stored, rates, started) if device.type == "cpu" else None
    found: list[FormatOutlook] = []
    for kind in formats_to_be_had(device):
        rest = kind if kind in NUMBER_BYTES else number
        need = needs(config.to_dict(), stored, [kind], rest, is_mapped=device.type == "cpu")[kind]
        fitting = there is None or fits(need, there)
        seconds = measuring.estimate(need, rest) if measuring is not None and fitting else None
        found.append(FormatOutlook(kind, need.bytes, fitting, seconds))
    auto = _auto(options, config, stored, device)
    if measuring is not None:
        made = Estimates(auto, {one.kind: one.estimate for one in found if one.estimate is not None})
        made = made.least(kept_estimates(checkpoint))
        keep_estimates(checkpoint, made)
        found = [FormatOutlook(one.kind, one.bytes, one.fits, made.formats.get(one.kind)) for one in found]
    return Outlook(str(device), there, auto, tuple(found))


def _auto(options: ModelOptions, config: LlavaMiniConfig, stored: Stored, device: torch.device) -> WeightFormat | None:
    """The format that is taken where none is asked for; None: none fits."""
    try:
        return choose_format(options, config, stored, device).kind
    except UsageError:
        return None


class _Measuring:
    """Measures one model in several formats; what is the same in two of them is measured once."""

    def __init__(
        self, config: LlavaMiniConfig, checkpoint: Path, stored: Stored, rates: Rates | None, started: float
    ) -> None:
        """Args: started: seconds that a command takes until it reads weights."""
        files = weight_files(checkpoint)
        if not config.unfreeze_mm_vision_tower:
            files += weight_files(find_tower(config.mm_vision_tower, checkpoint, local_files_only=True))
        self._config = config
        self._stored = stored
        self._rates = rates
        self._started = started + reading_seconds(files)
        self._pieces: dict[WeightFormat, Pieces] = {}

    def estimate(self, need: Need, rest: WeightFormat) -> Estimate | None:
        """None where products of the format were not measured."""
        measured = need.kind if self._rates is None else rest
        if measured not in self._pieces:
            products = self._rates is None
            self._pieces[measured] = Pieces(self._config, measured, rest, TEXTS, products=products)
        load = self._started + converting_seconds(self._stored, need, rest)
        return estimate(self._config, need.kind, rest, self._rates, self._pieces[measured], load)
