"""What a model needs of this machine and how long its work takes here, in each format of its weights.

Weights are not loaded. On a CPU products and everything beside them are measured, which takes seconds, and what is
found is kept for the dry runs to come.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import cast, get_args

import torch

from llava_mini_cli.config import ModelOptions, Quantization, WeightFormat
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
from llava_mini_cli.engine.fit import NUMBER_BYTES, Need, fits, needs
from llava_mini_cli.engine.overhead import Pieces
from llava_mini_cli.engine.prepared_file import PreparedReader
from llava_mini_cli.engine.prepared_folder import WHOLE, folder, open_own
from llava_mini_cli.engine.prepared_index import DamagedError
from llava_mini_cli.engine.prepared_wanted import Wanted, about_weights
from llava_mini_cli.engine.products import int8_kernel, measured_rates
from llava_mini_cli.engine.rates import Rates
from llava_mini_cli.errors import UsageError
from llava_mini_cli.hub import find_model, model_digest
from llava_mini_cli.model.checkpoint import load_config, look_at_weights
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.modeling import LlavaMiniForConditionalGeneration
from llava_mini_cli.model.processor import LlavaMiniProcessor
from llava_mini_cli.model.weight_headers import Stored as StoredTensor

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
    processor = LlavaMiniProcessor.from_pretrained(model)
    with torch.device("meta"):
        LlavaMiniForConditionalGeneration(config)
    started = starting + time.perf_counter() - began
    options, device = ModelOptions(model), try_device("auto")
    rates = measured_rates(config, device, anew=True)
    there, numbers = memory_of(device), number_formats(options, device)
    number = numbers[0] if rates is None else rates.quickest(numbers)
    measuring = _Measuring(config, processor, stored, rates, started) if device.type == "cpu" else None
    found: list[FormatOutlook] = []
    for kind in formats_to_be_had(device):
        rest = kind if kind in NUMBER_BYTES else number
        prepared = _prepared_file(model, stored, kind, rates) if device.type == "cpu" else None
        need = needs(
            config.to_dict(), stored, [kind], rest, is_mapped=device.type == "cpu", is_prepared=prepared is not None
        )[kind]
        fitting = there is None or fits(need, there)
        seconds = measuring.estimate(need, rest, prepared) if measuring is not None and fitting else None
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


def _prepared_file(model: str, stored: Stored, kind: WeightFormat, rates: Rates | None) -> Path | None:
    """The file that holds a model's weights packed, from which the next load will take them; None: there is none."""
    if kind not in get_args(Quantization):
        return None
    files = {one.file for one in stored.values()}
    digest = model_digest(model, local_files_only=True)
    about = about_weights(files, digest, cast(Quantization, kind), int8_kernel(rates))
    path = folder() / f"{Wanted(about, model, 0, 0).key}{WHOLE}"
    return path if path.is_file() else None


def _opening_seconds(prepared: Path) -> float:
    """Seconds in which a load looks at prepared weights; what is damaged is found by the load and made anew."""
    began = time.perf_counter()
    with suppress(DamagedError, OSError):
        PreparedReader(open_own(prepared)).close()
    return time.perf_counter() - began


class _Measuring:
    """Measures one model in several formats; what is the same in two of them is measured once."""

    def __init__(
        self,
        config: LlavaMiniConfig,
        processor: LlavaMiniProcessor,
        stored: Stored,
        rates: Rates | None,
        started: float,
    ) -> None:
        """Args: started: seconds that a command takes until it reads weights."""
        self._config = config
        self._processor = processor
        self._stored = stored
        self._rates = rates
        self._started = started
        self._reading = reading_seconds({one.file for one in stored.values()})
        self._pieces: dict[WeightFormat, Pieces] = {}

    def estimate(self, need: Need, rest: WeightFormat, prepared: Path | None = None) -> Estimate | None:
        """None where products of the format were not measured. `prepared`: the file with its packed weights."""
        measured = need.kind if self._rates is None else rest
        if measured not in self._pieces:
            products, prompts = self._rates is None, self._processor.prompts()
            self._pieces[measured] = Pieces(
                self._config, measured, rest, TEXTS, self._processor, prompts, products=products
            )
        load = self._started + self._loading(need, rest, prepared)
        return estimate(self._config, need.kind, rest, self._rates, self._pieces[measured], load)

    def _loading(self, need: Need, rest: WeightFormat, prepared: Path | None) -> float:
        """Seconds in which weights come from their files and into a format."""
        kernel = None if self._rates is None else self._rates.int8_kernel
        converting = converting_seconds(self._stored, need, rest, kernel)
        if prepared is None:
            return self._reading + converting
        size = sum(prod(one.shape) * (4 if one.dtype is None else one.dtype.itemsize) for one in self._stored.values())
        others = max(0, need.own + need.mapped - prepared.stat().st_size) / size  # the rest is not read any more
        return _opening_seconds(prepared) + reading_seconds([prepared]) + min(1.0, others) * self._reading + converting
