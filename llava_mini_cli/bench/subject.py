"""What is measured: a model of a preset's shape or a checkpoint, if there is memory for it, and LLaVA-1.5 beside it."""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from typing import Any, cast

import torch

from llava_mini_cli import __version__
from llava_mini_cli.bench.made_models import CountedPrompts, llava_beside, random_model, weights_of
from llava_mini_cli.bench.paper import is_the_papers
from llava_mini_cli.bench.report import Value
from llava_mini_cli.bench.shapes import NO_END, PresetName, preset_shape
from llava_mini_cli.config import ModelOptions, WeightFormat
from llava_mini_cli.engine.choose_format import memory_of, number_formats
from llava_mini_cli.engine.engine import Engine
from llava_mini_cli.engine.fit import NUMBER_BYTES, Need, fits, gib, needs
from llava_mini_cli.engine.load import load_engine, make_engine
from llava_mini_cli.engine.memory import unless_out_of_memory
from llava_mini_cli.engine.products import choose_products, measure, measured_rates
from llava_mini_cli.engine.rates import Rates, this_machine
from llava_mini_cli.engine.trials import try_options
from llava_mini_cli.errors import UsageError
from llava_mini_cli.hub import find_model
from llava_mini_cli.model.checkpoint import load_config
from llava_mini_cli.model.configuration import LlavaMiniConfig
from llava_mini_cli.model.preprocess import Preprocessor
from llava_mini_cli.model.processor import LlavaMiniProcessor

ROUNDS = 3
SLOW_NUMBERS = 1 << 30  # in the weights of a model, on a CPU
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Subject:
    """A model that is measured, or only counted."""

    name: str
    words: str
    config: LlavaMiniConfig
    device: torch.device
    dtype: torch.dtype  # of the computation
    weight_format: WeightFormat
    engine: Engine | None  # None: it is only counted
    why_not: str | None = None  # it is not measured

    @property
    def is_the_papers(self) -> bool:
        """True of the language model and the tower of the paper's figures."""
        return is_the_papers(self.config.to_dict(), self.config.vision.to_dict())

    @property
    def number_bytes(self) -> int:
        """Bytes of a number of the computation."""
        return self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """The number format of the computation."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def bytes_left(self) -> int | None:
        """Bytes that this process may have beside the weights; None: nobody knows, or not even the weights fit."""
        there = memory_of(self.device)
        left = None if there is None else there.bytes - self._numbers * self.number_bytes
        return None if left is None or left < 0 else left

    @property
    def is_slow(self) -> bool:
        """True where one image takes seconds, so that less of everything is measured."""
        return self.device.type == "cpu" and self._numbers > SLOW_NUMBERS

    @property
    def rounds(self) -> int:
        """Times that everything is measured."""
        return 1 if self.is_slow else ROUNDS

    @cached_property
    def _numbers(self) -> int:
        """How many numbers the weights have."""
        return sum(math.prod(tensor.shape) for tensor in weights_of(self.config, self.dtype_name).values())

    @cached_property
    def llava(self) -> Any:
        """transformers' LLaVA-1.5 of the same parts; None where it cannot be had."""
        if self.engine is None or self.weight_format not in NUMBER_BYTES:
            return None
        return unless_out_of_memory(llava_beside, self.engine.model)


def subject_of_preset(name: PresetName, options: ModelOptions) -> Subject:
    """A model of a preset's shape with random weights. Raises `UsageError` for a device that does not work."""
    shape = preset_shape(name)
    device = try_options(options)
    config = LlavaMiniConfig.from_fields(shape.fields)
    kinds: Sequence[WeightFormat] = number_formats(options, device)
    found = _needs(config, kinds)
    there = memory_of(device)
    fitting: list[WeightFormat] = [kind for kind in kinds if fits(found[kind], there)]
    rates = measured_rates(config, device) if len(fitting) > 1 else None
    least: WeightFormat = min(kinds, key=lambda kind: found[kind].bytes)
    kind: WeightFormat = least if not fitting else fitting[0] if rates is None else rates.quickest(fitting)
    number = cast(torch.dtype, getattr(torch, kind))
    made = Subject(name, shape.words, config, device, number, kind, None)
    if not fitting:
        assert there is not None
        made.why_not = _does_not_fit(found[least].bytes, there.source, there.bytes)
        return made
    model = unless_out_of_memory(random_model, config, number, device)
    if model is None:
        made.why_not = f"memory ran out on {device} while it was made"
        return made
    made.engine = _engine(model, config, options)
    return made


def _does_not_fit(needed: int, source: str, there: int) -> str:
    return f"the model needs {gib(needed)} of memory, and {source} leaves {gib(there)}"


def _needs(config: LlavaMiniConfig, kinds: Sequence[WeightFormat]) -> dict[WeightFormat, Need]:
    stored = weights_of(config, "float32")
    return {kind: needs(config.to_dict(), stored, [kind], kind, is_mapped=False)[kind] for kind in kinds}


def subject_of_checkpoint(options: ModelOptions) -> Subject:
    """A checkpoint with its own weights. Raises `UsageError`, `ModelError`."""
    model, device = options.model, try_options(options)
    config = load_config(find_model(model))
    try:
        loaded = load_engine(options)
    except UsageError as error:  # the options were tried: what is left is memory
        fields = LlavaMiniConfig.from_fields({**config.to_dict(), **NO_END})
        kind = number_formats(options, device)[-1]
        return Subject(model, "a checkpoint", fields, device, getattr(torch, kind), kind, None, str(error))
    made = loaded.model
    made.generation_config.eos_token_id = None  # pyright: ignore[reportOptionalMemberAccess]
    prompts = CountedPrompts(made.config.vocab_size)
    engine = Engine(
        made, loaded.processor, cast(Any, prompts), loaded.limits, weight_format=loaded.weight_format, note=loaded.note
    )
    return Subject(model, "a checkpoint", made.config, device, made.dtype, engine.weight_format, engine)


def _engine(model: Any, config: LlavaMiniConfig, options: ModelOptions) -> Engine:
    """An engine as a run has it, with prompts by their number of tokens."""
    size = config.vision.image_size
    assert isinstance(size, int)
    splits, frame_size = config.resolution_ratio, config.video_frame_size
    preprocessor = Preprocessor(size, (size, size), MEAN, STD, splits=splits, frame_size=frame_size)
    engine = make_engine(model, _CountingProcessor(None, preprocessor, config), options)
    if model.device.type == "cpu" and measured_rates(config, model.device) is None:
        # A small model stands for one of full size, whose products are chosen by their speed.
        shape = config.intermediate_size, config.hidden_size
        choose_products(model, Rates(shape, measure(shape)[0]))
    return engine


class _CountingProcessor(LlavaMiniProcessor):
    """A processor without a tokenizer."""

    def prompts(self, layout: object = None) -> Any:
        """Prompts by their number of tokens."""
        return CountedPrompts(self.config.vocab_size)


def facts(subject: Subject) -> dict[str, Value]:
    """What the figures are of: the machine, the versions, the model and its formats."""
    there = memory_of(subject.device)
    on_cuda = subject.device.type == "cuda"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": this_machine()["processor"],
        "cores": this_machine()["cores"],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(subject.device) if on_cuda else str(subject.device),
        "memory_gib": None if there is None else round(there.bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "llava_mini": __version__,
        "model": subject.name,
        "shape": subject.words,
        "format": subject.weight_format,
        "measured": "yes" if subject.engine is not None else f"no: {subject.why_not}",
    }
